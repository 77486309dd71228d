"""Scores of predictions; the definitions are scikit-learn's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    precision_recall_fscore_support,
    roc_curve,
    top_k_accuracy_score,
)
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from common.arrays import Array

TOP5_CLASSES = 30  # the fewest classes for which top-5 accuracy is informative
NORMAL = "normal"  # the class of ICBHI that is not abnormal
# Scores that are the mean of the accuracies on strata of the clips -> the stratum of each clip, from its label and the
# class names.
STRATA: dict[str, Callable[[Array, Sequence[str]], Array]] = {
    "balanced_accuracy": lambda labels, class_names: labels,
    "icbhi_score": lambda labels, class_names: _is_normal(labels, class_names),
}


def scores(labels: Array, predictions: Array, n_classes: int, logits: Array | None = None) -> dict[str, float]:
    """Scores in [0, 1].

    Returns:
        ``accuracy``; ``balanced_accuracy``, the mean recall of the classes that occur; ``macro_f1``, in which a class
        never predicted has F1 0, and one that never occurs counts too; ``top5_accuracy`` if there are logits
        (N, C) and 30 classes or more.
    """
    _, recall, f1, _ = precision_recall_fscore_support(labels, predictions, labels=range(n_classes), zero_division=0)
    scored = {
        "accuracy": float(accuracy_score(labels, predictions)),
        "balanced_accuracy": float(recall[np.unique(labels)].mean()),
        "macro_f1": float(f1.mean()),
    }
    if logits is not None and n_classes >= TOP5_CLASSES:
        scored["top5_accuracy"] = float(top_k_accuracy_score(labels, logits, k=5, labels=range(n_classes)))
    return scored


def per_class(labels: Array, predictions: Array, n_classes: int) -> dict[str, list[float]]:
    """``precision``, ``recall``, ``f1`` and ``clips`` (of the true class) of every class; 0 where undefined."""
    columns = precision_recall_fscore_support(labels, predictions, labels=range(n_classes), zero_division=0)
    return {name: column.tolist() for name, column in zip(("precision", "recall", "f1", "clips"), columns, strict=True)}


def confusion_matrix(labels: Array, predictions: Array, n_classes: int) -> Array:
    """(C, C) counts; row: true class, column: predicted class."""
    counts: Array = sklearn_confusion_matrix(labels, predictions, labels=range(n_classes))
    return counts


def majority_predictions(train_labels: Array, n_test: int) -> Array:
    """(n_test,) the most frequent class of the training labels: a baseline that every head should reach."""
    return np.full(n_test, np.bincount(train_labels).argmax())


def _is_normal(labels: Array, class_names: Sequence[str]) -> Array:
    """By the class's name: rows without a normal clip have another class in its place."""
    is_normal: Array = np.array([name == NORMAL for name in class_names])[labels]
    return is_normal


def icbhi_scores(labels: Array, predictions: Array, class_names: Sequence[str]) -> dict[str, float]:
    """Sensitivity, specificity and their mean, the ICBHI score; every class but ``"normal"`` is abnormal.

    As the challenge and the field compute them (such as ``get_score`` of https://github.com/raymin0223/patch-mix):
    specificity is the share of normal clips classified as normal; sensitivity is the share of abnormal clips classified
    as exactly their class, so that a crackle classified as a wheeze is a miss. NaN if there is no such clip.
    """
    hits, normal = predictions == labels, _is_normal(labels, class_names)
    specificity = float(hits[normal].mean()) if normal.any() else float("nan")
    sensitivity = float(hits[~normal].mean()) if (~normal).any() else float("nan")
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "icbhi_score": (sensitivity + specificity) / 2,
    }


def equal_error_rate(same: Array, similarity: Array, weights: Array | None = None) -> float:
    """The error rate at the threshold where the false acceptance and false rejection rates are equal.

    Args:
        same: (N,) bool, whether a trial is of one speaker.
        similarity: (N,), higher where the two sides are more alike.
        weights: (N,), how often each trial counts; None: once.
    """
    false_accept, true_accept, _ = roc_curve(same, similarity, sample_weight=weights, drop_intermediate=False)
    gap = (1 - true_accept) - false_accept  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    # Interpolated between the two thresholds where the rates cross.
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(false_accept[after - 1] + share * (false_accept[after] - false_accept[after - 1]))


def min_dcf(same: Array, similarity: Array, p_target: float, weights: Array | None = None) -> float:
    """The least normalised detection cost over all thresholds, misses and false alarms costing 1 each
    (NIST speaker recognition evaluations): 1 is the cost of deciding without the scores.

    Args:
        same, similarity, weights: as for `equal_error_rate`.
        p_target: the assumed share of trials that are of one speaker.
    """
    false_accept, true_accept, _ = roc_curve(same, similarity, sample_weight=weights, drop_intermediate=False)
    cost = p_target * (1 - true_accept) + (1 - p_target) * false_accept
    return float(cost.min() / min(p_target, 1 - p_target))
