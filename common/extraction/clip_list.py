"""The clips of an extraction, as columns: ten million of them take a gigabyte, and a `Clip` is made when its part is."""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from common.datasets import Clip, DatasetError
from common.parts import NAMES

AT_A_TIME = 1 << 16  # clips that are objects while all are listed
COLUMNS = pa.schema(
    {
        "path": pa.binary(),  # relative to the root; names of files need not be UTF-8
        "class_name": NAMES,
        "split": NAMES,
        "fold": pa.int64(),
        "group": NAMES,
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
        self.root, self.dataset = root, dataset
        self.class_names = None if class_names is None else list(class_names)
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

    def of(self, place: range) -> ClipList:
        """The clips of a slice."""
        some = copy.copy(self)
        some.columns = self.columns.slice(place.start, len(place))
        return some

    def rows(self) -> list[Clip]:
        """The clips; labels that are not UTF-8 are escaped."""
        cells = self.columns.to_pydict()
        cells["path"] = self.paths()
        cells["class_name"] = [name or "" for name in cells["class_name"]]
        return [Clip(*row) for row in zip(*cells.values(), strict=True)]

    def ids(self) -> list[str]:
        """The clips' ids."""
        cells = zip(*(self.columns[name].to_pylist() for name in ("path", "start_s", "end_s")), strict=True)
        return [
            path.decode(errors="backslashreplace") + ("" if start_s is end_s is None else f"#{start_s}-{end_s}")
            for path, start_s, end_s in cells
        ]

    def paths(self) -> list[Path]:
        """The clips' paths."""
        return [self.root / os.fsdecode(path) for path in self.columns["path"].to_pylist()]

    def fingerprint(self) -> str:
        """A checksum of all columns."""
        listing = hashlib.sha256()
        for start in range(0, len(self), AT_A_TIME):
            for column in self.columns.slice(start, AT_A_TIME).columns:
                listing.update(repr(column.to_pylist()).encode())
        return f"sha256:{listing.hexdigest()}"

    def _refuse_unknown_classes(self) -> None:
        names = self.columns["class_name"].unique().to_pylist()
        unknown = {name for name in names if name} - set(names if self.class_names is None else self.class_names)
        if unknown:
            row = pc.index(self.columns["class_name"].cast(pa.string()), min(unknown)).as_py()
            (clip,) = self.of(range(row, row + 1)).rows()
            raise DatasetError(
                f"{clip.path} is of class {clip.class_name!r}, which is not among the {len(self.class_names or ())} classes of "
                f"{self.dataset}; add it to the task's class_names"
            )

    def _refuse_duplicates(self) -> None:
        counts = self.columns.group_by(["path", "start_s", "end_s"]).aggregate([([], "count_all")])
        if counts.num_rows < len(self):
            twice = copy.copy(self)
            twice.columns = counts.filter(pc.greater(counts["count_all"], 1))
            raise DatasetError(
                f"{twice.ids()[0]} is listed twice by the data set under {self.root}; unpack the data set again"
            )


def _cells(clip: Clip, root: Path) -> dict[str, object]:
    return {
        "path": os.fsencode(clip.path.relative_to(root).as_posix()),
        "class_name": as_text(clip.class_name),
        "split": clip.split,
        "fold": clip.fold,
        "group": as_text(clip.group),
        "start_s": clip.start_s,
        "end_s": clip.end_s,
    }


def as_text(name: str | None) -> str | None:
    """A name as other programs can read it: what is not UTF-8 is escaped, and an empty one is missing."""
    return os.fsencode(name).decode(errors="backslashreplace") if name else None
