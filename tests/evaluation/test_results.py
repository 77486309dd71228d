"""Scores, the record of a run, its predictions, tables and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from common.arrays import Array
from common.datasets import DivisionKind
from common.evaluation import plots
from common.evaluation.load_features import FeaturesRecord
from common.evaluation.outcomes import Outcome
from common.evaluation.plots import FEW, MANY, plot_confusion, plot_curves, plot_learning_curves, plot_per_class
from common.evaluation.predictions import Predictions, save_predictions
from common.evaluation.record import (
    ConfigRecord,
    FewShotRecord,
    ProtocolIdentity,
    ProtocolRecord,
    RecordError,
    RunRecord,
)
from common.evaluation.results import earlier_record, remove_record, save_record
from common.evaluation.scores import compare_heads, judge, per_class, score_head, scores
from common.evaluation.text import remarks, score_table
from common.features import FeatureFileError, FeatureSet
from common.files import OutputError, sha256_of
from common.heads import HeadKind
from common.text_table import as_markdown, as_text
from esc50_feature_fc.esc50 import TASK
from icbhi_feature_fc.icbhi import scores as icbhi_scores
from tests.support.heads import fit_config, small_features

CONFIG = ConfigRecord.of(fit_config(epochs=2), {}, {})


def test_scores_by_hand() -> None:
    labels, predictions = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    scored = scores(labels, predictions, 2)
    assert scored == pytest.approx(
        {"accuracy": 0.75, "balanced_accuracy": (2 / 3 + 1) / 2, "macro_f1": (0.8 + 2 / 3) / 2}
    )
    # A class that neither occurs nor is predicted counts with F1 0: the mean is over all classes.
    assert scores(labels, predictions, 3)["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 3)
    columns = per_class(labels, predictions, 3)
    assert columns.recall == pytest.approx([2 / 3, 1, 0])
    assert columns.precision == pytest.approx([1, 0.5, 0])
    assert columns.clips == [3, 1, 0]


@pytest.mark.filterwarnings("ignore:The number of unique classes")
def test_the_best_five_count_from_thirty_classes_on() -> None:
    labels = np.arange(30)
    logits = np.eye(30)
    logits[:6, 10:16] += np.arange(2, 8)  # of the first six, the true class is the seventh best
    predictions = logits.argmax(axis=1)
    assert scores(labels, predictions, 30, logits)["top5_accuracy"] == pytest.approx(24 / 30)
    assert "top5_accuracy" not in scores(labels[:29], predictions[:29], 29, logits[:29, :29])


def outcomes_of(features: FeatureSet, n_seeds: int, error: float, seed: int = 0) -> list[Outcome]:
    """Predictions of every fold by every seed, wrong for a share of the clips."""
    assert features.folds is not None
    rng, folds, labels = np.random.default_rng(seed), features.folds.numpy(), features.labels.numpy()
    names = ("best_test_accuracy_over_epochs", "train_loss", "valid_accuracy", "test_accuracy_over_epochs")
    facts = {"epoch": 2, **dict(zip(names, (0.4, [1.0, 0.5], [0.2, 0.3], [0.4, 0.3]), strict=True))}
    outcomes = []
    for number in range(n_seeds):
        for fold in np.unique(folds):
            rows = np.flatnonzero(folds == fold)
            predictions = np.where(rng.uniform(size=len(rows)) < error, (labels[rows] + 1) % 4, labels[rows])
            logits = np.eye(4, dtype=np.float32)[predictions]
            outcomes.append(Outcome(42 + number, f"fold {fold}", 48, rows, predictions, logits, facts))
    return outcomes


def test_spreads_over_folds_and_seeds_are_kept_apart() -> None:
    features = small_features()
    outcomes = outcomes_of(features, 4, 0.3)
    scored = score_head(outcomes, features)
    table = pd.DataFrame([fit.model_dump() for fit in scored.splits])
    assert scored.score == pytest.approx(table.accuracy.mean())
    by_fold, by_seed = (table.groupby(key).accuracy.mean() for key in ("split", "seed"))
    assert scored.std_over_folds is not None
    assert scored.std_over_folds["accuracy"] == pytest.approx(by_fold.std())
    assert scored.std_over_seeds is not None
    assert scored.std_over_seeds["accuracy"] == pytest.approx(by_seed.std())
    assert scored.interval is not None
    assert scored.interval[0] < scored.score < scored.interval[1]
    assert np.array(scored.confusion).sum() == 4 * len(features)
    assert sum(scored.per_class.clips) == len(features)
    assert score_head(outcomes_of(features, 1, 0.3), features).std_over_seeds is None
    one_fold = [outcome for outcome in outcomes if outcome.split == "fold 1"]
    assert score_head(one_fold, features).std_over_folds is None


def test_two_heads_on_the_same_clips_are_compared() -> None:
    features = small_features(per_fold=20)
    worse, better = outcomes_of(features, 2, 0.5), outcomes_of(features, 2, 0.1, seed=1)
    compared = compare_heads(worse, better, features)
    accuracies = [score_head(outcomes, features).score for outcomes in (worse, better)]
    assert compared.difference == pytest.approx(accuracies[1] - accuracies[0])
    assert compared.interval is not None
    assert compared.interval[0] > 0
    assert compared.p_value is not None
    assert compared.p_value < 0.001
    assert compared.units == "clips"
    # Every fold counts alike, whatever its size.
    uneven = features.subset(np.arange(20, len(features)))
    worse, better = outcomes_of(uneven, 2, 0.5), outcomes_of(uneven, 2, 0.1, seed=1)
    accuracies = [score_head(outcomes, uneven).score for outcomes in (worse, better)]
    assert compare_heads(worse, better, uneven).difference == pytest.approx(accuracies[1] - accuracies[0])
    same = compare_heads(worse, worse, uneven)
    assert same.difference == 0
    assert same.p_value is not None
    assert same.p_value > 0.9


@pytest.fixture(scope="module")
def record() -> RunRecord:
    """A run whose heads, control and majority class all have the same scores."""
    features = small_features()
    outcomes = outcomes_of(features, 2, 0.3)
    # With an undefined score of the task.
    scored = score_head(outcomes, features, lambda labels, predictions, class_names: {"undefined": math.nan})
    protocol = ProtocolRecord(
        kind=DivisionKind.OFFICIAL,
        division="official folds 1-3",
        identity=ProtocolIdentity(version=1, dataset="esc50", clips="c", division="d", recipe="r", seeds=[42, 43]),
        validation="one of the training folds",
        chooses_epoch=True,
        refit=True,
        seeds=[42, 43],
        related_test_clips=None,
        heads={"linear": scored, "three_layer": scored},
        majority_class=scored,
        comparison=compare_heads(outcomes, outcomes, features),
        shuffled_labels={"linear": scored},
    )
    source = FeaturesRecord(file="features.pt", sha256="abc", clips=7, width=6, class_names=["a", "b", "c", "d"])
    return RunRecord(
        task=TASK.name,
        config=CONFIG,
        features=source,
        protocols={"official": protocol},
        files=[],
        command=["classify.py"],
        created="2026-01-01T00:00:00+00:00",
        versions={"torch": "2.0"},
    )


def test_files_hold_what_the_record_holds(record: RunRecord, tmp_path: Path) -> None:
    save_record(record, tmp_path)
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["config"] == json.loads(CONFIG.model_dump_json())
    assert saved["config"]["epochs"] == saved["config"]["recipe_linear"]["epochs"] == 2
    table = pd.read_csv(tmp_path / "result.csv")
    assert table.columns.tolist()[:6] == ["protocol", "head", "split", "seed", "n_train", "n_test"]
    assert {"accuracy", "balanced_accuracy", "macro_f1", "epoch"} <= set(table.columns)
    assert set(table["head"]) == {"linear", "three_layer", "shuffled_labels, linear", "majority_class"}
    table = table[table["head"] == "linear"]
    rows = saved["protocols"]["official"]["heads"]["linear"]["splits"]
    assert len(table) == 6
    assert table.accuracy.tolist() == pytest.approx([row["accuracy"] for row in rows])


def test_a_record_comes_back_whole(record: RunRecord, tmp_path: Path) -> None:
    save_record(record, tmp_path)
    loaded = RunRecord.load(tmp_path / "result.json")
    assert loaded.model_dump_json() == record.model_dump_json()
    assert loaded.config == record.config


def test_a_score_that_is_not_defined_is_null_in_the_file_and_nan_in_the_record(
    record: RunRecord, tmp_path: Path
) -> None:
    save_record(record, tmp_path)
    head = json.loads((tmp_path / "result.json").read_text())["protocols"]["official"]["heads"]["linear"]
    assert head["mean"]["undefined"] is None
    assert [fit["undefined"] for fit in head["splits"]] == [None] * 6
    loaded = RunRecord.load(tmp_path / "result.json").protocols["official"].heads["linear"]
    assert math.isnan(loaded.mean["undefined"])
    assert all(math.isnan(fit.scores["undefined"]) for fit in loaded.splits)


@pytest.mark.parametrize("content", ["{}", "[]", "not JSON", '{"task": "esc50"}', ""])
def test_a_file_that_is_not_a_record_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(RecordError, match=r"result\.json is not a record of this project \(.+\)") as error:
        RunRecord.load(tmp_path / "result.json")
    assert "\n" not in str(error.value)


def test_every_score_can_be_computed_from_the_predictions(tmp_path: Path) -> None:
    features = small_features()
    groups = [f"source{row // 2}" for row in range(len(features))]
    features = replace(features, groups=groups)
    outcomes: dict[HeadKind, list[Outcome]] = {
        "linear": outcomes_of(features, 2, 0.3),
        "three_layer": outcomes_of(features, 2, 0.2, seed=1),
    }
    assert save_predictions(outcomes, features, tmp_path, "random_") == [
        "random_predictions.csv",
        "random_predictions.pt",
    ]
    table = pd.read_csv(tmp_path / "random_predictions.csv")
    for head, fitted in outcomes.items():
        hits = table[head] == table.class_name
        expected = score_head(fitted, features).score
        assert hits.groupby([table.seed, table.split]).mean().mean() == pytest.approx(expected)
    assert table.group.tolist() == [groups[features.clip_ids.index(name)] for name in table.clip_id]
    saved = torch.load(tmp_path / "random_predictions.pt", weights_only=True)
    hits = saved["logits"]["three_layer"].argmax(dim=1) == saved["labels"]
    assert [features.clip_ids[row] for row in saved["rows"]] == table.clip_id.tolist()
    assert hits.tolist() == (table.three_layer == table.class_name).tolist()


def test_the_predictions_of_one_seed_are_read_again(tmp_path: Path) -> None:
    features = small_features()
    outcomes: dict[HeadKind, list[Outcome]] = {"linear": outcomes_of(features, 2, 0.3)}
    save_predictions(outcomes, features, tmp_path, "")
    path = tmp_path / "predictions.pt"
    read = Predictions.read(path, sha256_of(path))
    (hits,) = read.judged("clips").values()
    assert hits.minus(judge(outcomes["linear"], features)).difference == 0  # type: ignore[arg-type]  # both are hits
    table = read.table
    table = table[table["seed"] == 43]
    predicted = dict(zip(table["clip_id"], table["linear"], strict=True))
    expected = {
        features.clip_ids[row]: features.class_names[label]
        for outcome in outcomes["linear"]
        if outcome.seed == 43
        for row, label in zip(outcome.rows, outcome.predictions, strict=True)
    }
    assert predicted == expected
    assert set(predicted) == set(features.clip_ids)
    with pytest.raises(FeatureFileError, match=r"nowhere\.pt is missing; classify again"):
        Predictions.read(tmp_path / "nowhere.pt", None)
    with pytest.raises(FeatureFileError, match=r"predictions\.pt is damaged \(not what was written\)"):
        Predictions.read(path, "another checksum")


def test_an_earlier_record_counts_for_an_equal_run_only(record: RunRecord, tmp_path: Path) -> None:
    assert earlier_record(tmp_path, TASK, CONFIG, "abc") is None
    save_record(record.model_copy(update={"files": ["head.pt"]}), tmp_path)
    assert earlier_record(tmp_path, TASK, CONFIG, "abc") is None  # without its head it is no finished run
    (tmp_path / "head.pt").touch()
    earlier = earlier_record(tmp_path, TASK, CONFIG, "abc")
    assert earlier is not None
    assert earlier.task == "esc50"
    longer = ConfigRecord.of(fit_config(epochs=3), {}, {})
    with pytest.raises(OutputError, match="epochs was 2, now 3"):
        earlier_record(tmp_path, TASK, longer, "abc")
    assert earlier_record(tmp_path, TASK, longer, "abc", overwrite=True) is None
    with pytest.raises(OutputError, match="features was abc, now def"):
        earlier_record(tmp_path, TASK, CONFIG, "def")
    # Where the files are does not make it another run.
    moved = ConfigRecord.of(fit_config(epochs=2, output_dir=tmp_path, markdown=True), {}, {})
    assert earlier_record(tmp_path, TASK, moved, "abc") is not None
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(OutputError, match="not a record"):
        earlier_record(tmp_path, TASK, CONFIG, "abc")
    assert earlier_record(tmp_path, TASK, CONFIG, "abc", overwrite=True) is None


def test_removing_a_record_removes_its_files_and_nothing_outside_its_folder(record: RunRecord, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    save_record(record.model_copy(update={"files": ["head.pt", "../outside.pt"]}), folder)
    for path in (folder / "head.pt", folder / "result.md", folder / "notes.txt", tmp_path / "outside.pt"):
        path.touch()
    remove_record(folder)
    assert {path.name for path in folder.iterdir()} == {"notes.txt", "result.csv"}
    assert (tmp_path / "outside.pt").exists()
    remove_record(folder)  # removed already


def test_the_table_is_aligned_and_narrow(record: RunRecord) -> None:
    table = score_table(record.protocols["official"])
    assert table[0] == ["head", "accuracy", "95 %", "± folds", "± seeds", "balanced", "macro-F1"]
    lines = as_text(table).splitlines()
    assert [line.split()[0] for line in lines] == [
        "head",
        "linear",
        "three-layer",
        "shuffled,",
        "majority-class",
    ]
    assert max(map(len, lines)) <= 100
    # All columns but the first are aligned to the right.
    for column in range(1, len(table[0])):
        ends = {len(line) for line in as_text([row[: column + 1] for row in table]).splitlines()}
        assert len(ends) == 1
    markdown = as_markdown(table).splitlines()
    assert markdown[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert len({line.count("|") for line in markdown}) == 1


def test_the_remarks_say_what_the_intervals_are_of(record: RunRecord) -> None:
    protocol = record.protocols["official"]
    assert (
        "95 % intervals are over clips (which clips are related is unknown). They leave out how much training itself would vary."
        in remarks(protocol)
    )
    by_groups = protocol.model_copy(update={"comparison": protocol.comparison.model_copy(update={"units": "groups"})})
    assert "95 % intervals are over groups. They leave out how much training itself would vary." in remarks(by_groups)
    heads = {kind: scored.model_copy(update={"interval": None}) for kind, scored in protocol.heads.items()}
    without = remarks(by_groups.model_copy(update={"heads": heads}))
    assert "No 95 % interval: fewer than 5 groups, or a few of them decide the score, in small folds." in without
    assert not any(line.startswith("95 % intervals are") for line in without)


def test_few_groups_give_no_interval() -> None:
    features = small_features()
    for groups, has_interval in ((4, False), (5, True)):
        grouped = replace(features, groups=[f"source{row % groups}" for row in range(len(features))])
        worse, better = outcomes_of(grouped, 2, 0.5), outcomes_of(grouped, 2, 0.1, seed=1)
        scored, compared = score_head(worse, grouped), compare_heads(worse, better, grouped)
        assert compared.units == "groups"
        for interval in (scored.interval, scored.more_intervals["balanced_accuracy"], compared.interval):
            assert (interval is not None) == has_interval


def test_a_tasks_own_score_is_given_the_names_of_the_classes() -> None:
    features = small_features()
    seen = []

    def more_scores(labels: Array, predictions: Array, class_names: Sequence[str]) -> dict[str, float]:
        seen.append(tuple(class_names))
        return icbhi_scores(labels, predictions, class_names)

    scored = score_head(outcomes_of(features, 1, 0.3), features, more_scores)
    assert set(seen) == {tuple(features.class_names)}
    assert "icbhi_score" not in scored.more_intervals  # none of these classes is normal
    features = replace(features, class_names=["crackle", "wheeze", "normal", "both"])
    scored = score_head(outcomes_of(features, 1, 0.3), features, more_scores)
    interval = scored.more_intervals["icbhi_score"]
    assert interval is not None
    assert interval[0] < scored.mean["icbhi_score"] < interval[1]


# Figures


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn in this test; not rendered, since many names take seconds."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def texts_of(labels: Sequence[object]) -> list[str]:
    """What a figure's texts say."""
    return [getattr(label, "get_text", str)() for label in labels]


