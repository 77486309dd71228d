"""Figures of results, as PNG, PDF or SVG by the suffix of their path."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from operator import attrgetter
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import DetCurveDisplay

from common.arrays import Array
from common.datasets import Metric, Task
from common.evaluation.load_features import FeaturesRecord
from common.evaluation.record import (
    CalibrationRecord,
    FewShotRecord,
    FitRecord,
    LabelSets,
    PerClass,
    ProtocolRecord,
    RankedClasses,
)
from common.files import write_atomically
from common.heads import HEADS, head_title

FEW, MANY = 20, 60  # most classes for all numbers to fit into a matrix, and for all names to fit into a figure
LEAST_IN_BIN = 10  # clips; the accuracy of fewer is mostly noise
CJK = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "Microsoft YaHei", "SimHei", "PingFang SC",
       "Hiragino Sans", "Yu Gothic", "Malgun Gothic", "Apple SD Gothic Neo", "Arial Unicode MS")  # fmt: skip
BLUE, RED = "#2f6db5", "#bf3b2b"  # as in the report


def plot_confusion(confusion: Array, class_names: Sequence[str], title: str, path: Path) -> None:
    """Draw (C, C) counts, a row a true class, as percentages of it; more than MANY classes are sorted by decreasing recall."""
    n_classes = len(class_names)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    order, ordered = list(range(n_classes)), ""
    if n_classes > MANY:
        order, ordered = np.argsort(-np.diag(share), kind="stable").tolist(), ", best recall first"
    share = share[np.ix_(order, order)]
    names = [class_names[index].replace("_", " ") for index in order]
    # Only numbers that are legible and informative.
    if n_classes <= FEW:
        pitch_in, font, least, unsaid = 0.6, 10.0, 0.005, "\nin brackets: predictions, all seeds together"
    elif n_classes <= MANY:
        pitch_in, font, least, unsaid = 0.2, 8.0, 0.095, "\nnumbers: shares of 10 % or more"
    else:
        pitch_in, font, least, unsaid = 0.115, 5.5, 2.0, "\ntoo many for numbers"
    size = max(5.0, pitch_in * n_classes + 1.5)
    figure, axes = _new_figure(size + 1.5, size + 0.5, title)
    _draw_matrix(axes, share, names, font, "% of the true class")
    axes.title.set_fontsize(max(11, 0.6 * size))
    axes.set_ylabel(f"true class{ordered}", fontsize=max(10, 0.5 * size))
    axes.set_xlabel(f"predicted class{ordered}{unsaid}", fontsize=max(10, 0.5 * size))
    for row, column in zip(*np.nonzero(share >= least), strict=True):
        colour = "white" if share[row, column] > 0.5 else "black"
        text = f"{100 * share[row, column]:.0f}"
        if n_classes <= FEW:
            text += f"\n({confusion[row, column]:,})"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=font - 1)
    save_figure(figure, path)


def _draw_matrix(axes: Axes, share: Array, names: Sequence[str], font: float, quantity: str) -> None:
    """Draw a (C, C) matrix of shares, with a name for every row and column, and the scale."""
    image = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=font)
    axes.set_yticks(range(len(names)), names, fontsize=font)
    axes.tick_params(length=0)
    axes.figure.colorbar(image, ax=axes, label=quantity, fraction=0.04, pad=0.02)


def plot_per_class(per_class: PerClass | RankedClasses, class_names: Sequence[str], title: str, path: Path) -> None:
    """Draw every class's F1 or average precision as a bar, best first; of more than MANY classes, the best and the worst."""
    if isinstance(per_class, RankedClasses):
        scores, quantity, pooled, mean = np.array(per_class.average_precision), "average precision, mean", "", ""
    else:
        scores, quantity, pooled, mean = np.array(per_class.f1), "F1", " pooled", ", folds and seeds pooled"
    order = np.argsort(-scores, kind="stable")
    order = order[np.isfinite(scores[order])]  # of classes that have test clips
    if len(order) > MANY:
        half = MANY // 2
        title = f"{title}\nthe {half} best and the {half} worst of {len(order)} classes"
        order = np.concatenate([order[:half], order[-half:]])
    figure, axes = _new_figure(7, max(2.5, 0.2 * len(order) + 1.6), title)
    bars = axes.barh(range(len(order)), 100 * scores[order], color=BLUE, height=0.75)
    # On white: the dashed line would cross it out.
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=7, bbox=box)
    names = [f"{class_names[index].replace('_', ' ')} ({per_class.clips[index]:,.0f})" for index in order]
    axes.set_yticks(range(len(order)), names, fontsize=8)
    average = 100 * np.nanmean(scores)
    label = f"mean of all classes{mean}: {average:.1f}"
    axes.axvline(average, color="black", linewidth=1, linestyle="--", label=label, zorder=0)
    axes.legend(loc="lower right", fontsize=8)
    axes.set(
        xlim=(0, 106),
        ylim=(len(order) - 0.3, -0.7),
        xlabel=f"{quantity} of all folds and seeds{pooled}, % (test clips in brackets)",
    )
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def plot_label_sets(labels: LabelSets, class_names: Sequence[str], title: str, path: Path) -> None:
    """Draw two (C, C) matrices: how often a label is predicted, and how often it is there, beside each true label."""
    clips = np.maximum(np.diag(labels.co_occurrence), 1)[:, None]
    order = np.argsort(-np.array(labels.per_class.clips), kind="stable")[:MANY]
    some = f", the {MANY} most frequent of {len(class_names)}" * (len(class_names) > MANY)
    names, size = [class_names[index].replace("_", " ") for index in order], max(5.0, 0.2 * len(order) + 1.5)
    figure = Figure(figsize=(2 * size + 1, size + 0.7), layout="constrained")
    font = 10 if len(order) <= FEW else 7
    for axes, counts, what in zip(
        figure.subplots(1, 2), (labels.confusion, labels.co_occurrence), ("predicted", "also present"), strict=True
    ):
        share = (np.array(counts) / clips)[np.ix_(order, order)]
        _draw_matrix(axes, share, names, font, "% of the clips with the label")
        axes.set(ylabel=f"label of the clip{some}", xlabel=what)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def plot_reliability(calibration: CalibrationRecord, title: str, path: Path) -> None:
    """Draw accuracy against confidence, without and with temperature; the diagonal is perfect calibration."""
    figure, axes = _new_figure(5.4, 5, title)
    axes.plot([0, 100], [0, 100], color="grey", linewidth=0.8, linestyle=":")
    temperature = calibration.temperature
    scaled = "calibrated by class" if temperature is None else f"temperature {temperature:.2g}"
    for label, bins, error, colour, marker in (
        ("as trained", calibration.before, calibration.error_before, RED, "s"),
        (scaled, calibration.after, calibration.error_after, BLUE, "o"),
    ):
        shown = [part for part in bins if part.clips >= LEAST_IN_BIN] or bins
        confidence, accuracy, clips = np.array([(part.confidence, part.accuracy, part.clips) for part in shown]).T
        sizes = 8 + 160 * clips / clips.sum()
        text = f"{label}: expected calibration error {100 * error:.1f}"
        axes.plot(100 * confidence, 100 * accuracy, color=colour, linewidth=1)
        axes.scatter(100 * confidence, 100 * accuracy, s=sizes, color=colour, marker=marker, label=text)
    axes.set(xlim=(0, 101), ylim=(0, 101), xlabel="confidence, % (larger: more clips)", ylabel="accuracy, %")
    axes.legend(fontsize=8.5, loc="upper left")
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def plot_curves(fits: Sequence[FitRecord], title: str, path: Path) -> None:
    """Draw training loss and validation score over epochs: mean and range of all fits, and the epochs kept."""
    curves = [("training loss", [np.array(fit.train_loss) for fit in fits])]
    for title_of, name in (("accuracy", "valid_accuracy"), ("mAP", "valid_macro_map")):
        if validated := [100 * np.array(getattr(fit, name)) for fit in fits if getattr(fit, name)]:
            curves.append((f"validation {title_of}, %", validated))
    figure = Figure(figsize=(7, 6 if len(curves) > 1 else 3.5), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(curves), 1, sharex=True))
    for axes, (quantity, drawn) in zip(panels, curves, strict=True):
        values = np.stack(drawn)  # (fits, epochs)
        epochs = np.arange(1, values.shape[1] + 1)
        span = (values.min(axis=0), values.max(axis=0))
        axes.plot(epochs, values.mean(axis=0), color=BLUE, label=f"mean of {len(drawn)}")
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


