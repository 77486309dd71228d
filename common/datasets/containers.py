"""Clips inside larger files: the rows of Parquet files whose audio column holds the bytes, and the members of WebDataset tars.

Such a clip's path is ``CONTAINER/PLACE/NAME``: ``shards/000.tar/1536+88244/dog.flac`` (offset and bytes) or
``data/train.parquet/17/dog.wav`` (row). So a path alone says where the bytes are, to any process, without an index.
"""

from __future__ import annotations

import bisect
import json
import re
import tarfile
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.datasets.clip import AUDIO_SUFFIXES
from common.datasets.layout import DatasetError, DatasetNote
from common.datasets.rows import Rows, as_cell
from common.errors import first_problem

PLACE = re.compile(r"(.+?\.(?:parquet|tar))/(\d+)(?:\+(\d+))?/(.+)")
READ_BYTES = 1 << 25  # of a Parquet column at a time
KEPT_ROWS = 40  # read but perhaps not asked for yet, since threads ask for rows out of order
SIDECARS = ("cls", "txt")  # a member with the label alone


@dataclass(frozen=True)
class Member:
    """Where in a container a clip's bytes are."""

    container: Path
    start: int  # the row of a Parquet file, or the offset in a tar
    size: int | None  # bytes in a tar
    name: str  # in the container

    @classmethod
    def of(cls, path: Path) -> Member | None:
        """Read a clip's path; None for a file of its own."""
        match = PLACE.fullmatch(path.as_posix())
        if match is None or path.exists():
            return None
        return cls(Path(match[1]), int(match[2]), int(match[3]) if match[3] else None, match[4])

    @property
    def n_bytes(self) -> int:
        """Size in bytes; for a row of a Parquet file, the mean over its rows. OSError if there is no container."""
        modified_ns = self.container.stat().st_mtime_ns
        return _audio_column(self.container, modified_ns).mean_bytes if self.size is None else self.size

    def read(self) -> bytes:
        """Its bytes; OSError if they cannot be read."""
        if self.size is None:
            return _audio_column(self.container, self.container.stat().st_mtime_ns).read(self.start)
        with self.container.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


