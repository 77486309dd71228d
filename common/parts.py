"""Part files: the embeddings of a slice of a clip list as Parquet, with all that says how they were made.

A row per embedded clip: ``clip_id``, ``class_name``, ``split``, ``fold``, ``group``, ``samples`` (the waveform's length),
``audio_checksum`` (of its file) and ``embedding``, a list of fixed size. pandas, DuckDB, Polars and `datasets` read them.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from common.arrays import Array
from common.files import DamagedFileError, write_atomically

NAME = re.compile(r"part-(\d{9})-(\d{9})\.parquet")
# Keys of the file's metadata; the checksums are of the provenance, and of all.
METADATA, CHECKSUMS = b"provenance", b"checksums"
NAMES = pa.dictionary(pa.int32(), pa.string())
LABELS = {"class_name": NAMES, "split": NAMES, "fold": pa.int64(), "group": NAMES}
PER_CLIP = {"clip_id": pa.string(), **LABELS, "samples": pa.int64(), "audio_checksum": pa.int64()}


@dataclass(frozen=True, order=True)
class Slice:
    """The clips from `start` to `stop` of a list."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def file_name(self) -> str:
        """The name of its part."""
        return f"part-{self.start:09d}-{self.stop:09d}.parquet"


class PartInfo(BaseModel):
    """What a part says of itself.

    Attributes:
        start, stop: its slice.
        clips: the length of the list when the part was made.
        listing: a checksum of its clips' ids, labels, splits, folds and groups.
        settings: how its embeddings were made, as far as that decides whether they can be used.
        notes: the rest of their provenance.
        padded, missing: how many clips were padded to the encoder's minimum, and how many have no file.
        failed: row within the slice -> (clip id, why it could not be embedded).
    """

    model_config = ConfigDict(frozen=True)
    start: int
    stop: int
    clips: int
    listing: str
    settings: dict[str, JsonValue]
    notes: dict[str, JsonValue]
    padded: int
    missing: int
    failed: dict[int, tuple[str, str]]

    @property
    def place(self) -> Slice:
        """Its slice."""
        return Slice(self.start, self.stop)


@dataclass(frozen=True)
class Part:
    """A part's content: `table` has a row for each clip of the slice that did not fail."""

    info: PartInfo
    table: pa.Table = field(repr=False)

    @property
    def embeddings(self) -> Array:
        """(K, D) float32."""
        column = self.table["embedding"].combine_chunks()
        return column.flatten().to_numpy().reshape(len(column), column.type.list_size)  # type: ignore[no-any-return]

    def numbers(self, column: str) -> Array:
        """(K,) int64: ``samples`` or ``audio_checksum``."""
        return self.table[column].to_numpy()  # type: ignore[no-any-return]

    @property
    def rows(self) -> Array:
        """(K,) int64: the places of the table's rows in the slice."""
        return np.setdiff1d(np.arange(len(self.info.place)), list(self.info.failed))

    @property
    def checksum(self) -> str:
        """Of all that it holds."""
        digest = hashlib.sha256(self.info.model_dump_json().encode())
        digest.update(json.dumps(self.table.select(list(PER_CLIP)).to_pydict()).encode())
        digest.update(self.embeddings.tobytes())
        return digest.hexdigest()


def make_part(info: PartInfo, per_clip: Mapping[str, Sequence[object] | Array], embeddings: Array) -> Part:
    """A part from the columns of PER_CLIP and (K, D) float32 embeddings."""
    arrays = [pa.array(per_clip[name], kind) for name, kind in PER_CLIP.items()]
    width = embeddings.shape[1]
    values = pa.array(np.ascontiguousarray(embeddings, np.float32).ravel(), pa.float32())
    lists = pa.FixedSizeListArray.from_arrays(values, width)
    schema = pa.schema([*PER_CLIP.items(), pa.field("embedding", lists.type, nullable=False)])
    return Part(info, pa.Table.from_arrays([*arrays, lists], schema=schema))


def write_part(folder: Path, part: Part) -> None:
    """Write a part atomically; equal parts give equal bytes."""
    text = part.info.model_dump_json()
    metadata = {METADATA: text, CHECKSUMS: f"{_checksum(text)} {part.checksum}"}
    buffer = io.BytesIO()
    # Floats do not get smaller.
    pq.write_table(
        part.table.replace_schema_metadata(metadata), buffer, compression="none", use_dictionary=list(LABELS)
    )
    write_atomically(folder / part.info.place.file_name, buffer.getvalue())


def read_info(path: Path) -> PartInfo:
    """What a part says of itself. Errors as for `read_part`."""
    return _reading(path, lambda: _info(pq.read_schema(path), path))  # type: ignore[no-any-return]


def read_part(path: Path) -> Part:
    """Read a part and compare its checksums.

    Raises:
        DamagedFileError: it is damaged, or not a part.
        OSError: it cannot be opened.
    """

    def read() -> Part:
        table = pq.read_table(path, partitioning=None)
        part = Part(_info(table.schema, path), table)
        if table.schema.metadata[CHECKSUMS].decode().split()[1] != part.checksum:
            raise DamagedFileError("it does not have the checksum that was written with it")
        return part

    return _reading(path, read)  # type: ignore[no-any-return]


def _reading(path: Path, read: Any) -> Any:
    with path.open("rb"):  # OSError, before others can be taken for damage
        pass
    try:
        return read()
    except DamagedFileError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise DamagedFileError(" ".join(str(error).split())[:120] or type(error).__name__) from error


def _info(schema: pa.Schema, path: Path) -> PartInfo:
    metadata = schema.metadata or {}
    text = metadata.get(METADATA, b"").decode(errors="replace")
    if not text or metadata.get(CHECKSUMS, b"").split()[:1] != [_checksum(text).encode()]:
        raise DamagedFileError("it does not say how its rows were made")
    try:
        info = PartInfo.model_validate_json(text)
    except ValidationError as error:
        raise DamagedFileError("it does not say how its rows were made") from error
    names = set(schema.names)
    if info.place.file_name != path.name or not names >= {*PER_CLIP, "embedding"}:
        raise DamagedFileError("it is not the part that its name says")
    return info


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def part_files(folder: Path) -> dict[Slice, Path]:
    """The parts in a folder, in order."""
    matches = [(NAME.fullmatch(path.name), path) for path in folder.glob("part-*")]
    return {
        Slice(int(match[1]), int(match[2])): path
        for match, path in sorted(matches, key=lambda pair: pair[1])
        if match is not None
    }


def refuse_gaps(infos: Sequence[PartInfo], folder: Path) -> None:
    """DamagedFileError if parts in order are not all of a list."""
    expected = 0
    for info in infos:
        if info.start != expected:
            raise DamagedFileError(f"{folder}: clips {expected:,} to {info.start:,} are in no part, or in two")
        expected = info.stop
    if infos and expected != infos[-1].clips:
        raise DamagedFileError(f"{folder}: clips {expected:,} to {infos[-1].clips:,} are in no part yet")
