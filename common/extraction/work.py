"""What there is to do: the clip list cut into parts, which depends on the list and its files alone."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import JsonValue

from common.arrays import Array
from common.errors import UserError
from common.extraction.clip_list import ClipList, as_text
from common.extraction.prefetch import Embedded, Failed
from common.extraction.settings import ExtractionSettings
from common.files import OutputError, describe_difference
from common.parts import LABELS, Part, PartInfo, file_name, make_part, part_files, read_info, read_or_remove

MOST_PARTS = 4096
ASSUMED_BYTES_PER_SECOND = 64_000  # of a file, to compare it with a segment of known length
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
class Work:
    """What there is to do, the same for every process that does a share of it.

    Attributes:
        clips, settings: what is embedded, and how.
        slices: the parts, in order.
        sizes: (N,) int64, the clips' files in bytes; MISSING where there is none.
        part_size: the most clips in a part.
        folder: where the parts are.
        output: the file that they are joined into; None: the folder is the output.
        before: `stamp` of the output before anything else was looked at.
    """

    clips: ClipList
    settings: ExtractionSettings
    slices: tuple[range, ...]
    sizes: Array
    part_size: int
    folder: Path
    output: Path | None
    before: int

    @cached_property
    def part_settings(self) -> dict[str, JsonValue]:
        """What every part says of how it was made."""
        return {**self.settings.of_parts, "part_size": self.part_size}

    @property
    def identity(self) -> str:
        """A checksum of the settings."""
        return hashlib.sha256(json.dumps(self.part_settings, sort_keys=True).encode()).hexdigest()

    def path(self, place: range) -> Path:
        """A part's file."""
        return self.folder / file_name(place)

    def missing(self) -> list[range]:
        """The parts that do not exist."""
        made = part_files(self.folder)
        return [place for place in self.slices if place not in made]

    def is_written(self) -> bool:
        """Whether another process has joined the parts."""
        return self.output is not None and stamp(self.output) != self.before

    def n_done(self) -> int:
        """How many clips are in parts that exist."""
        return sum(map(len, set(part_files(self.folder)) & set(self.slices)))

    def is_made(self, place: range) -> bool:
        """Whether there is nothing left to do for a part."""
        return self.path(place).exists() or self.is_written()

    def part(self, place: range, outcomes: Mapping[int, Embedded | Failed]) -> Part:
        """The part of a slice, from what became of the clips in its rows of the list."""
        clips = self.clips.of(place)
        ids = dict(zip(place, clips.ids(), strict=True))
        failed = [outcome for row in place if isinstance(outcome := outcomes[row], Failed)]
        kept = [outcome for row in place if isinstance(outcome := outcomes[row], Embedded)]
        samples = np.array([clip.samples for clip in kept], np.int64)
        info = PartInfo(
            start=place.start,
            stop=place.stop,
            clips=len(self.clips),
            listing=clips.fingerprint(),
            settings=self.part_settings,
            notes={
                **self.settings.notes,
                "class_names": self.clips.class_names,
                "is_multilabel": self.clips.is_multilabel,
            },
            padded=int((samples < self.settings.provenance["min_samples"]).sum()),
            missing=sum(self.sizes[clip.row].item() == MISSING for clip in failed),
            failed={clip.row - place.start: (ids[clip.row], as_text(clip.why) or "") for clip in failed},
        )
        labels = self.clips.columns.take(pa.array([clip.row for clip in kept], pa.int64()))
        columns = {
            "clip_id": [ids[clip.row] for clip in kept],
            **{name: labels[name].to_pylist() for name in LABELS},
            "samples": samples,
            "audio_checksum": [clip.checksum for clip in kept],
        }
        embeddings = np.array([clip.embedding for clip in kept], np.float32).reshape(-1, self.settings.width)
        return make_part(info, columns, embeddings)


def cut(lengths: Array, most_clips: int, most_seconds: float) -> Iterator[range]:
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
                    yield range(start, row)
                    start, seconds = row, 0.0
                seconds += lengths[row]
        yield range(start, stop)


def lengths_s(clips: ClipList, sizes: Array) -> Array:
    """(N,) seconds of each clip: of its segment, or estimated from its file's size."""
    start, end = (clips.columns[name].to_numpy() for name in ("start_s", "end_s"))
    estimated = np.maximum(sizes, 0) / ASSUMED_BYTES_PER_SECOND
    return np.where(np.isnan(end), estimated, end - np.nan_to_num(start))


def file_sizes(clips: ClipList) -> Array:
    """(N,) int64, the size of each clip's file; MISSING where there is none. One that cannot be looked at for another
    reason has size 0, and fails where it is read."""

    def sizes_from(start: int) -> list[int]:
        paths = clips.of(range(start, start + PER_THREAD)).paths()
        sizes = {path: _size_of(path) for path in set(paths)}
        return [sizes[path] for path in paths]

    with ThreadPoolExecutor(16) as threads:  # a network disk takes its time for each
        batches = threads.map(sizes_from, range(0, len(clips), PER_THREAD))
        return np.fromiter(itertools.chain.from_iterable(batches), np.int64, len(clips))


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except (OSError, ValueError):
        return 0


def tell_missing(clips: ClipList, sizes: Array, is_allowed: bool) -> None:
    """Tell of missing files in one line; MissingClipsError if that is not allowed."""
    missing = np.flatnonzero(sizes == MISSING)
    if not len(missing):
        return
    names = ", ".join(clips.of(range(row, row + 1)).ids()[0] for row in missing[:3].tolist()) + ", ..." * (
        len(missing) > 3
    )
    words = f"{len(missing):,} of {len(clips):,} clips are missing ({names})"
    if not is_allowed:
        raise MissingClipsError(
            f"{words} in {clips.root}; unpack the data set again, or leave them out with --allow-missing, which is "
            "recorded in the results"
        )
    print(f"{words}; they are left out", file=sys.stderr)


def stamp(output: Path) -> int:
    """Tells a file from the one that replaces it; 0: there is none."""
    try:
        return output.stat().st_mtime_ns
    except OSError:
        return 0


def check_folder(work: Work, overwrite: bool) -> None:
    """Look at the parts that exist: a damaged one is removed, to be made again; so are those of different settings or of a
    different clip list, if `overwrite`.

    Raises:
        OutputError: there are some, and `overwrite` is False; or the folder holds other files.
    """
    folder = work.folder
    if work.output is None and folder.is_dir():
        names = [path.name for path in folder.iterdir() if not re.match(r"\.|part-|embeddings-|.*\.claim$", path.name)]
        if names:
            raise OutputError(f"{folder} holds files that are not parts, such as {min(names)}; give an empty folder")
    outdated, infos, planned = [], read_infos(folder), set(work.slices)
    for path, info in infos.items():
        different = describe_difference(info.settings, work.part_settings)
        if different and not overwrite:
            raise OutputError(
                f"{folder} holds parts made with different settings ({different}); --overwrite discards them"
            )
        if different or info.place not in planned or info.listing != work.clips.of(info.place).fingerprint():
            outdated.append(path)
    if outdated and not overwrite:
        raise OutputError(
            f"{folder} holds parts of a different clip list: {len(infos) - len(outdated):,} of {len(infos):,} are still good; "
            "--overwrite keeps those and makes the others again"
        )
    for path in outdated:
        path.unlink()


def read_infos(folder: Path) -> dict[Path, PartInfo]:
    """What the parts in a folder say of themselves; a damaged one is told and removed."""
    paths = part_files(folder).values()
    return {path: info for path in paths if (info := read_or_remove(path, read_info)) is not None}
