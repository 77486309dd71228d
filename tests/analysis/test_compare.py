"""Encoders against each other: the same clips, paired tests, stable ranks, costs; and what may not be compared."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis import summary
from analysis.compare import (
    LEVEL,
    EncoderCost,
    EncodersRecord,
    compare_encoders,
    encoder_table,
    pair_table,
    reading_notes,
)
from analysis.compare import _method as method_of
from analysis.report_page.page import TaskAnswer, answer, answer_words
from analysis.scores import read_runs
from analysis.studies import STUDIES
from common.cli import classify_main
from common.encoder import LogMelStatistics
from common.encoder.measure import CheckRecord, check_encoder
from common.evaluation.intervals import holm
from common.features import FeatureFileError, FeatureSet
from esc50_feature_fc.esc50 import TASK
from tests.support.heads import noise_like, on_one_thread, small_features

Classify = Callable[..., Path]
FAST = ("--epochs", "4", "--learning-rate", "0.01", "--seeds", "2", "--hidden-dim", "16", "--no-refit")


def of_encoder(features: FeatureSet, name: str, **changes: object) -> FeatureSet:
    """The features as if a HEAR module of this name had made them."""
    meta = {
        "dataset": "esc50",
        "kind": "hear",
        "encoder": f"hear:{name}.py",
        "checkpoint": f"sha256:{name}",
        "release": "plug-in",
        "layer": "scene",
        "pool": "",
        "parameters": 12_345_678,
    }
    return replace(features, meta={**meta, **changes})


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every classification is kept, since many tests want the same one."""
    return tmp_path_factory.mktemp("classified")


@pytest.fixture
def classify(tmp_path: Path, classified: Path, no_figures: None) -> Classify:
    """Classify features into the folder of their name; returns the folder of all results."""

    def run(features: FeatureSet, name: str, *flags: str) -> Path:
        path = tmp_path / f"{name}.pt"
        features.save(path)
        key = hashlib.sha256(path.read_bytes() + repr((name, flags)).encode()).hexdigest()
        kept = classified / key / name
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            features_path, made = shutil.copy(path, kept.parent), kept.with_name("unfinished")
            with on_one_thread():
                classify_main(
                    TASK, ["--features", features_path, "--output-dir", str(made), *FAST, *flags, "--overwrite"]
                )
            made.rename(kept)
        shutil.copytree(kept, tmp_path / "results" / name)
        return tmp_path / "results"

    return run


def compared(folder: Path) -> EncodersRecord:
    record = compare_encoders(read_runs(folder), folder)
    assert record is not None
    return record


def leaders(record: EncodersRecord, head: str) -> set[str]:
    return {score.encoder for score in record.scores if score.head == head and score.leads}


def cost(record: EncodersRecord, encoder: str) -> EncoderCost:
    return next(cost for cost in record.encoders if cost.encoder == encoder)


def good(groups: bool = True) -> FeatureSet:
    """Features that are easy to tell apart, in pairs of related clips."""
    features = small_features(folds=5, per_fold=6)
    centres = torch.from_numpy(np.random.default_rng(0).standard_normal((4, features.features.shape[1]))).float()
    features = replace(features, features=features.features + 3 * centres[features.labels])
    names = [f"source{row // 2}" for row in range(len(features))]
    return replace(features, groups=names if groups else None)


def test_a_better_encoder_is_found_and_noise_is_not_first(classify: Classify) -> None:
    features = good()
    classify(of_encoder(features, "good"), "good")
    folder = classify(of_encoder(noise_like(features, 1), "noise"), "noise")
    record = compared(folder)
    (task,) = record.tasks
    assert (task.task, task.units, task.n_units) == ("esc50", "groups", 60)
    assert [known.encoder for known in record.encoders] == ["hear:good.py", "hear:noise.py"]
    for head in ("linear", "three_layer"):
        (pair,) = (pair for pair in record.pairs if pair.head == head)
        first, second = (heads[head] for heads in record.heads_of(task).values())
        assert pair.difference == pytest.approx(first.score - second.score)
        assert pair.interval is not None and 0 < pair.interval[0] < pair.difference < pair.interval[1]
        assert pair.p_value == pytest.approx(1e-4) and pair.holm_p_value == pytest.approx(2e-4)
        assert leaders(record, head) == {"hear:good.py"}
        assert cost(record, "hear:good.py").mean_rank[head] == 1
    assert "*" in encoder_table(record, "linear")[1][4] and "*" not in encoder_table(record, "linear")[2][4]
    assert encoder_table(record, "linear")[1][1:4] == ["12.3 M", "24", "-"]
    assert "hear:good.py" in pair_table(record, record.pairs)[1]


