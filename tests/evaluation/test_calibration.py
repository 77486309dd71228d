"""Temperatures and calibration errors: right for made-up heads, and fitted without the rows that they are measured on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax

from common.evaluation.calibration import (
    HeldOut,
    Scale,
    Unseen,
    calibrate,
    expected_error,
    fit_temperature,
    reliability,
)
from common.evaluation.plots import plot_reliability
from common.features import FeatureSet
from common.heads import NoneOfTheseError, TrainedHead, conformal_threshold
from tests.support.heads import grouped_features, run, small_features


def answers(seed: int, rows: int = 4000, too_sure: float = 1.0) -> Unseen:
    """Labels drawn from the softmax of logits, which are then multiplied."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((rows, 4)) * 1.5
    labels = np.array([rng.choice(4, p=row) for row in softmax(logits, axis=1)])
    return Unseen((logits * too_sure).astype(np.float32), labels)


@pytest.mark.parametrize("too_sure", [0.3, 1.0, 5.0])
def test_the_temperature_undoes_what_made_a_head_too_sure(too_sure: float) -> None:
    made = answers(0, too_sure=too_sure)
    assert fit_temperature(made.logits, made.labels) == pytest.approx(too_sure, rel=0.1)


def test_calibration_reduces_the_error() -> None:
    folds = [answers(seed, 1000, too_sure=4) for seed in range(3)]
    record = calibrate(HeldOut(folds), Scale.fitted(folds))
    assert (record.fitted_on, record.temperature) == ("the other folds", pytest.approx(4, rel=0.15))
    assert record.error_before > 0.2 and record.error_after < 0.05
    assert sum(part.clips for part in record.before) == 3000
    single = calibrate(HeldOut(folds[:1], folds[1]), Scale())
    assert single.fitted_on == "validation clips"


def test_no_temperature_of_a_fold_comes_from_its_own_labels() -> None:
    """Wrong labels in a fold change its measured error by the labels only, not by the temperature."""
    folds = [answers(seed, 500, too_sure=3) for seed in range(2)]
    wrong = replace(folds[0], labels=(folds[0].labels + 1) % 4)
    before, after = (calibrate(HeldOut(parts), Scale()) for parts in (folds, [wrong, folds[1]]))
    of_fold = softmax(folds[0].logits / fit_temperature(folds[1].logits, folds[1].labels), axis=1)
    assert {round(part.confidence, 9) for part in reliability(of_fold, wrong.labels)} == {
        round(part.confidence, 9) for part in reliability(of_fold, folds[0].labels)
    }
    assert after.error_before != before.error_before


def test_the_expected_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    bins = reliability(probabilities, np.array([0, 1, 0, 0]))
    assert [(part.confidence, part.accuracy, part.clips) for part in bins] == [(0.6, 1.0, 2), (0.9, 0.5, 2)]
    assert expected_error(bins) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)


