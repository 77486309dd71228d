"""Scores, the record of a run and its pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.files import OutputError
from common.metrics import confusion_matrix, scores
from common.plots import plot_confusion
from common.results import earlier_record, head_record, run_record, save_record

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
    assert scores(labels, predictions, 2) == pytest.approx({"accuracy": 0.75, "macro_f1": (0.8 + 2 / 3) / 2})
    # A class that neither occurs nor is predicted counts with F1 0: the mean is over all classes.
    assert scores(labels, predictions, 3)["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 3)
    assert confusion_matrix(labels, predictions, 3).tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]


def record() -> dict:
    predictions = [("fold 1", 4, np.array([0, 1, 1])), ("fold 2", 3, np.array([0, 0, 1, 1]))]
    head = head_record(predictions, np.array([0, 1, 0, 0, 1, 1, 1]), 2)
    return run_record("esc50", "official folds 1, 2", CONFIG, {"sha256": "abc", "clips": 7}, {"linear": head}, head, [])


def test_a_heads_record() -> None:
    head = record()["heads"]["linear"]
    assert [row["accuracy"] for row in head["splits"]] == pytest.approx([2 / 3, 3 / 4])
    assert [(row["n_train"], row["n_test"]) for row in head["splits"]] == [(4, 3), (3, 4)]
    assert head["mean"]["accuracy"] == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert head["std"]["accuracy"] == pytest.approx((3 / 4 - 2 / 3) / 2)
    assert head["confusion"] == [[2, 1], [1, 3]]


def test_files_hold_what_the_record_holds(tmp_path: Path) -> None:
    save_record(record(), tmp_path)
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["config"] == CONFIG
    assert {"python", "torch", "scikit-learn"} <= set(saved["versions"])
    table = pd.read_csv(tmp_path / "result.csv")
    assert list(table.columns) == ["head", "split", "seed", "n_train", "n_test", "accuracy", "macro_f1"]
    table = table[table["head"] == "linear"]
    assert table.accuracy.tolist() == pytest.approx([row["accuracy"] for row in saved["heads"]["linear"]["splits"]])


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


@pytest.mark.parametrize("n_classes", [2, 50])
def test_confusion_pictures(n_classes: int, tmp_path: Path) -> None:
    confusion = np.random.default_rng(0).integers(0, 9, (n_classes, n_classes))
    confusion[0] = 0  # a class that never occurs
    names = [f"class_{number}" for number in range(n_classes)]
    plot_confusion(confusion, names, "a title", tmp_path / "confusion.png")
    content = (tmp_path / "confusion.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000
