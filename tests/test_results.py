"""Scores, the record of a run, its predictions, tables and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import made_up_features
from matplotlib.image import imread

from common.evaluation.metrics import confusion_matrix, per_class, scores
from common.evaluation.plots import plot_confusion, plot_curves, plot_label_efficiency, plot_per_class
from common.evaluation.record import (
    Outcome,
    comparison_record,
    earlier_record,
    head_record,
    run_record,
    save_predictions,
    save_record,
)
from common.evaluation.tables import as_markdown, as_text, score_table
from common.features import FeatureSet
from common.files import OutputError

CONFIG = {
    "batch_size": 8,
    "learning_rate": 1e-3,
    "epochs": 2,
    "hidden_dim": 256,
    "feature_dim": 384,
    "train_test_split": 0.2,
    "random_seed": 42,
    "device": "cpu",
}


def test_scores_by_hand() -> None:
    labels, predictions = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    scored = scores(labels, predictions, 2)
    assert scored == pytest.approx(
        {"accuracy": 0.75, "balanced_accuracy": (2 / 3 + 1) / 2, "macro_f1": (0.8 + 2 / 3) / 2}
    )
    # A class that neither occurs nor is predicted counts with F1 0: the mean is over all classes.
    assert scores(labels, predictions, 3)["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 3)
    assert confusion_matrix(labels, predictions, 3).tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    columns = per_class(labels, predictions, 3)
    assert columns["recall"] == pytest.approx([2 / 3, 1, 0])
    assert columns["precision"] == pytest.approx([1, 0.5, 0])
    assert columns["clips"] == [3, 1, 0]


def test_the_best_five_count_from_thirty_classes_on() -> None:
    labels = np.arange(30)
    logits = np.eye(30)
    logits[:6, 10:16] += np.arange(2, 8)  # of the first six, the true class is the seventh best
    predictions = logits.argmax(axis=1)
    assert scores(labels, predictions, 30, logits)["top5_accuracy"] == pytest.approx(24 / 30)
    assert "top5_accuracy" not in scores(labels[:29], predictions[:29], 29, logits[:29, :29])


def outcomes_of(features: FeatureSet, n_seeds: int, error: float, seed: int = 0) -> list[Outcome]:
    """Predictions of every fold by every seed, wrong for a share of the clips."""
    rng, folds, labels = np.random.default_rng(seed), features.folds.numpy(), features.labels.numpy()
    outcomes = []
    for number in range(n_seeds):
        for fold in np.unique(folds):
            rows = np.flatnonzero(folds == fold)
            said = np.where(rng.uniform(size=len(rows)) < error, (labels[rows] + 1) % 4, labels[rows])
            logits = np.eye(4, dtype=np.float32)[said]
            facts = {"epoch": 2, "train_loss": [1.0, 0.5], "valid_accuracy": [0.2, 0.3]}
            outcomes.append(Outcome(42 + number, f"fold {fold}", 48, rows, said, logits, facts))
    return outcomes


def test_spreads_over_folds_and_seeds_are_kept_apart() -> None:
    features = made_up_features()
    outcomes = outcomes_of(features, 4, 0.3)
    record = head_record(outcomes, features)
    table = pd.DataFrame(record["splits"])
    assert record["mean"]["accuracy"] == pytest.approx(table.accuracy.mean())
    by_fold, by_seed = (table.groupby(key).accuracy.mean() for key in ("split", "seed"))
    assert record["std_over_folds"]["accuracy"] == pytest.approx(by_fold.std(ddof=0))
    assert record["std_over_seeds"]["accuracy"] == pytest.approx(by_seed.std(ddof=0))
    low, high = record["interval"]
    assert low < record["mean"]["accuracy"] < high
    assert np.array(record["confusion"]).sum() == 4 * len(features)
    assert head_record(outcomes_of(features, 1, 0.3), features)["std_over_seeds"] is None
    one_fold = [outcome for outcome in outcomes if outcome.split == "fold 1"]
    assert head_record(one_fold, features)["std_over_folds"] is None


def test_two_heads_on_the_same_clips_are_compared() -> None:
    features = made_up_features(per_fold=20)
    worse, better = outcomes_of(features, 2, 0.5), outcomes_of(features, 2, 0.1, seed=1)
    compared = comparison_record(worse, better, features)
    accuracies = [head_record(each, features)["mean"]["accuracy"] for each in (worse, better)]
    assert compared["difference"] == pytest.approx(accuracies[1] - accuracies[0])
    assert compared["interval"][0] > 0
    assert compared["p_value"] < 0.001
    same = comparison_record(worse, worse, features)
    assert same["difference"] == 0
    assert same["p_value"] > 0.9


def record(features: FeatureSet | None = None) -> dict:
    features = features or made_up_features()
    head = head_record(outcomes_of(features, 2, 0.3), features)
    protocol = {
        "heads": {"linear": head, "three_layer": head},
        "probes": {},
        "controls": {"shuffled_labels, linear": head},
        "majority_class": head,
    }
    return run_record("esc50", CONFIG, {"sha256": "abc", "clips": 7}, {"official": protocol}, [])


def test_files_hold_what_the_record_holds(tmp_path: Path) -> None:
    save_record(record(), tmp_path)
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["config"] == CONFIG
    assert {"python", "torch", "scikit-learn"} <= set(saved["versions"])
    table = pd.read_csv(tmp_path / "result.csv")
    assert table.columns.tolist()[:6] == ["protocol", "head", "split", "seed", "n_train", "n_test"]
    assert {"accuracy", "balanced_accuracy", "macro_f1", "epoch"} <= set(table.columns)
    assert set(table["head"]) == {"linear", "three_layer", "shuffled_labels, linear", "majority_class"}
    table = table[table["head"] == "linear"]
    rows = saved["protocols"]["official"]["heads"]["linear"]["splits"]
    assert len(table) == 6
    assert table.accuracy.tolist() == pytest.approx([row["accuracy"] for row in rows])


def test_every_score_can_be_computed_from_the_predictions(tmp_path: Path) -> None:
    features = made_up_features()
    features.groups = [f"source{row // 2}" for row in range(len(features))]
    outcomes = {"linear": outcomes_of(features, 2, 0.3), "three_layer": outcomes_of(features, 2, 0.2, seed=1)}
    assert save_predictions(outcomes, features, tmp_path, "random_") == [
        "random_predictions.csv",
        "random_predictions.pt",
    ]
    table = pd.read_csv(tmp_path / "random_predictions.csv")
    for head, each in outcomes.items():
        hits = table[head] == table.class_name
        expected = head_record(each, features)
        assert hits.groupby([table.seed, table.split]).mean().mean() == pytest.approx(expected["mean"]["accuracy"])
    assert table.group.tolist() == [features.groups[features.clip_ids.index(name)] for name in table.clip_id]
    saved = torch.load(tmp_path / "random_predictions.pt", weights_only=True)
    hits = saved["logits"]["three_layer"].argmax(dim=1) == saved["labels"]
    assert [features.clip_ids[row] for row in saved["rows"]] == table.clip_id.tolist()
    assert hits.tolist() == (table.three_layer == table.class_name).tolist()


def test_an_earlier_record_stands_for_an_equal_run_only(tmp_path: Path) -> None:
    assert earlier_record(tmp_path, "esc50", CONFIG, "abc") is None
    save_record({**record(), "files": ["head.pt"]}, tmp_path)
    assert earlier_record(tmp_path, "esc50", CONFIG, "abc") is None  # without its head it is no finished run
    (tmp_path / "head.pt").touch()
    assert earlier_record(tmp_path, "esc50", CONFIG, "abc")["task"] == "esc50"
    with pytest.raises(OutputError, match="epochs was 2, now 3"):
        earlier_record(tmp_path, "esc50", {**CONFIG, "epochs": 3}, "abc")
    assert earlier_record(tmp_path, "esc50", {**CONFIG, "epochs": 3}, "abc", overwrite=True) is None
    with pytest.raises(OutputError, match="features was abc, now def"):
        earlier_record(tmp_path, "esc50", CONFIG, "def")
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(OutputError, match="not a record"):
        earlier_record(tmp_path, "esc50", CONFIG, "abc")


def test_the_table_is_aligned_and_narrow() -> None:
    table = score_table(record()["protocols"]["official"])
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
    ends = {line.rindex(cell[-1]) + len(cell[-1]) for line, cell in zip(lines, table, strict=True)}
    assert len(ends) == 1  # the last column ends in one place
    markdown = as_markdown(table).splitlines()
    assert markdown[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert len({line.count("|") for line in markdown}) == 1


@pytest.mark.parametrize("n_classes", [2, 50, 251])
def test_pictures(n_classes: int, tmp_path: Path) -> None:
    confusion = np.random.default_rng(0).integers(0, 9, (n_classes, n_classes))
    confusion[0] = 0  # a class that never occurs
    names = [f"class_{number}" for number in range(n_classes)]
    columns = {"f1": np.linspace(0, 1, n_classes).tolist(), "clips": [8] * n_classes}
    plot_confusion(confusion, names, "a title", tmp_path / "confusion.png")
    plot_per_class(columns, names, "a title", tmp_path / "per_class.png")
    height, width, _ = imread(tmp_path / "confusion.png").shape
    assert 500 < height < 5000
    assert 500 < width < 5000
    # A label of 251 needs its seven pixels at least.
    assert height / n_classes > 12
    assert imread(tmp_path / "per_class.png").shape[0] < 2500


@pytest.mark.parametrize("n_fits", [1, 3])
@pytest.mark.parametrize("n_valid", [0, 5])
def test_curves(n_fits: int, n_valid: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fits = [
        {"train_loss": rng.uniform(size=5).tolist(), "valid_accuracy": rng.uniform(size=n_valid).tolist(), "epoch": 3}
        for _ in range(n_fits)
    ]
    plot_curves(fits, "a title", tmp_path / "curves.png")
    points = [
        {"head": head, "n_train": n, "mean": {"accuracy": 0.5}, "interval": [0.4, 0.6] if n > 10 else None}
        for head in ("linear", "three_layer")
        for n in (10, 100)
    ]
    plot_label_efficiency(points, "a title", tmp_path / "labels.png")
    for name in ("curves", "labels"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