class _AudioColumn:
    """Reads the audio of a Parquet file row by row: quickly in order, and from the start of a row group after a jump."""

    def __init__(self, path: Path, modified_ns: int) -> None:
        """Open the file; OSError if it is damaged. `modified_ns` tells it from an earlier one of its name."""
        del modified_ns
        try:
            self.file = pq.ParquetFile(path, buffer_size=1 << 20)  # otherwise a row group is read whole
        except pa.ArrowException as error:
            raise OSError(f"is damaged ({error})") from error
        self.name, groups = audio_column(self.file.schema_arrow), self.file.metadata
        counts = (groups.row_group(number).num_rows for number in range(groups.num_row_groups))
        self.starts = list(accumulate(counts, initial=0))
        self.mean_bytes = path.stat().st_size // max(1, groups.num_rows)
        self.lock = threading.Lock()
        self.recent: dict[int, bytes | None] = {}
        # The batches that come next, their row group, and the first row that they hold.
        self.ahead: Iterator[Any] = iter(())
        self.group, self.next_row = -1, 0

    def read(self, row: int) -> bytes:
        """The bytes of a row; OSError if there are none."""
        with self.lock:
            if row not in self.recent:
                try:
                    self._go_to(row)
                except pa.ArrowException as error:
                    raise OSError(f"row {row} cannot be read ({error})") from error
            content = self.recent[row]
        if content is None:
            raise OSError(f"row {row} holds no audio")
        return content

    def _go_to(self, row: int) -> None:
        if not 0 <= row < self.starts[-1]:
            raise OSError(f"it has no row {row}")
        group = bisect.bisect_right(self.starts, row) - 1
        if group != self.group or row < self.next_row:
            size = min(64, max(1, READ_BYTES // max(1, self.mean_bytes)))
            self.ahead = self.file.iter_batches(size, [group], [f"{self.name}.bytes"])
            self.group, self.next_row = group, self.starts[group]
        while self.next_row <= row:
            batch = next(self.ahead).column(0).field("bytes")
            self.recent = dict(list(self.recent.items())[-KEPT_ROWS:])
            self.recent |= zip(range(self.next_row, self.next_row + len(batch)), batch.to_pylist(), strict=True)
            self.next_row += len(batch)


_audio_column = lru_cache(maxsize=8)(_AudioColumn)


def audio_column(schema: pa.Schema) -> str | None:
    """The column ``struct<bytes, path>``, as `datasets` writes audio; DatasetError if it may be one of several."""
    fields = [field for field in schema if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0]
    names = [field.name for field in fields if field.name not in ("image", "video")]
    if len(names) > 1 and "audio" not in names:
        raise DatasetError(f"the columns {', '.join(names)} all hold bytes; call the one to take audio")
    return "audio" if "audio" in names else next(iter(names), None)


def name_of(path: Path, root: Path) -> str:
    """A clip's path below the root; of one in a container, its name there."""
    member = Member.of(path)
    return member.name if member else path.relative_to(root).as_posix()


def read_parquet(path: Path) -> Rows:
    """The rows of a Parquet or Arrow file as text; numbers of a ``ClassLabel`` become its names. Of the audio column, only the
    names of the files are read. DatasetError: it cannot be read."""
    try:
        schema = pq.read_schema(path)
        audio = audio_column(schema)
        if "embedding" in schema.names:
            raise DatasetError(f"{path} holds embeddings, not audio; give it with --features")
        if any(pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type) for field in schema):
            raise DatasetError(f"{path} holds bytes, but not as `datasets` writes audio: struct<bytes, path>")
        plain = [field.name for field in schema if field.name != audio]
        table = pq.ParquetFile(path).read(columns=[*plain, f"{audio}.path"] if audio else plain)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read as Parquet: {first_problem(error)}; get it again") from error
    names = _class_labels(schema)
    columns = {
        name: [_label_of(cell, names[name]) if name in names else as_cell(cell) for cell in table[name].to_pylist()]
        for name in plain
    }
    if audio:
        files = [(cell and cell["path"]) or f"row{row}" for row, cell in enumerate(table[audio].to_pylist())]
        columns[audio] = [str(path / str(row) / re.split(r"[/\\]", file)[-1]) for row, file in enumerate(files)]
    return Rows(columns, [f"{path} row {row}" for row in range(len(table))], path, audio)


def _class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """Column -> the names that its numbers stand for, as `datasets` notes them."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        kinds = {name: kind.get("feature", kind) for name, kind in features.items()}  # a list's is below
        return {name: kind["names"] for name, kind in kinds.items() if "names" in kind}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _label_of(cell: Any, names: list[str]) -> str:
    """The name that a number stands for; -1 for none. Lists have several."""
    if isinstance(cell, list):
        return str([_label_of(number, names) for number in cell])
    return names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else "" if cell == -1 else as_cell(cell)


def read_tar(path: Path) -> Rows:
    """The clips of a tar in WebDataset's layout: members whose names are the same up to the first dot belong together. The
    entries of a ``.json`` are columns; ``.cls`` and ``.txt`` are the label. DatasetError: it cannot be read, or holds no
    audio."""
    members = list(_members(path))
    names = [name for name, _, _, content in members if content is None]
    # Up to the first dot, as WebDataset has it, unless several audio files would be one clip.
    key_of = partial(_key, is_short=len({_key(name, is_short=True) for name in names}) == len(names))
    if len(set(map(key_of, names))) < len(names):
        raise DatasetError(f"{path} has several audio files of one name, up to the dot; rename them")
    samples: dict[str, dict[str, str]] = defaultdict(dict)
    for name, start, size, content in members:
        key = key_of(name)
        if content is None:
            samples[key]["audio"] = str(path / f"{start}+{size}" / name)
            continue
        kind = name.rpartition(".")[2]
        try:
            entries = json.loads(content) if kind == "json" else {kind: content.decode()}
        except ValueError as error:
            what = "JSON" if kind == "json" else "text in UTF-8"
            raise DatasetError(f"{path}: {name} is not {what} ({error}); save it as such") from error
        if isinstance(entries, dict):
            cells = {str(column): as_cell(value) for column, value in entries.items()}
            samples[key] = {**cells, **samples[key]} if kind == "json" else {**samples[key], **cells}
    clips = {key: sample for key, sample in samples.items() if "audio" in sample}
    silent = [key for key in samples if key not in clips]
    if silent:
        text = f"{path}: {len(silent)} entries without audio that can be read are left out, such as {silent[0]}"
        warnings.warn(text, DatasetNote, stacklevel=2)
    if not clips:
        raise DatasetError(f"{path} holds no audio files")
    columns = {
        name: [sample.get(name, "") for sample in clips.values()]
        for name in dict.fromkeys(name for sample in clips.values() for name in sample)
    }
    return Rows(columns, [f"{path} {key}" for key in clips], path, "audio")


def _key(name: str, is_short: bool) -> str:
    """A member's name up to its first or its last dot."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0] if is_short else file.rpartition('.')[0]}"


def _members(path: Path) -> Iterator[tuple[str, int, int, bytes | None]]:
    """Name, offset and size of audio files, and of small files beside them the content too."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name, kind = member.name.removeprefix("./"), member.name.rpartition(".")[2].lower()
                is_audio = f".{kind}" in AUDIO_SUFFIXES
                if name.rpartition("/")[2].startswith(".") or not (is_audio or kind in ("json", *SIDECARS)):
                    continue
                if is_audio and not member.isfile():
                    raise DatasetError(f"{path}: {name} is a link; make the tar with --hard-dereference --dereference")
                if is_audio:
                    yield name, member.offset_data, member.size, None
                elif file := archive.extractfile(member):
                    yield name, member.offset_data, member.size, file.read(1 << 20)
    except (tarfile.TarError, OSError) as error:
        raise DatasetError(f"{path} cannot be read as a tar ({error}): it is cut off, or compressed") from error
