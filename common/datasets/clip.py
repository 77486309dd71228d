"""One labelled piece of audio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled piece of audio: a file, or a segment of it.

    Attributes:
        path: the audio file.
        class_name: the label as text.
        split: ``"train"``, ``"valid"`` or ``"test"`` where the data set has an official one.
        fold: official cross-validation fold, from 1.
        group: what must not stand on two sides of a split: source recording, patient, speaker.
        start_s, end_s: the segment in seconds; None is the file's beginning or end.
    """

    path: Path
    class_name: str
    split: str | None = None
    fold: int | None = None
    group: str | None = None
    start_s: float | None = None
    end_s: float | None = None

    def clip_id(self, root: Path) -> str:
        """The path relative to the data root, with the segment where the clip is one."""
        name = self.path.relative_to(root).as_posix()
        return name if self.start_s is None and self.end_s is None else f"{name}#{self.start_s}-{self.end_s}"


def count(clips: Sequence[Clip]) -> Counter[str]:
    """How many there are of everything: ``clips``, ``classes``, ``groups``, ``fold 1``, ``train``, ``class dog``."""
    counts = Counter(clips=len(clips))
    for clip in clips:
        counts[f"class {clip.class_name}"] += 1
        if clip.fold is not None:
            counts[f"fold {clip.fold}"] += 1
        if clip.split is not None:
            counts[clip.split] += 1
    counts["classes"] = len({clip.class_name for clip in clips})
    counts["groups"] = len({clip.group for clip in clips} - {None})
    return counts
