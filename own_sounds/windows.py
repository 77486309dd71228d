"""Windows of long recordings, and the flags that cut them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from common.config import ConfigError
from common.datasets import Clip
from common.errors import UserError

BACKGROUND = "background"  # the class of whatever is between events
SHORTEST = 0.1  # of a window; a shorter remainder at the end of a file is dropped


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
    """Windows of `window_s` seconds that start every `hop_s` seconds; None: whole clips, and side by side. ConfigError: a hop
    without windows."""

    window_s: float | None
    hop_s: float | None = None

    def __post_init__(self) -> None:
        if self.hop_s and not self.window_s:
            raise ConfigError("--hop needs --window")

    def of_clip(self, clip: Clip) -> list[Clip]:
        """The windows of a clip; the last one ends with it, and may be shorter. An unreadable clip stays whole, so that whoever
        reads it tells why."""
        from common.datasets.audio import audio_duration_s

        if self.window_s is None:
            return [clip]
        try:
            first_s, end_s = clip.start_s or 0.0, clip.end_s or audio_duration_s(clip.path)
        except UserError:
            return [clip]
        cuts: list[Clip] = []
        start_s = stop_s = first_s
        while not cuts or max(stop_s, start_s + SHORTEST * self.window_s) < end_s:
            stop_s = min(start_s + self.window_s, end_s)
            cuts.append(replace(clip, start_s=start_s, end_s=stop_s))
            start_s = round(first_s + len(cuts) * (self.hop_s or self.window_s), 6)
        return cuts