def plot_learning_curves(points: Sequence[FewShotRecord], quantity: str, title: str, path: Path) -> None:
    """Draw scores over the number of training clips of every class, a line per head, with 95 % intervals."""
    figure, axes = _new_figure(7, 4.5, title)
    for (head, colour), marker in zip((("linear", BLUE), ("three_layer", RED)), "os", strict=True):
        of_head = sorted((point for point in points if point.head == head), key=attrgetter("shots"))
        scores = np.array([100 * point.mean for point in of_head])
        ends = [point.interval or (point.mean, point.mean) for point in of_head]
        errors = np.abs(100 * np.array(ends).T - scores)
        shots = [point.shots for point in of_head]
        axes.errorbar(shots, scores, errors, marker=marker, color=colour, capsize=3, label=head_title(head))
    axes.set_xscale("log")
    ticks = sorted({point.shots for point in points})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set(xlabel=f"clips of every class to learn from ({len(points[0].draws)} draws)", ylabel=quantity)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def plot_det(same: Array, similarities: dict[str, Array], title: str, path: Path) -> None:
    """Draw the detection error trade-off of several scorings (by name) of the same trials, on normal-deviate axes; `same` (N,)
    bool: whether a trial is of one speaker."""
    figure, axes = _new_figure(6, 6, title)
    for name, similarity in similarities.items():
        DetCurveDisplay.from_predictions(same, similarity, name=name, ax=axes)
    axes.plot([-3, 3], [-3, 3], color="grey", linewidth=0.7, linestyle=":", label="equal error rate")
    axes.set(xlabel="false acceptance rate", ylabel="false rejection rate", aspect="equal")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    save_figure(figure, path)


