"""The clips of an extraction, as columns: ten million of them take a gigabyte, and a `Clip` is made when its part is."""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from common.datasets import LABEL_SEPARATOR, Clip, DatasetError
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
    """The clips of an extraction, in the order of the file's rows."""

    def __init__(
        self,
        clips: Iterable[Clip],
        root: Path,
        dataset: str,
        class_names: Sequence[str] | None = None,
        is_multilabel: bool = False,
        origin: str = "",
    ) -> None:
        """Read the clips, which may come from a generator, into `columns`: a row per clip; several labels are joined.

        Clip ids are relative to `root`. `class_names`: every class in its official order; None: alphabetical. Only classes that
        occur are kept. `origin`: the data set of the hub and its revision. DatasetError if there are no clips, a class is unknown,
        an id occurs twice, or a label holds what separates labels.
        """
        self.root, self.dataset, self.is_multilabel, self.origin = root, dataset, is_multilabel, origin
        self.class_names = None if class_names is None else list(class_names)
        known, batches = frozenset(class_names or ()), []
        rows = (self._cells(clip, known) for clip in clips)
        while some := list(itertools.islice(rows, AT_A_TIME)):
            batches.append(pa.RecordBatch.from_pylist(some, COLUMNS))
        self.columns = pa.Table.from_batches(batches, COLUMNS).unify_dictionaries().combine_chunks()
        if not len(self):
            raise DatasetError(f"no clips of {dataset} were found in {root}; give its folder with --data-root")
        if self.columns.group_by(["path", "start_s", "end_s"]).aggregate([]).num_rows < len(self):
            twice = Counter(self.ids()).most_common(1)[0][0]
            raise DatasetError(f"{twice} is listed twice by the data set under {root}; unpack it again")

    def _cells(self, clip: Clip, known: Collection[str]) -> dict[str, object]:
        for label in clip.labels:
            if self.is_multilabel and LABEL_SEPARATOR in label:
                raise DatasetError(f"{clip.path}: {LABEL_SEPARATOR!r} separates labels; rename the label {label!r}")
            if label and known and as_text(label) not in known:
                raise DatasetError(
                    f"{clip.path} is of class {label!r}, which is not among the {len(known)} classes of {self.dataset}; add "
                    "it to the task's class_names"
                )
        return {
            "path": os.fsencode(clip.path.relative_to(self.root).as_posix()),
            "class_name": as_text(clip.class_name),
            "split": clip.split,
            "fold": clip.fold,
            "group": as_text(clip.group),
            "start_s": clip.start_s,
            "end_s": clip.end_s,
        }

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
        cells["class_name"] = [self._labels_in(text) for text in cells["class_name"]]
        return [Clip(*row) for row in zip(*cells.values(), strict=True)]

    def _labels_in(self, text: str | None) -> tuple[str, ...]:
        if not text:
            return ()
        return tuple(text.split(LABEL_SEPARATOR)) if self.is_multilabel else (text,)

    @property
    def present_classes(self) -> set[str]:
        texts = self.columns["class_name"].unique().to_pylist()
        return {label for text in texts for label in self._labels_in(text)}

    def ids(self) -> list[str]:
        cells = zip(*(self.columns[name].to_pylist() for name in ("path", "start_s", "end_s")), strict=True)
        return [
            path.decode(errors="backslashreplace") + ("" if start_s is end_s is None else f"#{start_s}-{end_s}")
            for path, start_s, end_s in cells
        ]

    def paths(self) -> list[Path]:
        return [self.root / os.fsdecode(path) for path in self.columns["path"].to_pylist()]

    def fingerprint(self) -> str:
        """A checksum of all columns."""
        listing = hashlib.sha256(b"several labels" if self.is_multilabel else b"")
        for start in range(0, len(self), AT_A_TIME):
            for column in self.columns.slice(start, AT_A_TIME).columns:
                listing.update(repr(column.to_pylist()).encode())
        return f"sha256:{listing.hexdigest()}"


def as_text(name: str | None) -> str | None:
    """A name as other programs can read it: what is not UTF-8 is escaped, and an empty one is missing."""
    return os.fsencode(name).decode(errors="backslashreplace") if name else None
