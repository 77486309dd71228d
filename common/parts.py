"""Part files: the embeddings of a slice of a clip list as Parquet, with all that says how they were made.

A row per embedded clip: ``clip_id``, ``class_name``, ``split``, ``fold``, ``group``, ``samples`` (the waveform's length),
``audio_checksum`` (of its file) and ``embedding``, a list of fixed size. pandas, DuckDB, Polars and `datasets` read them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, JsonValue

from common.arrays import Array
from common.files import DamagedFileError, write_atomically

Read = TypeVar("Read")
NAME = re.compile(r"part-(\d{9})-(\d{9})\.parquet")
# Keys of the file's metadata; the checksums are of the provenance, and of all.
METADATA, CHECKSUMS = b"provenance", b"checksums"
NAMES = pa.dictionary(pa.int32(), pa.string())
LABELS = {"class_name": NAMES, "split": NAMES, "fold": pa.int64(), "group": NAMES}
PER_CLIP = {"clip_id": pa.string(), **LABELS, "samples": pa.int64(), "audio_checksum": pa.int64()}


def file_name(place: range) -> str:
    """The name of the part that holds these clips of a list."""
    return f"part-{place.start:09d}-{place.stop:09d}.parquet"


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
    def place(self) -> range:
        """The places of its clips in the list."""
        return range(self.start, self.stop)


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

    @property
    def rows(self) -> list[int]:
        """K places in the list: those of the table's rows."""
        return [row for row in self.info.place if row - self.info.start not in self.info.failed]

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
    write_atomically(folder / file_name(part.info.place), buffer.getvalue())


def read_info(path: Path) -> PartInfo:
    """What a part says of itself. Errors as for `read_part`."""
    with _reading(path):
        return _info(pq.read_schema(path), path)


def read_part(path: Path) -> Part:
    """Read a part and compare its checksums.

    Raises:
        DamagedFileError: it is damaged, or not a part; the message names it.
        OSError: it cannot be opened.
    """
    with _reading(path):
        table = pq.read_table(path, partitioning=None)
        part = Part(_info(table.schema, path), table)
        if table.schema.metadata[CHECKSUMS].decode().split()[1] != part.checksum:
            raise ValueError("it does not have the checksum that was written with it")
        return part


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    with path.open("rb"):  # OSError, before others can be taken for damage
        pass
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        cause = " ".join(str(error).split())[:120] or type(error).__name__
        raise DamagedFileError(f"{path} is damaged ({cause})") from error


def _info(schema: pa.Schema, path: Path) -> PartInfo:
    metadata = schema.metadata or {}
    text = metadata.get(METADATA, b"").decode(errors="replace")
    if metadata.get(CHECKSUMS, b"").split()[:1] != [_checksum(text).encode()]:
        raise ValueError("it does not say how its rows were made")
    info = PartInfo.model_validate_json(text)
    if file_name(info.place) != path.name or not {*schema.names} >= {*PER_CLIP, "embedding"}:
        raise ValueError("it is not the part that its name says")
    return info


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def part_files(folder: Path) -> dict[range, Path]:
    """The parts in a folder, in order."""
    paths = sorted(folder.glob("part-*"))
    return {range(int(match[1]), int(match[2])): path for path in paths if (match := NAME.fullmatch(path.name))}


def read_or_remove(path: Path, read: Callable[[Path], Read]) -> Read | None:
    """What `read` makes of a part. None: it is damaged, which is told, and removed; or another process has joined it."""
    try:
        return read(path)
    except DamagedFileError as error:
        print(f"{error}; its clips are computed again")
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    return None
