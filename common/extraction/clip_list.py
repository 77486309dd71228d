"""The clips of an extraction, as columns: ten million of them take a gigabyte, and a `Clip` is made when its part is."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.datasets import Clip, DatasetError

AT_A_TIME = 1 << 16  # clips that are objects while all are listed
# Names of files need not be UTF-8, and a class may be named after a folder.
NAME = pa.dictionary(pa.int32(), pa.binary())
COLUMNS = pa.schema(
    {
        "path": pa.binary(),  # relative to the root
        "class_name": NAME,
        "split": NAME,
        "fold": pa.int64(),
        "group": NAME,
        "start_s": pa.float64(),
        "end_s": pa.float64(),
    }
)


class ClipList:
    """The clips of an extraction, in the order of the file's rows.

    Attributes:
        root: the data root, to which clip ids are relative.
        dataset: the task's name.
        class_names: every class in its official order; None: alphabetical. Only classes that occur are kept.
        columns: a row per clip.
    """

    def __init__(
        self, clips: Iterable[Clip], root: Path, dataset: str, class_names: Sequence[str] | None = None
    ) -> None:
        """Read the clips, which may come from a generator.

        Raises:
            DatasetError: there are none, one is of a class that is not in `class_names`, or two have the same id.
        """
        self.root, self.dataset, self.class_names = root, dataset, class_names
        iterator, batches = iter(clips), []
        while some := list(itertools.islice(iterator, AT_A_TIME)):
            batches.append(pa.RecordBatch.from_pylist([_cells(clip, root) for clip in some], COLUMNS))
        self.columns = pa.Table.from_batches(batches, COLUMNS).unify_dictionaries().combine_chunks()
        if not len(self):
            raise DatasetError(f"no clips of {dataset} were found in {root}; give its folder with --data-root")
        self._refuse_unknown_classes()
        self._refuse_duplicates()

    def __len__(self) -> int:
        return int(self.columns.num_rows)

    def rows(self, start: int, stop: int) -> list[Clip]:
        """The clips from `start` to `stop`."""
        return [_clip(cells, self.root) for cells in self.columns.slice(start, stop - start).to_pylist()]

    def ids(self, start: int = 0, stop: int | None = None) -> list[str]:
        """The ids of the clips from `start` to `stop`, as `Clip.clip_id` gives them."""
        columns = self.columns.slice(start, None if stop is None else stop - start)
        cells = zip(*(columns[name].to_pylist() for name in ("path", "start_s", "end_s")), strict=True)
        return [
            os.fsdecode(path) if start_s is None and end_s is None else f"{os.fsdecode(path)}#{start_s}-{end_s}"
            for path, start_s, end_s in cells
        ]

    def names(self, column: str, start: int, stop: int) -> list[str | None]:
        """The class names, splits or groups of the clips from `start` to `stop`."""
        values = self.columns[column].slice(start, stop - start).to_pylist()
        return [None if name is None else os.fsdecode(name) for name in values]

    def paths(self) -> Iterator[Path]:
        """The path of every clip."""
        for start in range(0, len(self), AT_A_TIME):
            for path in self.columns["path"].slice(start, AT_A_TIME).to_pylist():
                yield self.root / os.fsdecode(path)

    def fingerprint(self, start: int = 0, stop: int | None = None) -> str:
        """A checksum of all columns from `start` to `stop`."""
        listing, stop = hashlib.sha256(), len(self) if stop is None else stop
        for first in range(start, stop, AT_A_TIME):
            columns = self.columns.slice(first, min(AT_A_TIME, stop - first))
            for name in COLUMNS.names:
                values = (b"" if value is None else value for value in columns[name].to_pylist())
                cells = (value if isinstance(value, bytes) else repr(value).encode() for value in values)
                listing.update(b"\0".join(cells) + b"\n")
        return f"sha256:{listing.hexdigest()}"

    def _refuse_unknown_classes(self) -> None:
        if self.class_names is None:
            return
        names = self.columns["class_name"]
        unknown = {name for name in names.unique().to_pylist() if name} - set(map(os.fsencode, self.class_names))
        if unknown:
            row = pc.index(names.cast(pa.binary()), min(unknown)).as_py()
            clip = self.rows(row, row + 1)[0]
            raise DatasetError(
                f"{clip.path} is of class {clip.class_name!r}, which is not among the {len(self.class_names)} classes of "
                f"{self.dataset}; add it to the task's class_names"
            )

    def _refuse_duplicates(self) -> None:
        keys = ["path", "start_s", "end_s"]
        counts = self.columns.select(keys).group_by(keys).aggregate([([], "count_all")])
        if counts.num_rows < len(self):
            cells = counts.filter(pc.greater(counts["count_all"], 1)).slice(0, 1).to_pylist()[0]
            clip = Clip(self.root / os.fsdecode(cells["path"]), "", start_s=cells["start_s"], end_s=cells["end_s"])
            raise DatasetError(
                f"{clip.clip_id(self.root)} is listed twice by the data set under {self.root}; unpack the data set again"
            )


def _cells(clip: Clip, root: Path) -> dict[str, object]:
    def encoded(name: str | None) -> bytes | None:
        return os.fsencode(name) if name else None

    return {
        "path": os.fsencode(clip.path.relative_to(root).as_posix()),
        "class_name": encoded(clip.class_name),
        "split": encoded(clip.split),
        "fold": clip.fold,
        "group": encoded(clip.group),
        "start_s": clip.start_s,
        "end_s": clip.end_s,
    }


def _clip(cells: dict[str, object], root: Path) -> Clip:
    decoded: dict[str, Any] = {
        key: os.fsdecode(value) if isinstance(value, bytes) else value for key, value in cells.items()
    }
    path, class_name = decoded.pop("path"), decoded.pop("class_name")
    return Clip(root / path, class_name or "", **decoded)