def _new_figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """A figure of this size in inches; without pyplot, which wants a display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=9.5)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically, in the format of the path's suffix."""
    buffer, kind = io.BytesIO(), path.suffix.removeprefix(".")
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a class may be called Ba$$in
        text.set_fontfamily(_fonts())
    # Without dates, the same results give the same file. Conferences ask for TrueType fonts (42).
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    with (
        matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "figure"}),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        figure.savefig(buffer, format=kind, dpi=130, metadata=undated)
    for warning in caught:
        if "missing from" in str(warning.message):
            _note_missing_letters()
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    write_atomically(path, buffer.getvalue())


@cache
def _fonts() -> list[str]:
    """Matplotlib's font, then those installed that have what it lacks."""
    return ["DejaVu Sans", *(name for name in CJK if name in font_manager.get_font_names())]


@cache
def _note_missing_letters() -> None:
    print("note: no font here has some letters of the names, which figures show as boxes; install Noto Sans CJK")


def figures_of(
    task: Task, features: FeaturesRecord, protocol: ProtocolRecord, is_plain: bool = False
) -> dict[str, Callable[[Path], None]]:
    """A protocol's figures: file name without suffix -> function that writes it; plain ones have no titles."""
    figures: dict[str, Callable[[Path], None]] = {}
    below, class_names = f"{features.title}\n{protocol.division}", features.class_names
    for kind in HEADS:
        scored = protocol.heads[kind]
        metric = "" if scored.metric is Metric.ACCURACY else f"{scored.metric.label} "
        title = "" if is_plain else f"{task.title}, {head_title(kind)} head: {metric}{scored.score:.1%}\n{below}"
        if scored.confusion:
            figures[f"confusion_{kind}"] = partial(plot_confusion, np.array(scored.confusion), class_names, title)
        if scored.label_sets is not None:
            figures[f"labels_{kind}"] = partial(plot_label_sets, scored.label_sets, class_names, title)
        figures[f"per_class_{kind}"] = partial(plot_per_class, scored.per_class, class_names, title)
        figures[f"curves_{kind}"] = partial(plot_curves, scored.splits, title)
        if scored.calibration is not None:
            figures[f"reliability_{kind}"] = partial(plot_reliability, scored.calibration, title)
    if protocol.few_shots:
        title = "" if is_plain else f"{task.title}: how many labels are needed\n{below}"
        quantity = f"{protocol.majority_class.metric.label}, %"
        figures["few_shots"] = partial(plot_learning_curves, protocol.few_shots, quantity, title)
    return figures
