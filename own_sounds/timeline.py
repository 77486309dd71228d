"""The picture of what a head hears over time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from common.evaluation.plots import save_figure

MOST_CLASSES = 12


def plot_timeline(
    spans: Sequence[tuple[float, float]],
    probabilities: Sequence[Sequence[float]],
    class_names: Sequence[str],
    title: str,
    path: Path,
    is_unknown: Sequence[bool] | None = None,
) -> None:
    """Draw the probability of the most probable classes in every window as a colour.

    Args:
        spans: start and end of each window in seconds.
        probabilities: (windows, classes).
        is_unknown: windows that are none of the classes; they are hatched.
    """
    values = np.array(probabilities)
    shown = np.argsort(-values.max(axis=0), kind="stable")[:MOST_CLASSES]
    figure = Figure(figsize=(10, 1.4 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    # Where windows overlap, each is drawn up to the beginning of the next.
    edges = [*(start for start, _ in spans), spans[-1][1]]
    image = axes.pcolormesh(edges, np.arange(len(shown) + 1), values[:, shown].T, vmin=0, vmax=1, cmap="viridis")
    for (left, right), told in zip(pairwise(edges), is_unknown or [False] * len(spans), strict=True):
        if told:
            axes.axvspan(left, right, facecolor="none", edgecolor="white", hatch="//", linewidth=0)
    axes.set_yticks(
        np.arange(len(shown)) + 0.5, [class_names[label].replace("_", " ") for label in shown], fontsize=8.5
    )
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    left_out = f", the {len(shown)} most probable of {len(class_names)} classes" * (len(shown) < len(class_names))
    hatched = "; hatched: none of these" if is_unknown else ""
    axes.set_title(f"{title}: probability{left_out}{hatched}", fontsize=10)
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)
    save_figure(figure, path)
