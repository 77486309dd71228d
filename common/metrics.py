"""Scores of predictions; the definitions are scikit-learn's."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import accuracy_score, f1_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix


def scores(labels: np.ndarray, predictions: np.ndarray, n_classes: int) -> dict[str, float]:
    """Accuracy and macro-F1, both in [0, 1]; a class never predicted has F1 0, one that never occurs counts too."""
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "macro_f1": float(f1_score(labels, predictions, labels=range(n_classes), average="macro", zero_division=0)),
    }


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, n_classes: int) -> np.ndarray:
    """(C, C) counts; row: true class, column: predicted class."""
    return sklearn_confusion_matrix(labels, predictions, labels=range(n_classes))
