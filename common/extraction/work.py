"""What there is to do: the clip list cut into parts, which depends on the list and its files alone; and how far it is."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import platform
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import soundfile
import torch
from pydantic import JsonValue

from common.arrays import Array
from common.datasets import DatasetMissingError
from common.datasets.containers import Member
from common.encoder import Encoder, Output
from common.errors import UserError
from common.extraction.claims import alive_claims
from common.extraction.clip_list import ClipList, as_text
from common.features import SEVERAL, Provenance
from common.files import DamagedFileError, OutputError, describe_difference
from common.parts import LABELS, NAME, Part, PartInfo, file_name, make_part, part_files, read_info, read_or_remove

# Of a file's provenance, what does not decide whether earlier work can be used.
NOT_DECISIVE = ("origin", "release", "parameters", "min_samples", "default_output", "versions")
PACKAGES = ("torch", "numpy", "soundfile", "soxr")
MOST_JOINED = 1_000_000  # clips; with more, the folder of parts is the feature set
MOST_PARTS = 4096
# The most clips and the most seconds of audio in a part; with millions of clips, both are larger. What a kill costs: half a
# minute on a CPU. On a GPU a call of the encoder takes 20 minutes of audio.
PART_SIZES = {"cpu": (64, 600.0), "mps": (64, 600.0), "cuda": (1024, 7200.0)}
ASSUMED_BYTES_PER_SECOND = 64_000  # of a file, to compare it with a segment of known length
PER_THREAD = 256  # files that a thread looks for; a task for each takes ten times as long
MISSING = -1
RECENT_S = 600.0  # the speed is that of the last ten minutes of work


class ExtractionError(UserError):
    """Clips cannot be embedded by what was asked for, or none could be."""


@dataclass(frozen=True)
class Embedded:
    """A clip's embedding (D,), its waveform's length and largest value, and a checksum of its file; `row` is its place in the
    list."""

    row: int
    embedding: Array
    samples: int
    checksum: int
    peak: float


@dataclass(frozen=True)
class Failed:
    """Why a clip has no embedding."""

    row: int
    why: str


Outcome = Embedded | Failed


@dataclass(frozen=True)
class ExtractionSettings:
    """The part of a feature file's provenance that is known from the start, and the numbers per clip."""

    provenance: Provenance
    width: int

    @classmethod
    def of(cls, clips: ClipList, encoder: Encoder, outputs: Sequence[Output]) -> ExtractionSettings:
        is_one, info = len(outputs) == 1, encoder.info
        provenance = Provenance(
            dataset=clips.dataset,
            kind=info.kind.value,
            encoder=info.encoder,
            checkpoint=info.checkpoint,
            release=info.release,
            code=info.code,
            padding=info.padding,
            condition=info.condition,
            precision=info.precision,
            layer=outputs[0].layer if is_one else SEVERAL,
            pool=outputs[0].pool if is_one else SEVERAL,
            sample_rate=encoder.sample_rate,
            parameters=info.parameters,
            min_samples=info.min_samples,
            clips=len(clips),
            clip_list=clips.fingerprint(),
            device=encoder.device.type,
        )
        if clips.origin:
            provenance["origin"] = clips.origin
        if not is_one:
            provenance["outputs"] = [(output.layer, output.pool, output.width) for output in outputs]
            first = encoder.default_output if encoder.default_output in outputs else outputs[0]
            provenance["default_output"] = (first.layer, first.pool)
        provenance["versions"] = {
            "python": platform.python_version(),
            **{name: version(name) for name in (*PACKAGES, *info.packages)},
            "libsndfile": soundfile.__libsndfile_version__,
        }
        if encoder.device.type == "cpu":
            provenance["versions"]["instructions"] = torch.backends.cpu.get_cpu_capability()
        return cls(provenance, sum(output.width for output in outputs))

    @cached_property
    def of_parts(self) -> dict[str, JsonValue]:
        """What parts of one extraction share. A part knows its clips by itself. Rounding differs between devices."""
        return self._as_json(self.provenance.keys() - {*NOT_DECISIVE, "clips", "clip_list"})

    @cached_property
    def notes(self) -> dict[str, JsonValue]:
        """What parts note beside."""
        return self._as_json(NOT_DECISIVE)

    def _as_json(self, keys: Collection[str]) -> dict[str, JsonValue]:
        return dict(json.loads(json.dumps({key: value for key, value in self.provenance.items() if key in keys})))


