"""Figures of analyses: maps, heat maps, scores with intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from common.arrays import Array
from common.evaluation.plots import BLUE, RED, save_figure
from common.evaluation.record import Interval

IN_LEGEND = 20  # names that a legend holds; more are written into the map
IN_MAP = 60  # names that a map holds
MARKERS = "os^Dv"
TAB20 = [to_hex(rgb) for rgb in matplotlib.color_sequences["tab20"]]
PALETTE = TAB20[::2] + TAB20[1::2]  # of classes: first the strong colours, then the pale ones
MARKS = {  # what a row of `plot_heads` may hold: its name, colour, marker, and distance from the middle of the row
    "linear": ("linear", BLUE, "o", -0.15),
    "three_layer": ("three-layer", RED, "s", 0.15),
}


def plot_map(points: Array, names: Sequence[str], values: Sequence[str], title: str, caption: str, path: Path) -> None:
    """Draw (N, 2) clips in the plane, coloured by the name of each; `names` are in the legend's order."""
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    axes = figure.subplots()
    name_of = np.array(values)
    size = float(np.clip(20_000 / len(points), 4, 36))
    for index, name in enumerate(names):
        # Beyond their number, colours repeat with another marker.
        colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index // len(PALETTE) % len(MARKERS)]
        (across, up), label = points[name_of == name].T, name.replace("_", " ")
        axes.scatter(across, up, s=size, color=colour, marker=marker, alpha=0.75, linewidth=0, label=label)
    if len(names) <= IN_LEGEND:
        axes.legend(fontsize=9, markerscale=max(1.0, 6 / np.sqrt(size)), loc="center left", bbox_to_anchor=(1, 0.5))
    elif len(names) > IN_MAP:
        caption += f" {len(names)} classes: too many to name; colours repeat."
    else:
        caption += " Names are near their clips' median."
        medians = pd.DataFrame(points).groupby(name_of).median().reindex(list(names)).dropna()
        apart = _apart(medians.to_numpy(), list(medians.index), np.ptp(points, axis=0))
        for name, place in zip(medians.index, apart, strict=True):
            edge = PALETTE[names.index(name) % len(PALETTE)]
            box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": edge, "alpha": 0.85}
            axes.annotate(name.replace("_", " "), place, ha="center", va="center", fontsize=7, bbox=box)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=12)
    axes.set_xlabel(textwrap.fill(caption, 110), fontsize=8.5, loc="left")
    axes.spines[:].set_color("#cccccc")
    save_figure(figure, path)


def _apart(places: Array, texts: Sequence[str], extent: Array) -> Array:
    """(N, 2) positions of texts, moved up or down until none covers another."""
    half = np.array([(0.0062 * len(text) + 0.006, 0.0125) for text in texts]) * extent  # half the size of a text's box
    moved: list[tuple[int, Array]] = []
    for index in np.argsort(-places[:, 1], kind="stable"):
        for step in sorted(range(-60, 61), key=abs):
            place = places[index] + (0, step * 0.25 * half[index, 1])
            if all((np.abs(place - other) >= half[index] + half[placed]).any() for placed, other in moved):
                break
        moved.append((index, place))
    return np.array([place for _, place in sorted(moved, key=lambda placed: placed[0])])


def plot_heat(values: pd.DataFrame, title: str, caption: str, path: Path) -> None:
    """Draw a matrix; NaN leaves a cell empty."""
    matrix, (height, width) = values.to_numpy(float), values.shape
    size = (max(6.5, 0.6 * width + 0.09 * max(map(len, values.index)) + 2), max(4, 0.36 * height + 3))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(matrix, cmap="viridis", aspect="auto")
    axes.set_xticks(range(width), list(values.columns), rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(height), list(values.index), fontsize=8)
    axes.tick_params(length=0)
    font = 8 if width <= 24 else 6
    for row, column in zip(*np.nonzero(np.isfinite(matrix)), strict=True):
        value = matrix[row, column]
        is_dark = np.mean(image.cmap(image.norm(value))[:3]) < 0.5
        colour = "white" if is_dark else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=font, color=colour)
    axes.set_title(title, fontsize=11)
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    _save(figure, caption, path)


class Panel(NamedTuple):
    title: str
    rows: Sequence[Mapping[str, tuple[float, Interval | None]]]  # mark -> share, with its 95 % interval
    line: tuple[float, str] | None = None  # a share for all rows, and what it is


def plot_heads(panels: Sequence[Panel], names: Sequence[str], what: str, caption: str, path: Path) -> None:
    """Draw shares, in percent, with their intervals: a row for every name, the panels side by side."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    size = (0.075 * max(map(len, names)) + 2.6 * max(2, columns) + 0.4, (0.42 * len(names) + 1.1) * rows + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat[: len(panels)], panels, strict=True):
        if panel.line is not None:
            axes.axvline(100 * panel.line[0], color="#888888", linewidth=1, linestyle="--", label=panel.line[1])
        for mark, (label, colour, marker, shift) in MARKS.items():
            drawn = [(place + shift, *row[mark]) for place, row in enumerate(panel.rows) if mark in row]
            if drawn:
                middle = np.array([100 * value for _, value, _ in drawn])
                ends = 100 * np.array([interval or (value, value) for _, value, interval in drawn])
                places, reach = [place for place, _, _ in drawn], np.abs(ends.T - middle)
                axes.errorbar(
                    middle, places, xerr=reach, label=label, fmt=marker, color=colour, capsize=2, markersize=4.5
                )
        axes.set_title(panel.title, fontsize=9.5)
        axes.set_yticks(range(len(names)), names, fontsize=8.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel(what, fontsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8.5, frameon=False)
    _save(figure, caption, path)


def _save(figure: Figure, caption: str, path: Path) -> None:
    """With a caption below the whole figure, since long names make axes narrow."""
    figure.supxlabel(textwrap.fill(caption, int(13.5 * figure.get_figwidth())), x=0.01, ha="left", fontsize=8.5)
    save_figure(figure, path)
