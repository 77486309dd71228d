"""Part files: the embeddings of a slice of a clip list as Parquet, with all that says how they were made; and a folder of
them as a FeatureSet.

A row per embedded clip: ``clip_id``, ``class_name``, ``split``, ``fold``, ``group``, ``samples`` (the waveform's length),
``audio_checksum`` (of its file), ``peak`` and ``embedding``, a list of fixed size. Of a folder with more than a million rows, the
embeddings are memory-mapped from one flat file, built beside the parts once.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict, JsonValue
from tqdm import tqdm

from common.arrays import Array
from common.datasets import LABEL_SEPARATOR
from common.features import PROVENANCE, Counts, FeatureFileError, FeatureSet
from common.files import DamagedFileError, write_atomically

Read = TypeVar("Read")
NAME = re.compile(r"part-(\d{9})-(\d{9})\.parquet")
# Keys of the file's metadata; the checksums are of the provenance, and of all.
METADATA, CHECKSUMS = b"provenance", b"checksums"
NAMES = pa.dictionary(pa.int32(), pa.string())
LABELS = {"class_name": NAMES, "split": NAMES, "fold": pa.int64(), "group": NAMES}
PER_CLIP = {"clip_id": pa.string(), **LABELS, "samples": pa.int64(), "audio_checksum": pa.int64(), "peak": pa.float32()}
IN_MEMORY = 1_000_000  # rows
pa.set_memory_pool(pa.system_memory_pool())  # Arrow's default keeps half a gigabyte of what many small parts took


def file_name(place: range) -> str:
    """The name of the part that holds these clips of a list."""
    return f"part-{place.start:09d}-{place.stop:09d}.parquet"


class PartInfo(BaseModel):
    model_config = ConfigDict(frozen=True)
    start: int
    stop: int
    clips: int  # the length of the list when the part was made
    listing: str  # a checksum of its clips' ids, labels, splits, folds and groups
    settings: dict[str, JsonValue]  # how its embeddings were made, as far as that decides whether they can be used
    notes: dict[str, JsonValue]  # the rest of their provenance
    padded: int  # clips that were padded to the encoder's minimum
    missing: int  # clips that have no file
    failed: dict[int, tuple[str, str]]  # row within the slice -> (clip id, why it could not be embedded)

    @property
    def place(self) -> range:
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
    lists = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), embeddings.shape[1])
    schema = pa.schema([*PER_CLIP.items(), pa.field("embedding", lists.type, nullable=False)])
    return Part(info, pa.Table.from_arrays([*arrays, lists], schema=schema))


def write_part(folder: Path, part: Part) -> None:
    """Write a part atomically; equal parts give equal bytes."""
    text = part.info.model_dump_json()
    checksums = f"{hashlib.sha256(text.encode()).hexdigest()} {part.checksum}"
    table = part.table.replace_schema_metadata({METADATA: text, CHECKSUMS: checksums})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="none", use_dictionary=list(LABELS))  # floats do not get smaller
    write_atomically(folder / file_name(part.info.place), buffer.getvalue())


def read_info(path: Path) -> PartInfo:
    """What a part says of itself. Errors as for `read_part`."""
    with _reading(path):
        return _info(pq.read_schema(path), path)


def read_part(path: Path) -> Part:
    """Read a part. DamagedFileError, naming it: it is damaged, or not a part; OSError: it cannot be opened."""
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
    text = metadata.get(METADATA, b"")
    if metadata.get(CHECKSUMS, b"").split()[:1] != [hashlib.sha256(text).hexdigest().encode()]:
        raise ValueError("it does not say how its rows were made")
    info = PartInfo.model_validate_json(text)
    if file_name(info.place) != path.name or not {*schema.names} >= {*PER_CLIP, "embedding"}:
        raise ValueError("it is not the part that its name says")
    return info


def part_files(folder: Path) -> dict[range, Path]:
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


class Names(Sequence[Any]):
    """A column of names: ten million of them take a tenth of what a list of them would."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, row: Any) -> Any:
        return Names(self.column[row]) if isinstance(row, slice) else self.column[int(row)].as_py()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        del copy
        return np.array(self.column.to_pylist(), dtype)


def load_folder(folder: Path) -> FeatureSet:
    """Open a folder of parts. FeatureFileError: it holds none, some are missing, one is damaged, or their settings differ."""
    paths = list(part_files(folder).values())
    if not paths:
        raise FeatureFileError(f"{folder} is a folder without parts of an extraction, not a feature file")
    try:
        infos = [read_info(path) for path in paths]
        _refuse_gaps_and_mixtures(infos, folder)
        table = pa.concat_tables(pq.read_table(path, columns=list(PER_CLIP), partitioning=None) for path in paths)
        table = table.replace_schema_metadata(None).unify_dictionaries()
        if not len(table):
            raise FeatureFileError(f"{folder} holds no clips; extract the features again")
        features = _embeddings(folder, paths, len(table))
    except (DamagedFileError, pa.ArrowException) as error:
        raise FeatureFileError(f"{error}; the same extraction again makes what is missing") from error
    labels, class_names = _labels(table["class_name"], infos[0])
    has_folds = table["fold"].null_count < len(table)
    folds = torch.from_numpy(table["fold"].to_numpy().astype(np.int64)) if has_folds else None
    clip_ids, splits, groups = (_names(table[name]) for name in ("clip_id", "split", "group"))
    meta = PROVENANCE.validate_python(_provenance(infos, table))
    del table
    pa.default_memory_pool().release_unused()  # what thousands of small buffers left between those that are kept
    return FeatureSet(features, torch.from_numpy(labels), class_names, clip_ids or [], folds, splits, groups, meta)


