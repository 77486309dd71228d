"""Clips of what lies between the events of recordings, without which a detector calls everything something."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.datasets import Clip, DatasetError
from own_sounds.windows import BACKGROUND


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
