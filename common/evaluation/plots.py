"""Figures of results, as PNG, PDF or SVG by the suffix of their path."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import DetCurveDisplay

from common.arrays import Array
from common.datasets import Task
from common.evaluation.record import (
    CalibrationRecord,
    EfficiencyRecord,
    FeaturesRecord,
    FitRecord,
    PerClass,
    ProtocolRecord,
)
from common.files import write_atomically
from common.heads import HEADS, head_title

FEW, MANY = 20, 60  # most classes for all numbers to fit into a matrix, and for all names to fit into a figure
BLUE, RED = "#3b6fb6", "#c0392b"


def plot_confusion(confusion: Array, class_names: Sequence[str], title: str, path: Path) -> None:
    """Draw a (C, C) matrix of counts as percentages of the true class; row: true class, column: predicted.

    More than MANY classes are sorted by decreasing recall.
    """
    n_classes = len(class_names)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    order, ordered = list(range(n_classes)), ""
    if n_classes > MANY:
        order, ordered = np.argsort(-np.diag(share), kind="stable").tolist(), ", best recall first"
    share = share[np.ix_(order, order)]
    names = [class_names[index].replace("_", " ") for index in order]
    # Only numbers that are legible and informative.
    if n_classes <= FEW:
        pitch_in, font, least, unsaid = 0.55, 10.0, 0.005, ""
    elif n_classes <= MANY:
        pitch_in, font, least, unsaid = 0.2, 8.0, 0.095, "\nnumbers: shares of 10 % or more"
    else:
        pitch_in, font, least, unsaid = 0.115, 5.5, 2.0, "\ntoo many for numbers"
    size = max(5.0, pitch_in * n_classes + 1.5)
    figure, axes = _new_figure(size + 1.5, size + 0.5)
    image = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(n_classes), names, rotation=90, fontsize=font)
    axes.set_yticks(range(n_classes), names, fontsize=font)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=max(11, 0.6 * size))
    axes.set_ylabel(f"true class{ordered}", fontsize=max(10, 0.5 * size))
    axes.set_xlabel(f"predicted class{ordered}{unsaid}", fontsize=max(10, 0.5 * size))
    for row, column in zip(*np.nonzero(share >= least), strict=True):
        colour = "white" if share[row, column] > 0.5 else "black"
        text = f"{100 * share[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=font - 1)
    figure.colorbar(image, ax=axes, label="% of the true class", fraction=0.04, pad=0.02)
    save_figure(figure, path)


def plot_per_class(per_class: PerClass, class_names: Sequence[str], title: str, path: Path) -> None:
    """Draw the F1 of every class as a bar, best first; of more than MANY classes, the best and the worst."""
    f1 = np.array(per_class.f1)
    order = np.argsort(-f1, kind="stable")
    if len(order) > MANY:
        half = MANY // 2
        title = f"{title}\nthe {half} best and the {half} worst of {len(order)} classes"
        order = np.concatenate([order[:half], order[-half:]])
    figure, axes = _new_figure(7, max(2.5, 0.2 * len(order) + 1.6))
    axes.barh(range(len(order)), 100 * f1[order], color=BLUE, height=0.75)
    names = [f"{class_names[index].replace('_', ' ')} ({per_class.clips[index]:,.0f})" for index in order]
    axes.set_yticks(range(len(order)), names, fontsize=8)
    mean = f"mean of all classes, folds and seeds pooled: {100 * f1.mean():.1f}"
    axes.axvline(100 * f1.mean(), color="black", linewidth=1, linestyle="--", label=mean, zorder=0)
    axes.legend(loc="lower right", fontsize=8)
    for place, value in enumerate(100 * f1[order]):
        # On white: the dashed line would cross it out.
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axes.text(value + 0.7, place, f"{value:.0f}", va="center", fontsize=7, bbox=box)
    axes.set(
        xlim=(0, 106),
        ylim=(len(order) - 0.3, -0.7),
        xlabel="F1 of all folds and seeds pooled, % (test clips in brackets)",
    )
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def plot_reliability(calibration: CalibrationRecord, title: str, path: Path) -> None:
    """Draw accuracy against confidence, without and with temperature; the diagonal is perfect calibration."""
    figure, axes = _new_figure(5.4, 5)
    axes.plot([0, 100], [0, 100], color="grey", linewidth=0.8, linestyle=":")
    for label, bins, error, colour, marker in (
        ("as trained", calibration.before, calibration.error_before, RED, "s"),
        (f"temperature {calibration.temperature:.2g}", calibration.after, calibration.error_after, BLUE, "o"),
    ):
        clips = np.array([part.clips for part in bins])
        confidence, accuracy = (np.array([getattr(part, name) for part in bins]) for name in ("confidence", "accuracy"))
        sizes = 8 + 160 * clips / clips.sum()
        text = f"{label}: expected calibration error {100 * error:.1f}"
        axes.plot(100 * confidence, 100 * accuracy, color=colour, linewidth=1)
        axes.scatter(100 * confidence, 100 * accuracy, s=sizes, color=colour, marker=marker, label=text)
    axes.set(xlim=(0, 101), ylim=(0, 101), xlabel="confidence, % (larger: more clips)", ylabel="accuracy, %")
    axes.set_title(title, fontsize=9.5)
    axes.legend(fontsize=8.5, loc="upper left")
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def plot_curves(fits: Sequence[FitRecord], title: str, path: Path) -> None:
    """Draw training loss and validation accuracy over epochs: mean and range of all fits, and the epochs kept."""
    curves = [("training loss", [np.array(fit.train_loss) for fit in fits])]
    validated = [100 * np.array(fit.valid_accuracy) for fit in fits if fit.valid_accuracy]
    if validated:
        curves.append(("validation accuracy, %", validated))
    figure = Figure(figsize=(7, 6 if validated else 3.5), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(curves), 1, sharex=True))
    for axes, (quantity, drawn) in zip(panels, curves, strict=True):
        values = np.stack(drawn)  # (fits, epochs)
        epochs = np.arange(1, values.shape[1] + 1)
        mean_of = f"mean of {len(drawn)}" if len(drawn) > 1 else None
        axes.plot(epochs, values.mean(axis=0), color=BLUE, label=mean_of)
        if len(drawn) > 1:
            span = (values.min(axis=0), values.max(axis=0))
            axes.fill_between(epochs, *span, color=BLUE, alpha=0.2, linewidth=0, label="range")
        height = 1 if len(fits) <= 5 else 0.07  # many fits: ticks along the axis
        for number, fit in enumerate(fits):
            label = None if number else "epoch kept"
            axes.axvline(fit.epoch, ymax=height, color=RED, linewidth=1, alpha=0.7, label=label)
        axes.set_ylabel(quantity)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=8)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_title(title, fontsize=10)
    save_figure(figure, path)


def plot_label_efficiency(points: Sequence[EfficiencyRecord], title: str, path: Path) -> None:
    """Draw accuracy over the number of labelled clips, a line per head, with 95 % intervals."""
    figure, axes = _new_figure(7, 4.5)
    for (head, colour), marker in zip((("linear", BLUE), ("three_layer", RED)), "os", strict=True):
        of_head = sorted((point for point in points if point.head == head), key=lambda point: point.n_train)
        if not of_head:
            continue
        clips = [point.n_train for point in of_head]
        accuracy = np.array([100 * point.accuracy for point in of_head])
        ends = [point.interval or (point.accuracy, point.accuracy) for point in of_head]
        errors = np.abs(100 * np.array(ends).T - accuracy)
        axes.errorbar(clips, accuracy, errors, marker=marker, color=colour, capsize=3, label=head_title(head))
    axes.set_xscale("log")
    axes.set_title(title, fontsize=10)
    axes.set(xlabel="labelled clips to learn from", ylabel="accuracy, %")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def plot_det(same: Array, similarities: dict[str, Array], title: str, path: Path) -> None:
    """Draw the detection error trade-off of several scorings of the same trials, on normal-deviate axes.

    Args:
        same: (N,) bool, whether a trial is of one speaker.
        similarities: name -> (N,) scores.
    """
    figure, axes = _new_figure(6, 6)
    for name, similarity in similarities.items():
        DetCurveDisplay.from_predictions(same, similarity, name=name, ax=axes)
    axes.plot([-3, 3], [-3, 3], color="grey", linewidth=0.7, linestyle=":", label="equal error rate")
    axes.set(xlabel="false acceptance rate", ylabel="false rejection rate", title=title, aspect="equal")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    save_figure(figure, path)


def _new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this size in inches; without pyplot, which wants a display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically, in the format of the path's suffix."""
    buffer, kind = io.BytesIO(), path.suffix.removeprefix(".")
    # Without dates, the same results give the same file. Conferences ask for TrueType fonts (42).
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "figure"}):
        figure.savefig(buffer, format=kind, dpi=130, metadata=undated)
    write_atomically(path, buffer.getvalue())


def figures_of(task: Task, features: FeaturesRecord, protocol: ProtocolRecord) -> dict[str, Callable[[Path], None]]:
    """A protocol's figures: file name without suffix -> function that writes it."""
    figures: dict[str, Callable[[Path], None]] = {}
    below, class_names = f"{features.title}\n{protocol.division}", features.class_names
    for kind in HEADS:
        scored = protocol.heads[kind]
        title = f"{task.title}, {head_title(kind)} head: {scored.accuracy:.1%}\n{below}"
        confusion = np.array(scored.confusion)
        figures[f"confusion_{kind}"] = partial(plot_confusion, confusion, class_names, title)
        figures[f"per_class_{kind}"] = partial(plot_per_class, scored.per_class, class_names, title)
        figures[f"curves_{kind}"] = partial(plot_curves, scored.splits, title)
        if scored.calibration is not None:
            figures[f"reliability_{kind}"] = partial(plot_reliability, scored.calibration, title)
    if protocol.label_efficiency:
        title = f"{task.title}: how many labels are needed\n{below}"
        figures["label_efficiency"] = partial(plot_label_efficiency, protocol.label_efficiency, title)
    return figures
