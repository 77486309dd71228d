"""Long recordings: their windows, what a head hears in them, and a picture of that over time."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.config import ConfigError
from common.datasets import Clip

SHORTEST = 0.1  # of a window; a shorter remainder at the end of a file is dropped
MOST_CLASSES = 12  # in a picture


def add_windows(parser: argparse.ArgumentParser) -> None:
    """Add the flags that cut files into windows."""
    text = "cut files into windows of S seconds (default: whole files)"
    parser.add_argument("--window", type=_seconds, metavar="S", help=text)
    text = "seconds from one window to the next (default: the window)"
    parser.add_argument("--hop", type=_seconds, metavar="S", help=text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.01 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text} is not from 0.01 to 86400 seconds")
    return seconds


@dataclass(frozen=True)
class Windows:
    """Windows of `window_s` seconds that start every `hop_s` seconds."""

    window_s: float
    hop_s: float

    @classmethod
    def of_flags(cls, window_s: float | None, hop_s: float | None) -> Windows | None:
        """The windows that ``--window`` and ``--hop`` ask for; None for whole files."""
        if hop_s and not window_s:
            raise ConfigError("--hop needs --window")
        return cls(window_s, hop_s or window_s) if window_s else None

    def of_clip(self, clip: Clip) -> list[Clip]:
        """The windows of a clip; the last one ends with it, and may be shorter. AudioError if unreadable."""
        from common.datasets.audio import audio_duration_s

        first_s, end_s = clip.start_s or 0.0, clip.end_s or audio_duration_s(clip.path)
        cuts: list[Clip] = []
        start_s = stop_s = first_s
        while not cuts or max(stop_s, start_s + SHORTEST * self.window_s) < end_s:
            stop_s = min(start_s + self.window_s, end_s)
            cuts.append(replace(clip, start_s=start_s, end_s=stop_s))
            start_s = round(first_s + len(cuts) * self.hop_s, 6)
        return cuts


@dataclass(frozen=True)
class Prediction:
    """A head's answer for a file, or for one window of it."""

    file: Path
    # start_s, end_s: the window; None for the whole file
    start_s: float | None
    end_s: float | None
    probabilities: list[float]  # (C,), in the order of the head's classes
    labels: list[str]  # the class, or with several labels a clip those above their thresholds, most probable first
    distance: float | None = None  # to the nearest training clip; None without ``--none-of-these``
    is_unknown: bool = False  # whether it is none of the classes, by that distance

    @property
    def place(self) -> dict[str, object]:
        """The file and window, for files."""
        return {"file": str(self.file), "start_s": self.start_s, "end_s": self.end_s}

    @property
    def mark(self) -> dict[str, object]:
        """The distance and whether it is none of the classes, for files; empty if that was not asked for."""
        return {} if self.distance is None else {"distance": self.distance, "none_of_these": self.is_unknown}

    def top(self, names: Sequence[str], count: int) -> list[tuple[str, float]]:
        """The most probable classes, best first."""
        order = sorted(range(len(names)), key=lambda label: -self.probabilities[label])
        return [(names[label], self.probabilities[label]) for label in order[:count]]


def plot_timeline(windows: Sequence[Prediction], class_names: Sequence[str], path: Path) -> None:
    """Draw the probability of a file's most probable classes as a colour; windows that are unknown are hatched."""
    import numpy as np
    from matplotlib.figure import Figure

    from common.evaluation.plots import save_figure

    values = np.array([window.probabilities for window in windows])
    shown = np.argsort(-values.max(axis=0), kind="stable")[:MOST_CLASSES]
    figure = Figure(figsize=(10, 1.4 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    # Where windows overlap, each is drawn up to the start of the next.
    edges = [*(window.start_s or 0.0 for window in windows), windows[-1].end_s or 0.0]
    image = axes.pcolormesh(edges, np.arange(len(shown) + 1), values[:, shown].T, vmin=0, vmax=1, cmap="viridis")
    for window, (left, right) in zip(windows, itertools.pairwise(edges), strict=True):
        if window.is_unknown:
            axes.axvspan(left, right, facecolor="none", edgecolor="white", hatch="//", linewidth=0)
    names = [class_names[label].replace("_", " ") for label in shown]
    axes.set_yticks(np.arange(len(shown)) + 0.5, names, fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    left_out = f", the {len(shown)} most probable of {len(class_names)} classes" * (len(shown) < len(class_names))
    hatched = "" if windows[0].distance is None else "; hatched: none of these"
    axes.set_title(f"{windows[0].file.name}: probability{left_out}{hatched}", fontsize=10)
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)
    save_figure(figure, path)