def verdicts(task: TaskAnswer) -> dict[str, str]:
    return {bar.name: bar.verdict for bar in task.bars}


def test_the_answer_names_the_best_and_what_it_cannot_be_told_from(classify: Classify) -> None:
    features = good()
    for name, other in (("good", features), ("equal", features), ("noise", noise_like(features, 1))):
        folder = classify(of_encoder(other, name), name)
    runs = read_runs(folder)
    (only,) = answer(runs, compared(folder))
    assert only.best.run.encoder in ("hear:good.py", "hear:equal.py")
    other = ({"hear:good.py", "hear:equal.py"} - {only.best.run.encoder}).pop()
    assert only.title == "ESC-50 (120 of 2,000 clips)"
    assert replace(only, best=replace(only.best, is_sample=False, whole=None)).title == "ESC-50"  # own sounds
    first, *others = only.bars
    assert (first.verdict, first.scored.score) == ("highest score", only.best.best.score)
    assert (
        verdicts(only)[other] == "not significantly worse" and verdicts(only)["hear:noise.py"] == "significantly worse"
    )
    assert [bar.scored.score for bar in others] == sorted((bar.scored.score for bar in others), reverse=True)
    words = " ".join(answer_words([only]))
    assert words == f"Highest score: {only.best.run.encoder}. No encoder is significantly better than all others."
    # Without the comparison, nothing is claimed of other encoders.
    (alone,) = answer(runs, None)
    assert {verdicts(alone)[name] for name in (other, "hear:noise.py")} == {"not tested"}
    few = replace(only, can_tell=False)
    assert "significantly better than all others; too few to tell: 60 groups." in answer_words([few])[-1]


def test_controls_of_the_run_itself_count(classify: Classify, tmp_path: Path) -> None:
    features = good()
    control = replace(noise_like(features, 2), meta={"dataset": "esc50", **logmel_provenance()})
    path = tmp_path / "logmel.pt"
    control.save(path)
    untrained = replace(
        noise_like(features, 3),
        meta={"dataset": "esc50", "kind": "untrained", "checkpoint": "random:0", "release": "untrained"},
    )
    untrained.save(tmp_path / "random.pt")
    folder = classify(
        of_encoder(features, "good"), "good", "--control-features", str(path), str(tmp_path / "random.pt")
    )
    (only,) = answer(read_runs(folder), None)
    (run,) = read_runs(folder)
    head = only.best.protocol.best_head
    scored = {bar.name: bar.scored for bar in only.bars}
    assert scored["log-mel statistics"] == run.record.protocols["official"].controls["logmel"][head]
    names = ("log-mel statistics", "untrained AudioSep (random:0)")
    assert {verdicts(only)[name] for name in names} == {"significantly worse"}
    words = " ".join(answer_words([only]))
    assert "Significantly better than log-mel statistics. Significantly better than an untrained encoder." in words


def test_a_random_division_and_a_sample_are_marked(classify: Classify) -> None:
    folder = classify(of_encoder(good(), "good"), "good", "--protocol", "random")
    (only,) = answer(read_runs(folder), None)
    assert only.title == "ESC-50 (120 of 2,000 clips) (random division)"
    # Fewer clips do not take the place of more.
    few = good()
    classify(of_encoder(few.subset(np.arange(60)), "few"), "few", "--protocol", "random")
    (only,) = answer(read_runs(folder), None)
    assert only.best.run.record.features.clips == 120


def test_equal_encoders_are_both_first(classify: Classify) -> None:
    features = good()
    classify(of_encoder(features, "one"), "one")
    folder = classify(of_encoder(features, "other"), "other")
    record = compared(folder)
    assert all(pair.difference == 0 and pair.p_value == 1 for pair in record.pairs)
    assert all(pair.interval[0] < 0 < pair.interval[1] for pair in record.pairs)
    assert leaders(record, "linear") == {"hear:one.py", "hear:other.py"}
    assert {known.mean_rank["linear"] for known in record.encoders} == {1.5}


def test_the_order_of_the_clips_in_a_file_does_not_matter(classify: Classify) -> None:
    features = good()
    classify(of_encoder(features, "one"), "one")
    order = np.random.default_rng(0).permutation(len(features))
    shuffled = of_encoder(noise_like(features, 1), "shuffled").subset(order)
    record = compared(classify(shuffled, "shuffled"))
    assert record.left_out == [] and len(record.pairs) == 2


