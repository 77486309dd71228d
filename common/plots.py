"""Pictures of results, as PNG."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import DetCurveDisplay

from common.files import write_atomically


def plot_confusion(confusion: np.ndarray, class_names: list[str], title: str, path: Path) -> None:
    """Draw a (C, C) matrix of counts; row: true class, column: predicted, colour: share of the true class."""
    n_classes = len(class_names)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    names = [name.replace("_", " ") for name in class_names]
    size = min(5 + 0.22 * n_classes, 40)
    figure = Figure(figsize=(1.1 * size + 1.5, size), layout="constrained")  # no pyplot: there may be no display
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    font = 10 if n_classes <= 20 else 7
    axes.set_xticks(range(n_classes), names, rotation=90, fontsize=font)
    axes.set_yticks(range(n_classes), names, fontsize=font)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    for row, column in zip(*np.nonzero(confusion), strict=True):
        colour = "white" if share[row, column] > 0.5 else "black"
        text = str(confusion[row, column])
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=font - 1 - (n_classes > 20))
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.04, pad=0.02)
    _save(figure, path)


def plot_det(same: np.ndarray, similarities: dict[str, np.ndarray], title: str, path: Path) -> None:
    """Draw the detection error trade-off of several scorings of the same trials, on normal-deviate axes.

    Args:
        same: (N,) bool, whether a trial is of one speaker.
        similarities: name -> (N,) scores.
    """
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    for name, similarity in similarities.items():
        DetCurveDisplay.from_predictions(same, similarity, name=name, ax=axes)
    axes.plot([-3, 3], [-3, 3], color="grey", linewidth=0.7, linestyle=":", label="equal error rate")
    axes.set(xlabel="false acceptance rate", ylabel="false rejection rate", title=title, aspect="equal")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_atomically(path, buffer.getvalue())
