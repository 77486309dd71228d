"""A labelled piece of audio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LABEL_SEPARATOR = ";"  # between the labels of a clip, in text
# The usual file extensions of sounds.
AUDIO_SUFFIXES = frozenset((
    ".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".oga", ".ogg",
    ".opus", ".rf64", ".snd", ".sph", ".voc", ".w64", ".wav", ".wave", ".webm", ".wma",
))  # fmt: skip
CONTAINER_SUFFIXES = (".parquet", ".tar")  # of files that may hold clips


@dataclass(frozen=True, slots=True)
class Clip:
    """A labelled piece of audio: a file, or a segment of it."""

    path: Path  # the audio file, or CONTAINER/PLACE/NAME in a Parquet file or a tar (`common.datasets.containers`)
    labels: tuple[str, ...] = ()  # its class; of a multi-label task all its labels, or none; empty if unlabelled
    split: str | None = None  # "train", "valid" or "test" if the data set has an official split
    fold: int | None = None  # official cross-validation fold, from 1
    group: str | None = None  # the source recording, patient or speaker, which must not be on two sides of a split
    start_s: float | None = None  # the segment in seconds; None for the start or end of the file
    end_s: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.labels, str):  # which is a sequence of letters
            raise TypeError(f"labels must be a tuple such as ({self.labels!r},)")

    @property
    def class_name(self) -> str:
        """Its class, or its labels joined by ``;``; empty without any."""
        return LABEL_SEPARATOR.join(self.labels)

    def clip_id(self, root: Path) -> str:
        """The path relative to the data root, with the segment if there is one."""
        name = self.path.relative_to(root).as_posix()
        return name if self.start_s is None and self.end_s is None else f"{name}#{self.start_s}-{self.end_s}"