@dataclass(frozen=True)
class Work:
    """What there is to do, the same for every process that does a share of it."""

    clips: ClipList
    settings: ExtractionSettings
    slices: tuple[range, ...]  # the parts, in order
    sizes: Array  # (N,) int64, the clips' files in bytes; MISSING where there is none
    part_size: int  # the most clips in a part
    folder: Path  # where the parts are
    output: Path | None  # the file that they are joined into; None: the folder is the output
    before: int  # `stamp` of the output before anything else was looked at

    @cached_property
    def part_settings(self) -> dict[str, JsonValue]:
        """What every part says of how it was made."""
        return {**self.settings.of_parts, "part_size": self.part_size}

    @property
    def identity(self) -> str:
        return hashlib.sha256(json.dumps(self.part_settings, sort_keys=True).encode()).hexdigest()

    def path(self, place: range) -> Path:
        return self.folder / file_name(place)

    def missing(self) -> list[range]:
        made = part_files(self.folder)
        return [place for place in self.slices if place not in made]

    def n_done(self) -> int:
        """How many clips are in parts that exist."""
        return len(self.clips) - sum(map(len, self.missing()))

    def is_written(self) -> bool:
        """Whether another process has joined the parts."""
        return self.output is not None and stamp(self.output) != self.before

    def part(self, place: range, outcomes: Mapping[int, Outcome]) -> Part:
        """The part of a slice, from what became of the clips in its rows of the list."""
        clips = self.clips.of(place)
        ids = dict(zip(place, clips.ids(), strict=True))
        failed = [outcome for row in place if isinstance(outcome := outcomes[row], Failed)]
        kept = [outcome for row in place if isinstance(outcome := outcomes[row], Embedded)]
        samples = np.array([clip.samples for clip in kept], np.int64)
        about_clips = {"class_names": self.clips.class_names, "is_multilabel": self.clips.is_multilabel}
        info = PartInfo(
            start=place.start,
            stop=place.stop,
            clips=len(self.clips),
            listing=clips.fingerprint(),
            settings=self.part_settings,
            notes={**self.settings.notes, **about_clips},
            padded=int((samples < self.settings.provenance["min_samples"]).sum()),
            missing=sum(self.sizes[clip.row].item() == MISSING for clip in failed),
            failed={clip.row - place.start: (ids[clip.row], as_text(clip.why) or "") for clip in failed},
        )
        labels = self.clips.columns.select(list(LABELS)).take(pa.array([clip.row for clip in kept], pa.int64()))
        columns = labels.to_pydict() | {
            "clip_id": [ids[clip.row] for clip in kept],
            "samples": samples,
            "audio_checksum": [clip.checksum for clip in kept],
            "peak": [clip.peak for clip in kept],
        }
        embeddings = np.array([clip.embedding for clip in kept], np.float32).reshape(-1, self.settings.width)
        return make_part(info, columns, embeddings)


def parts_folder(output: Path, n_clips: int) -> Path:
    """Where the parts of an output are: it is their folder, unless its name ends in ``.pt``. With too many clips for one file,
    that is a folder's name too."""
    if output.suffix != ".pt":
        return output
    return output.with_suffix("") if n_clips > MOST_JOINED else output.with_name(output.name + ".partial")


def cut(lengths: Array, most_clips: int, most_seconds: float) -> Iterator[range]:
    """Cut clips of these lengths (N,) in seconds into slots of so many clips, and a slot with more audio than allowed into
    several parts. So a clip that changes moves no borders but those of its slot."""
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
    slices = (clips.of(range(start, start + PER_THREAD)) for start in range(0, len(clips), PER_THREAD))
    with ThreadPoolExecutor(16) as threads:  # a network disk takes its time for each
        batches = threads.map(lambda some: [_size_of(path) for path in some.paths()], slices)
        return np.fromiter(itertools.chain.from_iterable(batches), np.int64, len(clips))


def _size_of(path: Path) -> int:
    try:
        member = Member.of(path)
        return path.stat().st_size if member is None else member.n_bytes
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except (OSError, ValueError):
        return 0


