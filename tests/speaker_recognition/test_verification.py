"""Speaker verification: trials across chapters, error rates by hand, statistics of other speakers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from common.datasets import DatasetError
from common.features import FeatureSet
from common.flags import run
from speaker_recognition.librispeech_verification import main
from speaker_recognition.verification import error_rates, make_trials, speaker_intervals, transformed
from tests.support.samples import SHARED, needs_shared
from tests.support.scripts import call, refused


def speakers(first: int, count: int, chapters: int = 2, utterances: int = 6, seed: int = 0) -> FeatureSet:
    """Embeddings around a centre a speaker, in an offset and correlated space."""
    rng = np.random.default_rng(seed)
    rows = [(s, c) for s in range(count) for c in range(chapters) for _ in range(utterances)]
    centres = np.random.default_rng([1, first]).standard_normal((count, 16))
    mixing = np.random.default_rng(2).standard_normal((16, 16)) * np.geomspace(1, 30, 16)
    values = (centres[[s for s, _ in rows]] + 0.5 * rng.standard_normal((len(rows), 16))) @ mixing + 100
    return FeatureSet(
        torch.from_numpy(values).float(),
        torch.tensor([s for s, _ in rows]),
        [str(first + s) for s in range(count)],
        [f"{first + s}-{c}-{row}" for row, (s, c) in enumerate(rows)],
        groups=[f"{first + s}-{c}" for s, c in rows],
        meta={
            "checkpoint": "random:0",
            "dataset": "librispeech_test-clean" if first < 100 else "librispeech_train-clean-100",
        },
    )


def test_error_rates_are_those_computed_by_hand() -> None:
    same = np.array([True] * 4 + [False] * 4)
    # Of the overlapping ones, one false alarm costs 99 / 4 misses, so refusing the impostor at the price of a miss is best.
    for similarity, equal_error_rate, min_dcf in (
        ([5, 6, 7, 8, 1, 2, 3, 4], 0, 0),
        ([4, 6, 7, 8, 1, 2, 3, 5], 0.25, 0.25),
        ([0] * 8, 0.5, 1),
    ):
        rates = error_rates(same, np.array(similarity))
        assert rates["equal_error_rate"] == pytest.approx(equal_error_rate)
        assert rates["min_dcf_0.01"] == pytest.approx(min_dcf)


def test_trials_of_one_speaker_span_two_chapters_and_follow_the_seed() -> None:
    features = speakers(1, 5)
    pairs, same = make_trials(features, 42)
    labels, groups = features.labels.numpy(), np.array(features.groups)
    assert ((labels[pairs[:, 0]] == labels[pairs[:, 1]]) == same).all()
    assert (groups[pairs[same, 0]] != groups[pairs[same, 1]]).all()
    assert same.sum() == (~same).sum() == 5 * 36
    assert len({tuple(pair) for pair in pairs.tolist()}) == len(pairs)
    again, _ = make_trials(features, 42)
    other, _ = make_trials(features, 43)
    assert np.array_equal(pairs, again)
    assert not np.array_equal(pairs, other)


def test_trials_need_two_speakers_and_two_chapters() -> None:
    for features in (speakers(1, 5, chapters=1), speakers(1, 1)):
        with pytest.raises(DatasetError, match="no trials can be made"):
            make_trials(features, 42)


def test_whitening_makes_the_other_speakers_uncorrelated() -> None:
    statistics = speakers(100, 40, utterances=20)
    whitened = transformed(statistics.features.double().numpy(), statistics)["whitened"]
    covariance = np.cov(whitened.T)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-6
    assert (np.diag(covariance) < 1.2).all()
    assert (np.diag(covariance) > 0.3).all()  # shrinkage keeps the smallest directions small


def test_speaker_intervals_are_wider_than_those_of_independent_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speakers differ in how well they are told apart, and their trials share them."""
    monkeypatch.setattr("speaker_recognition.verification.RESAMPLES", 100)
    features = speakers(1, 20)
    pairs, same = make_trials(features, 0)
    sides = features.labels.numpy()[pairs]
    difficulty = np.random.default_rng(0).standard_normal(20)
    rng = np.random.default_rng(1)
    similarity = 1.5 * same + rng.standard_normal(len(same)) - difficulty[sides].sum(axis=1) * np.where(same, 1, -1)
    low, high = speaker_intervals(same, similarity, sides, 42)["equal_error_rate"]
    rate = error_rates(same, similarity)["equal_error_rate"]
    binomial = 2 * 1.96 * np.sqrt(rate * (1 - rate) / same.sum())
    assert low < rate < high
    assert high - low > 2 * binomial
    assert speaker_intervals(same, similarity, sides, 42)["equal_error_rate"] == (low, high)