@pytest.mark.parametrize(
    ("what", "flags", "reason"),
    [
        ("recipe", ("--epochs", "5"), "recipe not as in"),
        ("clips", (), "clips not as in"),
        ("name", (), "hear:good.py is already there from"),
    ],
)
def test_what_may_not_be_compared_is_named(what: str, flags: tuple[str, ...], reason: str, classify: Classify) -> None:
    features = good()
    classify(of_encoder(features, "good"), "good")
    classify(of_encoder(noise_like(features, 1), "second"), "second")
    other = features if what != "clips" else features.subset(np.arange(2, len(features)))
    folder = classify(of_encoder(other, "good" if what == "name" else "third"), "third", *flags)
    record = compared(folder)
    assert len(record.scores) == 2 * 2
    (left_out,) = record.left_out
    assert str(folder / "third") in left_out and reason in left_out
    assert any("Not compared" in line for line in reading_notes(record))


def test_too_few_groups_give_no_interval_no_rank_and_no_star(classify: Classify) -> None:
    features = replace(good(), groups=["all"] * 120)
    classify(of_encoder(features, "good"), "good")
    record = compared(classify(of_encoder(noise_like(features, 1), "noise"), "noise"))
    assert all(pair.interval is None and pair.p_value is None for pair in record.pairs)
    assert leaders(record, "linear") == set()
    assert any("ESC-50 (1)" in line for line in reading_notes(record))


def test_the_comparison_is_written_with_its_costs(
    classify: Classify, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    classify(of_encoder(good(groups=False), "good"), "good")
    folder = classify(
        replace(of_encoder(noise_like(good(), 1), "x"), groups=None, meta={"dataset": "esc50", **logmel_provenance()}),
        "logmel",
    )
    (folder / "encoders").mkdir()
    measured = check_encoder(LogMelStatistics())
    (folder / "encoders" / "logmel.json").write_text(measured.model_dump_json())
    monkeypatch.setattr("sys.argv", ["summary.py", "--results", str(folder)])
    summary.main()
    printed = capsys.readouterr().out
    assert "log-mel statistics" in printed and "corrected for" in printed
    record = EncodersRecord.model_validate_json((folder / "encoders.json").read_bytes())
    assert cost(record, "log-mel statistics").speed == measured.speed
    assert cost(record, "hear:good.py").speed is None
    text = (folder / "encoders.md").read_text()
    assert "We report the accuracy" in text and "seeds" in text and "official folds 1-5" in text
    assert "Which clips are related is unknown in ESC-50" in text
    tex = (folder / "encoders.tex").read_text()
    assert tex.count(r"\begin{tabular}") == 2 and r"95 \%" in tex
    assert (folder / "encoders.png").read_bytes().startswith(b"\x89PNG")
    assert len((folder / "encoders.csv").read_text().splitlines()) == 3
    # A measurement of other weights says nothing.
    other = json.loads(measured.model_dump_json()) | {"checkpoint": "other"}
    (folder / "encoders" / "logmel.json").write_text(CheckRecord.model_validate(other).model_dump_json())
    assert cost(compared(folder), "log-mel statistics").speed is None


def logmel_provenance() -> dict[str, object]:
    info = LogMelStatistics.info
    return {
        "kind": info.kind.value,
        "encoder": info.encoder,
        "checkpoint": info.checkpoint,
        "release": info.release,
        "parameters": 0,
    }


def test_missing_predictions_are_named(classify: Classify) -> None:
    classify(of_encoder(good(), "good"), "good")
    folder = classify(of_encoder(noise_like(good(), 1), "noise"), "noise")
    (folder / "noise" / "predictions.pt").unlink()
    with pytest.raises(FeatureFileError, match=r"predictions.pt is missing; classify again"):
        compared(folder)


def test_holm_correction_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_false_alarms_of_pairs_stay_below_the_level(classify: Classify) -> None:
    """Five encoders that are all noise: after the correction, none differs from another."""
    features = good()
    for seed in range(5):
        folder = classify(of_encoder(noise_like(features, seed), f"noise{seed}"), f"noise{seed}")
    record = compared(folder)
    assert len(record.pairs) == 20
    assert not any(pair.holm_p_value < LEVEL for pair in record.pairs)


def test_the_method_names_what_differs_between_tasks(classify: Classify) -> None:
    (run,) = read_runs(classify(of_encoder(good(), "good"), "good"))
    config = run.record.config.model_copy(update={"recipe": "tuned"})
    other = replace(run, study=STUDIES["icbhi"], record=run.record.model_copy(update={"config": config}))
    assert "the paper recipe (linear: 4 epochs" in method_of([run], 2)
    words = method_of([run, other], 2)
    assert "(for ESC-50); or with the tuned recipe" in words and f"(for {STUDIES['icbhi'].task.title})" in words
    assert words.count("2 seeds") == 2
