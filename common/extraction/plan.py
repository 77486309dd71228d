"""The plan of an extraction: the clip list cut into parts, which depends on the list and its files alone."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from common.arrays import Array
from common.datasets import Clip
from common.datasets.audio import AudioError
from common.errors import UserError
from common.extraction.clip_list import ClipList
from common.extraction.settings import ExtractionSettings
from common.parts import Part, PartInfo, Slice, as_text, make_part

MOST_PARTS = 4096
ASSUMED_BYTES_PER_SECOND = 64_000  # of a file, to compare it with a segment of known length
AT_A_TIME = 1 << 16  # paths that are objects at once
PER_THREAD = 256  # files that a thread looks for; a task for each takes ten times as long
MISSING = -1


class MissingClipsError(UserError):
    """Files of clips are missing."""


@dataclass(frozen=True)
class PartSize:
    """The most clips and the most seconds of audio in a part; with millions of clips, both are larger."""

    clips: int
    seconds: float


# What a kill costs: half a minute on a CPU. On a GPU a call of the encoder takes 20 minutes of audio.
PART_SIZES = {"cpu": PartSize(64, 600), "mps": PartSize(64, 600), "cuda": PartSize(1024, 7200)}


@dataclass(frozen=True)
class Plan:
    """What there is to do, the same for every process that does a share of it.

    Attributes:
        clips: the clips.
        settings: how they are embedded.
        slices: the parts, in order.
        sizes: (N,) int64, the clips' files in bytes; MISSING where there is none.
        width: numbers per clip.
        part_size: the most clips in a part.
    """

    clips: ClipList
    settings: ExtractionSettings
    slices: tuple[Slice, ...]
    sizes: Array
    width: int
    part_size: int

    @classmethod
    def make(cls, clips: ClipList, settings: ExtractionSettings, width: int, allow_missing: bool, most: int) -> Plan:
        """The plan with at most so many clips in a part; 0: as is usual.

        Raises:
            MissingClipsError: files of clips are missing, and `allow_missing` is False.
        """
        sizes = file_sizes(clips)
        _tell_missing(clips, sizes, allow_missing)
        size = PART_SIZES[settings.provenance["device"]]
        part_size = max(most or size.clips, -(-len(clips) // MOST_PARTS))
        slices = tuple(cut(lengths_s(clips, sizes), part_size, size.seconds))
        return cls(clips, settings, slices, sizes, width, part_size)

    @cached_property
    def part_settings(self) -> dict[str, JsonValue]:
        """What every part of this plan says of how it was made."""
        return {**self.settings.of_parts, "part_size": self.part_size}

    def part(
        self, place: Slice, embeddings: Array, samples: Array, checksums: Array, failed: Mapping[int, str]
    ) -> Part:
        """The part of a slice: (K, D), (K,) and (K,) of the clips that did not fail."""
        ids, order = self.clips.ids(place.start, place.stop), self.clips.class_names
        class_names: JsonValue = None if order is None else list(order)
        info = PartInfo(
            start=place.start,
            stop=place.stop,
            clips=len(self.clips),
            listing=self.clips.fingerprint(place.start, place.stop),
            settings=self.part_settings,
            notes={**self.settings.notes, "class_names": class_names},
            padded=int((samples < self.settings.provenance["min_samples"]).sum()),
            failed={row: tuple(as_text([ids[row], why])) for row, why in sorted(failed.items())},
        )
        kept = [row for row in range(len(place)) if row not in failed]
        columns: dict[str, Sequence[object] | Array] = {
            "clip_id": as_text([ids[row] for row in kept]),
            "samples": samples,
            "audio_checksum": checksums,
        }
        columns["fold"] = [self.clips.columns["fold"][place.start + row].as_py() for row in kept]
        for name in ("class_name", "split", "group"):
            names = self.clips.names(name, place.start, place.stop)
            columns[name] = as_text([names[row] for row in kept])
        return make_part(info, columns, embeddings)

    def is_missing(self, row: int) -> bool:
        """Whether a clip's file is missing."""
        return bool(self.sizes[row] == MISSING)


def cut(lengths: Array, most_clips: int, most_seconds: float) -> Iterator[Slice]:
    """Cut clips of these lengths (N,) in seconds into parts.

    First into slots of so many clips, then a slot with more audio than allowed into several parts. So a clip that changes
    moves no borders but those of its slot.
    """
    most_seconds = max(most_seconds, float(lengths.sum()) / MOST_PARTS)
    for start in range(0, len(lengths), most_clips):
        stop, seconds = min(start + most_clips, len(lengths)), 0.0
        if lengths[start:stop].sum() > most_seconds:
            for row in range(start, stop):
                if seconds and seconds + lengths[row] > most_seconds:
                    yield Slice(start, row)
                    start, seconds = row, 0.0
                seconds += lengths[row]
        yield Slice(start, stop)


def lengths_s(clips: ClipList, sizes: Array) -> Array:
    """(N,) seconds of each clip: of its segment, or estimated from its file's size."""
    start, end = (clips.columns[name].to_numpy() for name in ("start_s", "end_s"))
    estimated = np.maximum(sizes, 0) / ASSUMED_BYTES_PER_SECOND
    return np.where(np.isnan(end), estimated, end - np.nan_to_num(start))


def file_sizes(clips: ClipList) -> Array:
    """(N,) int64, the size of each clip's file; MISSING where there is none. One that cannot be looked at for another
    reason has size 0, and fails where it is read."""
    paths, sizes = clips.paths(), np.empty(len(clips), np.int64)
    with ThreadPoolExecutor(16) as threads:  # a network disk takes its time for each
        for start in range(0, len(clips), AT_A_TIME):
            some = list(itertools.islice(paths, AT_A_TIME))
            batches = [some[first : first + PER_THREAD] for first in range(0, len(some), PER_THREAD)]
            sizes[start : start + len(some)] = list(itertools.chain(*threads.map(_sizes_of, batches)))
    return sizes


def _sizes_of(paths: Sequence[Path]) -> list[int]:
    known = {path: _size_of(path) for path in dict.fromkeys(paths)}
    return [known[path] for path in paths]


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except (OSError, ValueError):
        return 0


def _tell_missing(clips: ClipList, sizes: Array, is_allowed: bool) -> None:
    """Tell of missing files in one line; MissingClipsError if that is not allowed."""
    missing = np.flatnonzero(sizes == MISSING)
    if not len(missing):
        return
    names = ", ".join(clips.ids(row, row + 1)[0] for row in missing[:3].tolist()) + ", ..." * (len(missing) > 3)
    words = f"{len(missing):,} of {len(clips):,} clips are missing ({names})"
    if not is_allowed:
        raise MissingClipsError(
            f"{words} in {clips.root}; unpack the data set again, or leave them out with --allow-missing, which is "
            "recorded in the results"
        )
    print(f"{words}; they are left out", file=sys.stderr)


def not_found(clip: Clip) -> str:
    """Why a missing clip failed, as `read_audio` says it too."""
    return str(AudioError(f"{clip.path}: not found"))