def confusion_of(n_classes: int) -> tuple[Array, list[str]]:
    """A made-up matrix whose first class never occurs, and names."""
    confusion = np.random.default_rng(0).integers(0, 9, (n_classes, n_classes))
    confusion[np.diag_indices(n_classes)] += np.random.default_rng(1).integers(0, 9 * n_classes, n_classes)
    confusion[0] = 0
    return confusion, [f"class_{number}" for number in range(n_classes)]


@pytest.mark.parametrize("n_classes", [2, FEW, FEW + 1, MANY, MANY + 1, 251])
def test_a_confusion_matrix_shows_shares_of_the_true_class(n_classes: int, drawn: list[Figure]) -> None:
    confusion, names = confusion_of(n_classes)
    plot_confusion(confusion, names, "a title", Path("unused.png"))
    axes = drawn[0].axes[0]
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    shown = [name.replace("_", " ") for name in names]
    order = np.arange(n_classes)
    if n_classes > MANY:  # the best first, on both axes
        order = np.argsort(-np.diag(share), kind="stable")
        assert "best recall first" in axes.get_ylabel()
        assert "best recall first" in axes.get_xlabel()
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert texts_of(labels) == [shown[index] for index in order]
    np.testing.assert_allclose(axes.images[0].get_array(), 100 * share[np.ix_(order, order)])
    for text in axes.texts:
        column, row = (round(place) for place in text.get_position())
        percent, *count = text.get_text().split("\n")
        assert percent == f"{100 * share[order[row], order[column]]:.0f}"
        assert count == ([f"({confusion[row, column]})"] if n_classes <= FEW else [])
    if n_classes <= FEW:  # every number that is not 0
        assert len(axes.texts) == (share >= 0.005).sum()
    # A class's line is as high as its name.
    font = axes.get_yticklabels()[0].get_fontsize()
    assert drawn[0].get_figheight() * 72 / n_classes > font


@pytest.mark.parametrize("what", ["confusion", "per_class", "curves", "few_shots"])
def test_figures_are_png_files(what: str, record: RunRecord, tmp_path: Path) -> None:
    scored = record.protocols["official"].heads["linear"]
    point = FewShotRecord(
        head="linear", shots=2, n_train=8, short_classes=0, draws=[0.4, 0.6], mean=0.5, interval=(0.3, 0.7)
    )
    other = point.model_copy(update={"head": "three_layer"})
    draw: dict[str, Callable[[Path], None]] = {
        "confusion": lambda path: plot_confusion(np.array(scored.confusion), list("abcd"), "a title", path),
        "per_class": lambda path: plot_per_class(scored.per_class, list("abcd"), "a title", path),
        "curves": lambda path: plot_curves(scored.splits, "a title", path),
        "few_shots": lambda path: plot_learning_curves([point, other], "%", "a title", path),
    }
    draw[what](tmp_path / "figure.png")
    pixels = imread(tmp_path / "figure.png")
    assert pixels.ndim == 3
    assert pixels.std() > 0  # something is drawn
