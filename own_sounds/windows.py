"""What is cut from long recordings: windows, and clips between labelled events."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.config import ConfigError
from common.datasets import Clip, DatasetError
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


def with_background(clips: Sequence[Clip], count: int) -> tuple[list[Clip], list[str]]:
    """Events of recordings, and up to `count` clips of every recording that lie between its events, of the class BACKGROUND; and
    remarks about them.

    They are as long as the median event, do not overlap, and are drawn at random, the same at every call. Split, fold and
    group are those of an event of the recording. DatasetError: the clips are not events, or already have that class."""
    import numpy as np

    from common.datasets.audio import AudioError, audio_duration_s

    events = [clip for clip in clips if clip.end_s is not None]
    has_background = any(BACKGROUND in clip.labels for clip in clips)
    if not count:
        is_ready = has_background or not events
        advice = f"a detector must hear what is between events too: --background N adds N clips of each recording as {BACKGROUND!r}"
        return list(clips), [] if is_ready else [advice]
    if count < 0 or not events or has_background:
        needed = f"it takes a number above 0, and clips that are events with start and end, none of them {BACKGROUND!r}"
        raise DatasetError(f"--background {count}: {needed}")
    length_s = float(np.median([clip.end_s - (clip.start_s or 0) for clip in events if clip.end_s]))
    by_recording: dict[Path, list[Clip]] = defaultdict(list)
    for clip in events:
        by_recording[clip.path].append(clip)
    added: list[Clip] = []
    for path, of_recording in by_recording.items():
        try:
            free = _places_between(of_recording, audio_duration_s(path), length_s)
        except AudioError:
            continue  # the extraction names it
        chosen = np.random.default_rng(0).permutation(len(free))[:count]
        added += [
            replace(of_recording[0], labels=(BACKGROUND,), start_s=free[place], end_s=round(free[place] + length_s, 6))
            for place in sorted(chosen)
        ]
    if not added:
        raise DatasetError(f"--background {count}: between the events there is nowhere room for {length_s:.3g} s")
    fewest = len(by_recording) * count - len(added)
    remark = f"{BACKGROUND}: {len(added):,} clips of {length_s:.3g} s from between the events of {len(by_recording):,} recordings"
    return [*clips, *added], [remark + f"; {fewest:,} more found no room" * bool(fewest)]


def _places_between(events: Sequence[Clip], duration_s: float, length_s: float) -> list[float]:
    """Where clips of this length fit, side by side, between the events of a recording, in seconds."""
    starts, free_from = [], 0.0
    spans = sorted((clip.start_s or 0.0, clip.end_s or 0.0) for clip in events)
    for start_s, end_s in [*spans, (duration_s, duration_s)]:
        n_fit = int((start_s - free_from) / length_s + 1e-9)
        starts += [round(free_from + place * length_s, 6) for place in range(n_fit)]
        free_from = max(free_from, end_s)
    return starts