@pytest.mark.parametrize("recipe", ["paper", "tuned"])
def test_every_run_has_its_calibration_and_the_head_its_temperature(recipe: str, tmp_path: Path) -> None:
    """With folds, and with a single split, where the tuned recipe is fitted on the validation clips too."""
    folds = grouped_features()
    sides = replace(
        small_features(folds=5),
        folds=None,
        splits=[("train", "train", "train", "valid", "test")[row // 24] for row in range(120)],
    )
    for features, fitted_on in ((folds, "the other folds"), (sides, "validation clips")):
        done = run(features, recipe=recipe, epochs=5)
        for kind, scored in done.record.heads.items():
            assert scored.calibration is not None and scored.calibration.fitted_on == fitted_on
            head = done.heads[kind]
            assert head.temperature == scored.calibration.temperature > 0
            head.save(tmp_path / "head.pt")
            assert TrainedHead.load(tmp_path / "head.pt").temperature == head.temperature
            plot_reliability(scored.calibration, "made up", tmp_path / "reliability.png")
            assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("is_several", [False, True])
def test_without_held_out_rows_nothing_is_calibrated(is_several: bool) -> None:
    features = small_features(per_fold=1, folds=2)
    assert features.folds is not None
    sides = ["train" if fold == 1 else "test" for fold in features.folds.tolist()]
    features = replace(features, folds=None, splits=sides)
    if is_several:
        labels = torch.nn.functional.one_hot(features.labels, len(features.class_names)).bool()
        features = replace(features, labels=labels)
    done = run(features, epochs=2)
    for kind, scored in done.record.heads.items():
        assert scored.calibration is scored.none_of_these is scored.label_sets is None
        head = done.heads[kind]
        assert head.temperature == 1 and head.known is None
        assert head.thresholds is None and (head.scaling is not None) == is_several


def test_the_threshold_holds_its_rate_for_clips_like_the_held_out_ones() -> None:
    """By the definition of a conformal quantile: over many draws, at most the rate, and nearly so."""
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(300):
        held_out, new = rng.standard_normal((2, 99))
        threshold = conformal_threshold(held_out, None, 0.1)
        alarms.append((new > threshold.distance).mean())
        assert not threshold.is_promised  # nothing is known of new recordings
    assert 0.09 < np.mean(alarms) < 0.105
    assert conformal_threshold(np.arange(19), None, 0.05).distance == 18
    with pytest.raises(NoneOfTheseError, match="needs at least 19 held-out clips"):
        conformal_threshold(np.arange(18), None, 0.05)


@pytest.mark.parametrize("spread", [0.0, 1.0, 20.0])
def test_the_threshold_by_groups_holds_for_new_groups(spread: float) -> None:
    """However much recordings differ, once enough of them were held out; with fewer, nothing is promised."""
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(400):
        sizes = rng.integers(5, 30, size=20)
        groups = np.repeat(np.arange(20), sizes)
        clips = spread * rng.standard_normal(20)[groups] + rng.standard_normal(len(groups))
        is_new = groups == 19
        threshold = conformal_threshold(clips[~is_new], groups[~is_new], 0.05)
        assert threshold.is_promised and threshold.n_groups == 19
        alarms.append((clips[is_new] > threshold.distance).mean())
    assert np.mean(alarms) < 0.06  # 5 %, and what 400 draws leave open
    few = conformal_threshold(np.arange(90), np.arange(90) % 18, 0.05)
    assert not few.is_promised and few.n_groups == 18 and 84 <= few.distance <= 86


def test_the_found_share_is_that_of_a_head_that_does_not_know_the_class() -> None:
    """And it tells whether the mark can find anything: classes far apart are found, classes on top of others are not."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    shares = []
    for distance in (30.0, 0.0):
        centres = distance * np.eye(4, 8)
        values = torch.from_numpy((centres[labels] + rng.standard_normal((400, 8))).astype(np.float32))
        folds = torch.arange(400) // 4 % 5 + 1
        features = FeatureSet(values, torch.from_numpy(labels), list("abcd"), list(map(str, range(400))), folds)
        record = run(features, epochs=1, feature_dim=8).record.heads["linear"].none_of_these
        assert record is not None and record.found is not None
        shares.append(record.found)
    assert shares[0] > 0.99 and shares[1] < 0.15


def test_distances_are_those_to_rows_that_were_learned_from() -> None:
    """Test rows are never among the known rows; the kept head's training rows are at distance 0."""
    features = grouped_features()
    done = run(features, epochs=3)
    for kind, scored in done.record.heads.items():
        assert scored.none_of_these is not None
        assert (scored.none_of_these.fitted_on, scored.none_of_these.clips) == ("the other folds", len(features))
        head = done.heads[kind]
        assert head.known is not None and len(head.known.held_out) == len(features)
        assert (head.known.held_out > 0).all()
        values = features.features.numpy()
        scaled = (values - values.mean(axis=0)) / values.std(axis=0)  # whatever the head's scaler
        by_hand = np.linalg.norm(scaled[:, None] - scaled[None], axis=2)
        np.testing.assert_allclose(head.known.distances(values), by_hand.min(axis=1), atol=1e-3)


@pytest.mark.parametrize("recipe", ["paper", "tuned"])
def test_the_rate_holds_for_the_kept_head(recipe: str) -> None:
    """Fresh clips of the same classes are called none of these at most about as often as asked, whatever the scaler: the kept
    head has learned from more clips than those of the folds."""
    rng = np.random.default_rng(0)
    centres, mixing = rng.standard_normal((4, 24)), rng.standard_normal((24, 24))

    def drawn(rows: int) -> FeatureSet:
        labels = np.arange(rows) % 4
        values = (centres[labels] + rng.standard_normal((rows, 24))) @ mixing
        names = [str(row) for row in range(rows)]
        folds = torch.arange(rows) // 4 % 5 + 1
        return FeatureSet(torch.from_numpy(values).float(), torch.from_numpy(labels), list("abcd"), names, folds)

    done = run(drawn(400), recipe=recipe, scaler="whiten", whiten_eps=None, epochs=2, feature_dim=24)
    fresh = drawn(4000)
    for kind, scored in done.record.heads.items():
        known = done.heads[kind].known
        assert known is not None and scored.none_of_these is not None
        alarms = (
            known.distances(fresh.features.numpy()) > conformal_threshold(known.held_out, known.groups, 0.05).distance
        ).mean()
        assert 0.02 < alarms < 0.065
        assert 0.02 < scored.none_of_these.measured < 0.08


def test_permuted_test_labels_change_no_threshold() -> None:
    features = grouped_features()
    rows = (features.folds == 1).nonzero()[:, 0]
    labels = features.labels.clone()
    labels[rows] = labels[rows.flip(0)]
    first, second = (run(rows, epochs=2).heads["linear"] for rows in (features, replace(features, labels=labels)))
    assert first.known is not None and second.known is not None
    np.testing.assert_array_equal(first.known.held_out, second.known.held_out)


def test_a_temperature_that_does_not_help_on_held_out_clips_is_not_kept() -> None:
    helped = set()
    for seed in range(4):
        done = run(grouped_features(), epochs=2, random_seed=seed)
        for kind, scored in done.record.heads.items():
            record, head = scored.calibration, done.heads[kind]
            assert record is not None and record.temperature is not None
            assert head.temperature == pytest.approx(record.temperature)
            is_kept = record.temperature != 1
            assert not is_kept or record.error_after <= record.error_before
            helped.add(is_kept)
    assert helped == {True, False}