def tell_missing(clips: ClipList, sizes: Array, is_allowed: bool) -> None:
    """Tell of missing files in one line; DatasetMissingError if that is not allowed."""
    missing = np.flatnonzero(sizes == MISSING).tolist()
    if not missing:
        return
    names = [clips.of(range(row, row + 1)).ids()[0] for row in missing[:3]] + ["..."] * (len(missing) > 3)
    words = f"{len(missing):,} of {len(clips):,} clips are missing ({', '.join(names)})"
    if not is_allowed:
        raise DatasetMissingError(
            f"{words} in {clips.root}; unpack the data set again (paths in a table count from the table's folder), or leave them "
            "out with --allow-missing, which is recorded in the results"
        )
    print(f"{words}; they are left out", file=sys.stderr)


def stamp(output: Path) -> int:
    """Tells a file from the one that replaces it; 0: there is none."""
    try:
        return output.stat().st_mtime_ns
    except OSError:
        return 0


def check_folder(work: Work, overwrite: bool) -> None:
    """Remove damaged parts, to be made again, and with `overwrite` those of different settings or of a different clip list.
    OutputError: some differ and `overwrite` is False, or the folder holds other files."""
    folder = work.folder
    if work.output is None and folder.is_dir():
        names = [path.name for path in folder.iterdir() if not re.match(r"\.|part-|embeddings-|.*\.claim$", path.name)]
        if names:
            raise OutputError(f"{folder} holds files that are not parts, such as {min(names)}; give an empty folder")
    outdated, infos, planned = [], read_infos(folder), set(work.slices)
    for path, info in infos.items():
        change = describe_difference(info.settings, work.part_settings)
        if change and not overwrite:
            raise OutputError(f"{folder} holds parts made with different settings ({change}); --overwrite drops them")
        if change or info.place not in planned or info.listing != work.clips.of(info.place).fingerprint():
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


class Status(NamedTuple):
    """How far an extraction is, as ``--status --json`` prints it; None: not known yet."""

    output: str
    is_finished: bool
    clips: int | None = None
    clips_done: int = 0
    clips_failed: int = 0
    parts_done: int = 0
    parts_in_work: int = 0
    parts_missing: int | None = None  # neither done nor in work, about
    clips_per_s: float | None = None  # of late, of all processes together; None: too few parts
    seconds_left: float | None = None


def read_status(output: Path) -> Status:
    """How far an extraction is, told from its parts alone."""
    if output.is_file():
        return Status(str(output), is_finished=True)
    to_join, to_stay = (parts_folder(output, n_clips) for n_clips in (0, MOST_JOINED + 1))
    folder = to_join if to_join.is_dir() else to_stay
    in_work = sum(NAME.fullmatch(path.stem) is not None for path in alive_claims(folder))
    infos: dict[Path, PartInfo] = {}
    for path in part_files(folder).values():
        with contextlib.suppress(DamagedFileError, FileNotFoundError):  # the next run tells, or another has joined them
            infos[path] = read_info(path)
    if not infos:
        return Status(str(output), is_finished=False, parts_in_work=in_work)
    last, done = max(infos.values(), key=lambda info: info.stop), sum(len(info.place) for info in infos.values())
    left, speed = last.clips - done, _speed(infos)
    return Status(
        str(output),
        is_finished=not left and folder == to_stay,
        clips=last.clips,
        clips_done=done,
        clips_failed=sum(len(info.failed) for info in infos.values()),
        parts_done=len(infos),
        parts_in_work=in_work,
        parts_missing=max(0, -(-left // int(str(last.settings["part_size"]))) - in_work),
        clips_per_s=speed,
        seconds_left=None if speed is None else left / speed,
    )


def _speed(infos: dict[Path, PartInfo]) -> float | None:
    """Clips per second of the parts that were written last, but the first of them, whose beginning is not known."""
    written = sorted((path.stat().st_mtime, len(info.place)) for path, info in infos.items())
    recent = [(moment, clips) for moment, clips in written if moment >= written[-1][0] - RECENT_S]
    seconds = recent[-1][0] - recent[0][0]
    return sum(clips for _, clips in recent[1:]) / seconds if seconds > 0 else None
