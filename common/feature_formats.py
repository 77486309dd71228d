"""What FeatureSets are read from: feature files, and formats that other programs write and read.

``.npz`` holds ``embeddings`` and arrays such as ``labels``, ``folds``, ``groups``; ``.npy`` has a table beside it; ``.csv`` and
``.tsv`` have a column for every number, whose names end in digits; ``.parquet``, ``.arrow`` and ``.feather`` the same, or one column
of lists. Columns beside the embeddings are called as in tables of sounds (`common.datasets.tables.ROLES`): a label, a fold, a split, a group, and
the clip.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf

from common.arrays import Array
from common.datasets.containers import audio_column, read_parquet
from common.datasets.labels import read_labels
from common.datasets.rows import as_cell, parse_csv, read_text, separator_of
from common.datasets.tables import SPLITS, composed, find_columns
from common.encoder_name import EncoderKind
from common.errors import first_problem
from common.features import SEGMENT, FeatureFileError, FeatureSet, Provenance
from common.files import ODD_LETTERS, UnsafeFileError, load_torch, sha256_of, write_atomically

BESIDE = (".csv", ".tsv", ".parquet")  # of an .npy, the table with a row for each of its rows
MATRIX = ("embeddings", "embedding", "features", "x", "data")  # names of the array in an .npz
MADE_BY = "made_by"  # under which this project notes the provenance in its files, and the order of the classes


def read_features(path: Path) -> FeatureSet:
    """As `FeatureSet.load`."""
    path = _file_or_folder(path)
    if path.is_dir():
        from common.parts import load_folder

        return load_folder(path)
    if not path.exists():
        raise FeatureFileError(f"{path} not found; run the task's extract_*.py first, or give a file with --features")
    if path.suffix.lower() in _READERS:
        try:
            return _assemble(*_READERS[path.suffix.lower()](path), path)
        except (ValueError, KeyError, OSError, EOFError, BadZipFile, pa.ArrowException) as error:
            raise FeatureFileError(f"{path} cannot be used as embeddings: {first_problem(error)}") from error
    try:
        return _Content.model_validate(load_torch(path)).as_features()
    except UnsafeFileError as error:
        raise FeatureFileError(f"{path} holds Python objects that would run code when opened; refused") from error
    except (ValueError, TypeError, RuntimeError) as error:
        problem = first_problem(error)
        raise FeatureFileError(f"{path} is damaged, or not a feature file ({problem}); extract again") from error


def checksum_of_features(path: Path) -> str:
    """SHA-256 of a feature file's content, or of what the parts in a folder hold, in hexadecimal."""
    path = _file_or_folder(path)
    if path.is_dir():
        from common.parts import checksum_of_parts

        return checksum_of_parts(path)
    return " ".join(map(sha256_of, [path, _table_beside(path)] if path.suffix == ".npy" else [path]))


def _file_or_folder(path: Path) -> Path:
    """An extraction of too many clips for one file leaves a folder of its name."""
    folder = path.with_suffix("")
    return folder if path.suffix == ".pt" and not path.exists() and any(folder.glob("part-*.parquet")) else path


def _whole_numbers(values: Any) -> torch.Tensor:
    """(N,) int64; or label sets, (N, C) bool."""
    numbers = torch.as_tensor(values)
    if numbers.ndim == 2 and numbers.dtype == torch.bool:
        return numbers
    if numbers.ndim != 1 or numbers.is_floating_point() or numbers.is_complex():
        raise ValueError("not a 1-D tensor of integers")
    return numbers.to(torch.int64)


WholeNumbers = Annotated[InstanceOf[torch.Tensor], BeforeValidator(_whole_numbers)]
Text = BeforeValidator(lambda value: "None" if value is None else value)


