"""A folder of parts as a FeatureSet. Up to a million rows are read into memory, as those of a file are; of more, the
embeddings are memory-mapped from one flat file, which is built beside the parts once."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from common.arrays import Array
from common.features import LABEL_SEPARATOR, Counts, FeatureFileError, FeatureSet, read_provenance
from common.files import DamagedFileError
from common.parts import CHECKSUMS, PER_CLIP, PartInfo, file_name, part_files, read_info, read_part

IN_MEMORY = 1_000_000  # rows
pa.set_memory_pool(pa.system_memory_pool())  # Arrow's default keeps half a gigabyte of what many small parts took


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
    """Open a folder of parts.

    Raises:
        FeatureFileError: it holds none, some are missing, one is damaged, or they are of different settings.
    """
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
    folds = table["fold"].to_numpy() if table["fold"].null_count < len(table) else None
    return FeatureSet(
        features,
        torch.from_numpy(labels),
        class_names,
        _names(table["clip_id"]) or [],
        None if folds is None else torch.from_numpy(folds.astype(np.int64)),
        _names(table["split"]),
        _names(table["group"]),
        read_provenance(_provenance(infos, table)),
    )


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
            raise FeatureFileError(
                f"{folder} holds parts of different settings, such as {file_name(info.place)}; extract again with --overwrite"
            )
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
    texts, is_multilabel = combined.dictionary.to_pylist(), bool(info.notes.get("is_multilabel"))
    labels = [text.split(LABEL_SEPARATOR) if is_multilabel else [text] for text in texts]
    present = {label for of_text in labels for label in of_text}
    order = info.notes.get("class_names") or sorted(present)
    assert isinstance(order, list)
    class_names = [str(name) for name in order if name in present]
    numbers = [[class_names.index(label) for label in of_text] for of_text in labels]
    codes = combined.indices.fill_null(-1).to_numpy()
    if not is_multilabel:
        return np.array([*(number for (number,) in numbers), -1], np.int64)[codes], class_names
    sets = np.zeros((len(texts) + 1, len(class_names)), bool)  # the last is of clips without labels
    for row, of_text in zip(sets[:-1], numbers, strict=True):
        row[of_text] = True
    return sets[codes], class_names


def _names(column: pa.ChunkedArray) -> Sequence[str] | None:
    if column.null_count == len(column):
        return None
    return column.to_pylist() if len(column) <= IN_MEMORY else Names(column)


def _provenance(infos: Sequence[PartInfo], table: pa.Table) -> dict[str, Any]:
    failed, count = [failure for info in infos for failure in info.failed.values()], infos[-1].clips
    counts = Counts(
        clips=count, extracted=count - len(failed), failed=len(failed), padded=sum(info.padded for info in infos)
    )
    if missing := sum(info.missing for info in infos):
        counts["missing"] = missing
    known = {**infos[0].settings, **infos[0].notes}
    del known["class_names"], known["is_multilabel"], known["part_size"]
    samples, checksums = (torch.tensor(table[name].to_numpy()) for name in ("samples", "audio_checksum"))
    per_clip = {"failed": failed, "samples": samples, "audio_checksums": checksums}
    return {**known, "clips": count, "counts": counts, **per_clip}