def test_files_of_the_original_project_are_verified_without_chapters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only features and raw speaker ids."""
    for name, first in (("testclean", 1), ("devclean", 100)):
        features = speakers(first, 8)
        labels = features.labels * 7 + 1000 * first
        torch.save({"features": features.features, "labels": labels}, tmp_path / f"librispeech_{name}_features.pt")
    path = tmp_path / "librispeech_testclean_features.pt"
    main(["--features", str(path), "--statistics", "dev-clean", "--output-dir", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "holds no provenance, so its encoder is unknown; taken for LibriSpeech test-clean" in printed
    assert "WARNING: chapters are unknown" in printed
    record = json.loads((tmp_path / "out" / "verification.json").read_text())
    assert record["trials"]["across_chapters"] is False


@needs_shared
def test_the_published_features_give_the_published_error_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("testclean", "devclean"):
        file = f"librispeech_{name}_features.pt"
        (tmp_path / file).symlink_to(SHARED / "reference_features" / file)
    path = tmp_path / "librispeech_testclean_features.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("speaker_recognition.verification.RESAMPLES", 3)
        main(["--features", str(path), "--statistics", "dev-clean", "--output-dir", str(tmp_path / "out")])
    assert "recognised as speakers of dev-clean by their ids" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "verification.json").read_text())
    assert record["scores"]["whitened"]["equal_error_rate"] == pytest.approx(0.145, abs=0.0005)


def test_the_script_prints_and_writes_what_it_computes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speakers(1, 8).save(tmp_path / "librispeech_testclean_features.pt")
    speakers(100, 40, seed=3).save(tmp_path / "librispeech_trainclean100_features.pt")
    flags = ["--features", str(tmp_path / "librispeech_testclean_features.pt"), "--output-dir", str(tmp_path / "out")]
    main(flags)
    record = json.loads((tmp_path / "out" / "verification.json").read_text())
    rates = {name: row["equal_error_rate"] for name, row in record["scores"].items()}
    assert rates["whitened"] < rates["raw"]
    printed = capsys.readouterr().out
    assert all(f"{100 * rate:.1f}" in printed for rate in rates.values())
    with (tmp_path / "out" / "trials.csv").open() as file:
        assert len(list(csv.DictReader(file))) == record["trials"]["same"] + record["trials"]["different"]
    assert (tmp_path / "out" / "det.png").read_bytes().startswith(b"\x89PNG")


def test_the_script_refuses_features_that_do_not_belong_together(tmp_path: Path) -> None:
    path = tmp_path / "librispeech_testclean_features.pt"
    speakers(1, 8).save(path)

    def message() -> str:
        return refused(
            call(lambda words: run(lambda: main(words)), "--features", path, "--output-dir", tmp_path / "out")
        )

    assert "librispeech_trainclean100_features.pt not found" in message()
    speakers(1, 40).save(tmp_path / "librispeech_trainclean100_features.pt")
    assert "holds features of librispeech_test-clean, not of librispeech_train-clean-100" in message()
    sharing = speakers(1, 40)
    sharing.meta["dataset"] = "librispeech_train-clean-100"
    sharing.save(tmp_path / "librispeech_trainclean100_features.pt")
    assert "share speakers" in message()
    other = speakers(100, 40)
    other.meta["checkpoint"] = "random:1"
    other.save(tmp_path / "librispeech_trainclean100_features.pt")
    assert "different settings (checkpoint" in message()
    zero = speakers(100, 40)
    zero.features[3] = 0
    zero.save(tmp_path / "librispeech_trainclean100_features.pt")
    assert "length 0" in message()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "verification.json").write_text('{"settings": {"seed": 1}}')
    speakers(100, 40).save(tmp_path / "librispeech_trainclean100_features.pt")
    assert "holds other results (seed was 1, now 42" in message()


def test_error_rates_are_those_of_the_receiver_operating_characteristic() -> None:
    """With ties and weights, as scikit-learn's curve has them."""
    rng = np.random.default_rng(0)
    same, weights = rng.random(500) < 0.4, rng.integers(0, 4, 500)
    similarity = np.round(same + rng.standard_normal(500), 1)
    false_accept, true_accept, _ = roc_curve(same, similarity, sample_weight=weights, drop_intermediate=False)
    rates = error_rates(same, similarity, weights)
    for prior in (0.01, 0.05):
        cost = prior * (1 - true_accept) + (1 - prior) * false_accept
        assert rates[f"min_dcf_{prior}"] == pytest.approx(cost.min() / prior, rel=1e-12)
    crossing = np.interp(0, (false_accept + true_accept - 1), false_accept)
    assert rates["equal_error_rate"] == pytest.approx(crossing, rel=1e-9)


def test_intervals_do_not_depend_on_the_draws() -> None:
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 20, (3000, 2))
    same = pairs[:, 0] == pairs[:, 1]
    similarity = 1.5 * same + rng.standard_normal(3000)
    ends = [speaker_intervals(same, similarity, pairs, seed)["equal_error_rate"] for seed in range(4)]
    assert np.ptp(np.array(ends, float), axis=0).max() < 0.004  # four tenths of a point, of an interval of 20