class _Content(BaseModel):
    """What a feature file holds; the original project's files call some of it by the other name."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, coerce_numbers_to_str=True)

    features: InstanceOf[torch.Tensor]
    labels: WholeNumbers | None = Field(None, alias="label")
    class_names: list[str] | None = None
    clip_ids: list[str] | None = Field(None, alias="keys")
    folds: WholeNumbers | None = None
    splits: list[Annotated[Literal["train", "valid", "test", "None"], Text]] | None = None
    groups: list[Annotated[str, Text]] | None = None
    meta: Provenance = Field(default_factory=Provenance)

    def as_features(self) -> FeatureSet:
        """The FeatureSet; ValueError says which entries do not fit together."""
        if self.features.ndim != 2 or not self.features.is_floating_point() or not self.features.shape[1]:
            raise ValueError("it has no 2-D floating-point tensor 'features'")
        count = len(self.features)
        if not count:
            raise ValueError("it holds no clips")
        if self.labels is None and self.clip_ids is None:
            raise ValueError("it has neither 'labels' nor 'keys'")
        for name in ("labels", "clip_ids", "folds", "splits", "groups"):
            values = getattr(self, name)
            if values is not None and len(values) != count:
                raise ValueError(f"{count} rows of features but {len(values)} {name}")
        for name in ("class_names", "clip_ids"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: {Counter(values).most_common(1)[0][0]} is in it more than once")
        labels = torch.full((count,), -1) if self.labels is None else self.labels
        class_names = self.class_names
        if labels.ndim == 2:
            if class_names is None or labels.shape[1] != len(class_names):
                raise ValueError("its label sets and class names differ in number")
        elif bool((labels < 0).any()) and not bool((labels == -1).all()):
            raise ValueError("labels must be non-negative")
        elif class_names is None:  # numbers that may leave gaps, such as speaker ids
            present = labels[labels >= 0].unique()
            class_names = [str(label) for label in present.tolist()]
            labels = torch.where(labels < 0, labels, torch.searchsorted(present, labels))
        elif len(class_names) <= int(labels.max()):
            raise ValueError(f"label {int(labels.max())} but only {len(class_names)} class names")
        features, clip_ids = self.features.detach().float(), self.clip_ids or [f"row {row}" for row in range(count)]
        return FeatureSet(features, labels, class_names, clip_ids, self.folds, self.splits, self.groups, self.meta)


def _assemble(embeddings: Array, columns: Mapping[str, Sequence[Any]], meta: Any, path: Path) -> FeatureSet:
    """The FeatureSet; ValueError says what does not fit."""
    roles = find_columns([name for name in columns if name != "class_names"], {})
    unused = [name for name in columns if name not in (*roles.values(), "class_names")]
    if unused:
        print(f"columns that are not used: {', '.join(unused)}")
    cells = {role: [as_cell(value) for value in columns[name]] for role, name in roles.items() if role != "label"}
    values = columns[roles["label"]] if "label" in roles else []
    labels, class_names = _read_labels(values, columns.get("class_names"), len(embeddings))
    for role in ("fold", "split", "group"):
        if not any(cells.get(role, ())):
            cells[role] = []
        elif not all(cells[role]):
            raise ValueError(f"some clips have no {role}, but others have")
    ids = cells.get("path") or [f"row {row}" for row in range(len(embeddings))]
    if "start" in cells and not any(map(SEGMENT.search, ids)):
        spans = zip(ids, cells["start"], cells.get("end", [""] * len(ids)), strict=True)
        ids = [f"{name}#{start or 'None'}-{end or 'None'}" for name, start, end in spans]
    folds = [int(fold.removeprefix("fold")) for fold in cells["fold"]]
    if min(folds, default=0) < 0:
        raise ValueError("folds must not be negative")
    return _Content.model_validate(
        {
            "features": torch.from_numpy(np.array(embeddings, np.float32)),
            "labels": labels,
            "class_names": class_names,
            "clip_ids": ids,
            "folds": folds or None,
            "splits": [SPLITS.get(split.lower(), split) for split in cells["split"]] or None,
            "groups": cells["group"] or None,
            "meta": meta or Provenance(kind=EncoderKind.ELSEWHERE.value, encoder=path.name),
        }
    ).as_features()


def _read_labels(values: Sequence[Any], names: Sequence[Any] | None, count: int) -> tuple[torch.Tensor, list[str]]:
    """Labels as `FeatureSet` has them, and class names: in the order of `names`, else by number or alphabet."""
    if not len(values):
        return torch.full((count,), -1), []
    class_names = None if names is None else [as_cell(name) for name in names]
    array = np.asarray(values) if not isinstance(values[0], list) else np.empty(0, object)
    is_numbers = array.dtype.kind in "biuf"
    if is_numbers and array.ndim == 2 and array.shape[1] > 1:
        if not np.isin(array, (0, 1)).all():
            raise ValueError("labels of several columns must be 0 or 1")
        return torch.from_numpy(array.astype(bool)), class_names or [str(number) for number in range(array.shape[1])]
    if is_numbers and (array < 0).any():
        raise ValueError("labels must not be negative; leave out clips without one")
    if is_numbers and class_names is not None and (array == array.round()).all():
        return torch.from_numpy(array.astype(np.int64).ravel()), class_names
    values = array.ravel().tolist() if array.ndim == 2 else values
    labels = read_labels([composed(as_cell(value)) for value in values])
    if labels.remark:
        print(labels.remark)
    present = {name for names in labels.sets for name in names}
    are_numbers = all(name.isdecimal() for name in present)
    order = [name for name in class_names or () if name in present] or sorted(present, key=int if are_numbers else str)
    if labels.is_multilabel:
        from sklearn.preprocessing import MultiLabelBinarizer

        return torch.from_numpy(MultiLabelBinarizer(classes=order).fit_transform(labels.sets).astype(bool)), order
    if not all(labels.sets):
        raise ValueError(f"row {labels.sets.index(())} has no label, but others have")
    place = {name: number for number, name in enumerate(order)}
    return torch.tensor([place[name] for (name,) in labels.sets]), order


def _read_npz(path: Path) -> tuple[Array, dict[str, Any], Any]:
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files if content[name].ndim or name == MADE_BY}
    meta = json.loads(str(arrays.pop(MADE_BY))) if MADE_BY in arrays else None
    name = next((name for wanted in MATRIX for name in arrays if name.lower() == wanted), None)
    if name is None:
        raise ValueError(f"it has no array called embeddings (it has {', '.join(arrays)})")
    return arrays.pop(name), arrays, meta


def _read_npy(path: Path) -> tuple[Array, dict[str, Any], Any]:
    embeddings: Array = np.load(path, allow_pickle=False)
    beside = _table_beside(path)
    is_text = beside.suffix != ".parquet"
    rows = parse_csv(read_text(beside), beside, "give a row for each embedding") if is_text else read_parquet(beside)
    return embeddings, dict(rows.columns), None


def _table_beside(path: Path) -> Path:
    """The table with a row for each row of an .npy; ValueError if there is none."""
    beside = next((table for suffix in BESIDE if (table := path.with_suffix(suffix)).exists()), None)
    if beside is None:
        raise ValueError(f"it needs a table with labels beside it, such as {path.with_suffix('.csv').name}")
    return beside


def _read_csv(path: Path) -> tuple[Array, dict[str, Any], Any]:
    import pandas as pd

    with path.open(encoding="utf-8-sig") as file:
        mark = separator_of(file.readline().rstrip("\n"))
    names = [str(name) for name in pd.read_csv(path, sep=mark, nrows=0)]
    texts = dict.fromkeys(find_columns(names, {}).values(), str)
    table = pd.read_csv(path, sep=mark, dtype=texts, keep_default_na=False)
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("its lines have more cells than its header")
    return (*_of_columns({name: table[name].to_numpy() for name in names}), None)


def _read_parquet(path: Path) -> tuple[Array, dict[str, Any], Any]:
    table = pq.read_table(path, partitioning=None)
    if audio_column(table.schema):
        raise ValueError("it holds audio, not embeddings; give it without --features")
    return _of_arrow(table)


def _read_arrow(path: Path) -> tuple[Array, dict[str, Any], Any]:
    with pa.memory_map(str(path)) as file:
        try:
            table = pa.ipc.open_file(file).read_all()
        except pa.ArrowInvalid:  # as `datasets` writes them
            file.seek(0)
            table = pa.ipc.open_stream(file).read_all()
    return _of_arrow(table)


def _of_arrow(table: pa.Table) -> tuple[Array, dict[str, Any], Any]:
    noted = json.loads((table.schema.metadata or {}).get(MADE_BY.encode(), b"{}"))
    meta = noted.get("provenance")
    kinds = {field.name: getattr(field.type, "value_type", pa.null()) for field in table.schema}  # of what is in lists
    lists = [name for name, kind in kinds.items() if pa.types.is_floating(kind)]
    if not lists:
        return (*_of_columns({name: table[name].to_numpy() for name in table.column_names}), meta)
    name = next((name for name in lists if name.lower() in MATRIX), lists[0])
    column = table[name].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    if column.null_count or len(pc.unique(pc.list_value_length(column))) > 1:
        raise ValueError(f"the lists of {name} are not all of one length")
    plain = {other: table[other].to_pylist() for other in table.column_names if other != name}
    if "class_names" in noted:
        plain["class_names"] = noted["class_names"]
    return values.reshape(len(column), -1), plain, meta


def _of_columns(table: Mapping[str, Array]) -> tuple[Array, dict[str, Any]]:
    """From a column for every number: names such as f0, f1, f2, without a gap; the others are about the clips."""
    roles = set(find_columns(table, {}).values())
    families: dict[str, dict[str, int]] = defaultdict(dict)  # prefix -> name -> number
    for name in table:
        match = re.fullmatch(r"(.*?)(\d+)", name)
        if match and name not in roles and not name.startswith("Unnamed"):  # as pandas calls the index
            families[match[1]][name] = int(match[2])
    runs = [family for family in families.values() if _is_run(list(family.values()))]
    numbers = [name for family in runs for name in family]
    if not numbers:
        raise ValueError("it has no columns of numbers such as f0, f1, f2")
    embeddings = np.stack([table[name].astype(np.float64) for name in numbers], axis=1)
    return embeddings, {name: cells for name, cells in table.items() if name not in set(numbers)}


def _is_run(numbers: list[int]) -> bool:
    """Whether they count from 0 or 1; a 1 alone, as of fold1, does not."""
    return numbers != [1] and numbers == list(range(numbers[0], numbers[0] + len(numbers))) and numbers[0] < 2


def write_embeddings(features: FeatureSet, path: Path) -> None:
    """Write a FeatureSet as .npz, .csv or .parquet, which `read_features` reads back, equal; of a .csv, all but the provenance."""
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        labels = {"labels": features.labels.numpy(), "class_names": np.array(features.class_names)}
        known = {"folds": features.folds, "splits": features.splits, "groups": features.groups}
        arrays: dict[str, Any] = {name: np.asarray(values) for name, values in known.items() if values is not None}
        arrays |= {"clip_ids": np.array(features.clip_ids), MADE_BY: np.array(json.dumps(features.provenance))}
        np.savez(buffer, **arrays | {"features": features.features.numpy()} | (labels if features.class_names else {}))
    elif path.suffix == ".csv":
        buffer.write(features.to_pandas().to_csv(index=False).encode(errors=ODD_LETTERS))
    else:
        values = pa.array(features.features.numpy().ravel())
        lists = pa.FixedSizeListArray.from_arrays(values, features.features.shape[1])
        table = pa.Table.from_pandas(features.about_clips(), preserve_index=False).append_column("embedding", lists)
        noted = {"provenance": features.provenance, "class_names": features.class_names}
        pq.write_table(table.replace_schema_metadata({MADE_BY: json.dumps(noted)}), buffer)
    write_atomically(path, buffer.getvalue())


_READERS = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    **dict.fromkeys((".csv", ".tsv"), _read_csv),
    ".parquet": _read_parquet,
    **dict.fromkeys((".arrow", ".feather"), _read_arrow),
}