def checksum_of_parts(folder: Path) -> str:
    """SHA-256 of what the parts in a folder hold, in hexadecimal."""
    checksums = (pq.read_schema(path).metadata[CHECKSUMS] for path in part_files(folder).values())
    return hashlib.sha256(b"".join(checksums)).hexdigest()


def _refuse_gaps_and_mixtures(infos: Sequence[PartInfo], folder: Path) -> None:
    expected = 0
    for info in infos:
        if info.start != expected:
            raise DamagedFileError(f"{folder}: clips {expected:,} to {info.start:,} are in no part, or in two")
        if info.settings != infos[0].settings:
            name = file_name(info.place)
            raise FeatureFileError(f"{folder}: {name} was made with different settings; extract again with --overwrite")
        expected = info.stop
    if expected != infos[-1].clips:
        raise DamagedFileError(f"{folder}: clips {expected:,} to {infos[-1].clips:,} are in no part yet")


def _embeddings(folder: Path, paths: Sequence[Path], count: int) -> torch.Tensor:
    """(count, D) float32; of many rows from the flat file, whose name has a checksum of what the parts hold."""
    shape = count, pq.read_schema(paths[0]).field("embedding").type.list_size
    if count <= IN_MEMORY:
        rows = torch.empty(shape)
        _fill(rows.numpy(), paths)
        return rows
    flat = folder / f"embeddings-{checksum_of_parts(folder)[:16]}.f32"
    if not flat.exists():
        for outdated in folder.glob("embeddings-*.f32"):
            outdated.unlink()
        temporary = flat.with_name(f".{flat.name}.{os.getpid()}.tmp")
        _fill(np.memmap(temporary, np.float32, "w+", shape=shape), paths)
        temporary.replace(flat)
    return torch.from_file(str(flat), shared=False, size=math.prod(shape), dtype=torch.float32).view(shape)


def _fill(rows: Array, paths: Sequence[Path]) -> None:
    """Read the embeddings of all parts into (N, D)."""
    start = 0
    for path in tqdm(paths, "joining parts", unit="part", delay=5, leave=False):
        part = read_part(path).embeddings
        rows[start : start + len(part)] = part
        start += len(part)


def _labels(column: pa.ChunkedArray, info: PartInfo) -> tuple[Array, list[str]]:
    """(N,) int64 labels, -1 without a class, or (N, C) bool with several a clip; and the classes that occur, in the data set's
    order."""
    combined = column.combine_chunks()
    texts, codes = combined.dictionary.to_pylist(), combined.indices.fill_null(-1).to_numpy()
    is_multilabel, order = bool(info.notes["is_multilabel"]), cast("list[str] | None", info.notes["class_names"])
    labels = [text.split(LABEL_SEPARATOR) for text in texts] if is_multilabel else [[text] for text in texts]
    present = set(itertools.chain.from_iterable(labels))
    class_names = [name for name in order or sorted(present) if name in present]
    if not is_multilabel:
        return np.array([*map(class_names.index, texts), -1], np.int64)[codes], class_names
    sets = np.zeros((len(texts) + 1, len(class_names)), bool)  # the last is of clips without labels
    for row, of_text in zip(sets[:-1], labels, strict=True):
        row[[class_names.index(label) for label in of_text]] = True
    return sets[codes], class_names


def _names(column: pa.ChunkedArray) -> Sequence[str] | None:
    if column.null_count == len(column):
        return None
    return column.to_pylist() if len(column) <= IN_MEMORY else Names(pa.chunked_array([column.combine_chunks()]))


def totals(infos: Sequence[PartInfo]) -> tuple[Counts, list[tuple[str, str]]]:
    """The numbers of clips of an extraction's parts, and of those that failed, the id and why."""
    failed, count = [failure for info in infos for failure in info.failed.values()], infos[-1].clips
    padded = sum(info.padded for info in infos)
    counts = Counts(clips=count, extracted=count - len(failed), failed=len(failed), padded=padded)
    if missing := sum(info.missing for info in infos):
        counts["missing"] = missing
    return counts, failed


def _provenance(infos: Sequence[PartInfo], table: pa.Table) -> dict[str, Any]:
    counts, failed = totals(infos)
    known = {**infos[0].settings, **infos[0].notes}
    del known["class_names"], known["is_multilabel"], known["part_size"]
    columns = (np.require(table[name].to_numpy(), requirements="W") for name in ("samples", "audio_checksum", "peak"))
    per_clip = {
        "failed": failed,
        **dict(zip(("samples", "audio_checksums", "peaks"), map(torch.from_numpy, columns), strict=True)),
    }
    return {**known, "clips": counts["clips"], "counts": counts, **per_clip}
