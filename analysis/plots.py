"""Figures of analyses, as PNG: maps, heat maps, effects."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.arrays import Array
from common.evaluation.plots import save_figure
from common.heads import HeadKind, head_title

IN_LEGEND = 20  # names that a legend holds; more are written into the map
IN_MAP = 60  # names that a map holds
MARKERS = "os^Dv"
Interval = tuple[float, tuple[float, float] | None]  # a share, and its 95 % interval
HEADS: dict[HeadKind, tuple[str, str]] = {"linear": ("#3b6fb6", "o"), "three_layer": ("#c0392b", "s")}


def plot_map(points: Array, names: Sequence[str], values: Sequence[str], title: str, caption: str, path: Path) -> None:
    """Draw clips in the plane.

    Args:
        points: (N, 2).
        names: the names that have a colour, in the legend's order.
        values: the name of each clip.
    """
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    axes = figure.subplots()
    name_of = np.array(values)
    # Beyond their number, colours repeat with another marker.
    palette = matplotlib.color_sequences["tab10" if len(names) <= 10 else "tab20"]
    size = float(np.clip(20_000 / len(points), 4, 36))
    for index, name in enumerate(names):
        colour, marker = palette[index % len(palette)], MARKERS[index // len(palette) % len(MARKERS)]
        x, y = points[name_of == name].T
        label = str(name).replace("_", " ")
        axes.scatter(x, y, s=size, color=colour, marker=marker, alpha=0.75, linewidth=0, label=label)
    if IN_LEGEND < len(names) <= IN_MAP:
        shown = [index for index, name in enumerate(names) if (name_of == name).any()]
        medians = np.array([np.median(points[name_of == names[index]], axis=0) for index in shown])
        texts = [str(names[index]).replace("_", " ") for index in shown]
        for index, text, place in zip(shown, texts, _apart(medians, texts, np.ptp(points, axis=0)), strict=True):
            edge = palette[index % len(palette)]
            box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": edge, "alpha": 0.85}
            axes.annotate(text, place, ha="center", va="center", fontsize=7, bbox=box)
    if len(names) <= IN_LEGEND:
        axes.legend(fontsize=9, markerscale=max(1.0, 6 / np.sqrt(size)), loc="center left", bbox_to_anchor=(1, 0.5))
    elif len(names) > IN_MAP:
        caption += f" {len(names)} classes: too many to name; colours repeat."
    else:
        caption += " Names are near their clips' median."
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


def plot_heat(
    values: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    caption: str,
    path: Path,
    digits: int = 2,
    is_diverging: bool = False,
    uncertain: Array | None = None,
) -> None:
    """Draw a matrix with its numbers; NaN cells are empty, and `uncertain` ones are in brackets."""
    height, width = values.shape
    longest = max(map(len, rows))
    size = (max(6.5, 0.6 * width + 0.09 * longest + 2), max(4, 0.36 * height + 3))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if is_diverging:
        high = max(abs(low), abs(high), 1e-9)
        low = -high
    image = axes.imshow(values, cmap="RdBu" if is_diverging else "viridis", vmin=low, vmax=high, aspect="auto")
    axes.set_xticks(range(width), columns, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(height), rows, fontsize=8)
    axes.tick_params(length=0)
    font = 8 if width <= 24 else 6
    for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
        share = (values[row, column] - low) / max(high - low, 1e-12)
        dark = abs(share - 0.5) > 0.35 if is_diverging else share < 0.55
        text = f"{values[row, column]:.{digits}f}"
        if uncertain is not None and uncertain[row, column]:
            text = f"({text})"
        axes.text(column, row, text, ha="center", va="center", fontsize=font, color="white" if dark else "black")
    axes.set_title(title, fontsize=11)
    # A label of the figure, not of the axes, which long names make narrow.
    figure.supxlabel(textwrap.fill(caption, int(13.5 * figure.get_figwidth())), x=0.01, ha="left", fontsize=8.5)
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    save_figure(figure, path)


def _draw_heads(axes: Axes, rows: Sequence[Mapping[HeadKind, Interval]]) -> None:
    """Draw the values of both heads with their intervals, in percent, from row 0 on."""
    for head, (colour, marker) in HEADS.items():
        drawn = [(place, *row[head]) for place, row in enumerate(rows) if head in row]
        if not drawn:
            continue
        places = [place + (-0.15 if head == "linear" else 0.15) for place, _, _ in drawn]
        middle = np.array([100 * value for _, value, _ in drawn])
        ends = np.array([100 * np.array(interval or (value, value)) for _, value, interval in drawn])
        style: dict[str, Any] = {"fmt": marker, "color": colour, "capsize": 2, "markersize": 4.5}
        axes.errorbar(middle, places, xerr=np.abs(ends.T - middle), label=head_title(head), **style)


class Panel(NamedTuple):
    """A panel of `plot_encoders`: its title, the share by chance, and for every encoder the heads that have been run."""

    title: str
    chance: float
    rows: Sequence[Mapping[HeadKind, Interval]]


def plot_encoders(panels: Sequence[Panel], encoders: Sequence[str], caption: str, path: Path) -> None:
    """Draw every encoder's accuracy on every task, a panel a task, both heads with their 95 % intervals."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    longest = max(map(len, encoders))
    size = (0.075 * longest + 2.6 * columns + 0.4, (0.42 * len(encoders) + 1.1) * rows + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat[: len(panels)], panels, strict=True):
        axes.axvline(100 * panel.chance, color="#888888", linewidth=1, linestyle="--", label="chance")
        _draw_heads(axes, panel.rows)
        axes.set_title(panel.title, fontsize=9.5)
        axes.set_yticks(range(len(encoders)), encoders, fontsize=8.5)
        axes.set_ylim(len(encoders) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel("accuracy, %", fontsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8.5, frameon=False)
    figure.supxlabel(textwrap.fill(caption, int(13.5 * figure.get_figwidth())), x=0.01, ha="left", fontsize=8.5)
    save_figure(figure, path)


def plot_effects(effects: Mapping[str, Mapping[HeadKind, Interval]], title: str, caption: str, path: Path) -> None:
    """Draw differences from a baseline, which are shares, in points: name -> head -> (difference, its 95 % interval)."""
    figure = Figure(figsize=(8.5, max(3, 0.34 * len(effects) + 1.8)), layout="constrained")
    axes = figure.subplots()
    _draw_heads(axes, list(effects.values()))
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(effects)), list(effects), fontsize=8.5)
    axes.set_ylim(len(effects) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(f"accuracy against the baseline, points\n{textwrap.fill(caption, 105)}", fontsize=8.5)
    axes.legend(fontsize=8.5, loc="best")
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
