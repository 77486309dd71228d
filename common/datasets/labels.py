"""How the label cells of a table are read: one class a clip, or several."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.datasets.layout import DatasetError

SEPARATORS = (";", "|", ",")
ONE_CLASS = "none"  # in place of a separator


@dataclass(frozen=True)
class Labels:
    """The labels of a table's rows."""

    sets: list[tuple[str, ...]]  # of every row
    is_multilabel: bool = False  # whether a row may have several, or none
    remark: str = ""  # what was understood, for readers; empty if every cell is plainly one class

    @classmethod
    def several(cls, sets: Sequence[Sequence[str]], how: str) -> Labels:
        """Several labels a row, found as `how` says; repetitions and empty labels are left out."""
        kept = [tuple(dict.fromkeys(name.strip() for name in names if name.strip())) for names in sets]
        more, none = sum(len(names) > 1 for names in kept), sum(not names for names in kept)
        n_classes = len({name for names in kept for name in names})
        without = f", {none:,} have none" if none else ""
        return cls(kept, True, f"{how}: {n_classes:,} classes; of {len(kept):,} clips, {more:,} have several{without}")


def read_labels(cells: Sequence[str], separator: str | None = None) -> Labels:
    """Read a column of labels.

    Cells that are Python lists hold several labels. So do cells with a separator, if what it separates is a label elsewhere
    too: ``dog;rain`` where other cells say ``rain`` or ``rain;wind``. A comma separates only where another cell is the label
    alone; if none of its parts is elsewhere, it belongs to the name of a class. `separator` says what separates labels; ONE_CLASS:
    nothing does; None: the cells tell. DatasetError: the cells use two notations, or it is unclear what they mean.
    """
    if separator == ONE_CLASS:
        return Labels([(cell,) if cell else () for cell in cells])
    if separator:
        return Labels.several([cell.split(separator) for cell in cells], f"labels are separated by {separator!r}")
    lists = [cell for cell in cells if cell.startswith("[") and cell.endswith("]")]
    if lists:
        if len(lists) < sum(map(bool, cells)):
            other = next(cell for cell in cells if cell and cell not in set(lists))
            raise DatasetError(f"labels are written in two ways, such as {lists[0]} and {other}; write all in one way")
        return Labels.several([_read_list(cell) for cell in cells], "labels are lists")
    distinct = set(cells)
    used = [mark for mark in SEPARATORS if any(mark in cell for cell in distinct)]
    # Names have commas too, so a comma separates only if a label stands alone elsewhere.
    mark = next((mark for mark in used if _shares(mark, distinct, is_alone=mark == ",")), None)
    if mark is not None:
        how = f"labels are separated by {mark!r} (if not, --label-separator {ONE_CLASS})"
        labels = Labels.several([cell.split(mark) for cell in cells], how)
        _refuse_second_notation(labels, [other for other in used if other != mark])
        return labels
    unclear = [mark for mark in used if mark != "," or _shares(mark, distinct)]
    if unclear:
        cell = next(cell for cell in cells if unclear[0] in cell)
        raise DatasetError(
            f"label {cell!r} may be several, but no part of it stands alone elsewhere; say what separates labels "
            f"(--label-separator {unclear[0]!r}), or that nothing does (--label-separator {ONE_CLASS})"
        )
    remark = "labels with ',' are names of one class each; --label-separator ',' makes them several" if used else ""
    return Labels([(cell,) if cell else () for cell in cells], remark=remark)


def _shares(mark: str, cells: set[str], is_alone: bool = False) -> bool:
    """Whether what the mark separates in a cell is in another cell too, or even is one."""
    parts = {cell: {part.strip() for part in cell.split(mark)} - {""} for cell in cells}
    counts = Counter(part for of_cell in parts.values() for part in of_cell)
    some = {part for cell in cells if mark in cell for part in parts[cell]}
    return bool(some & cells) if is_alone else any(counts[part] > 1 for part in some)


def _refuse_second_notation(labels: Labels, marks: Sequence[str]) -> None:
    """DatasetError if a label with one of the marks has a part that is a label too; ``Child speech, kid speaking`` has not."""
    names = {name for names in labels.sets for name in names}
    for mark in marks:
        for name in sorted(names):
            if mark in name and any(part.strip() in names for part in name.split(mark)):
                raise DatasetError(
                    f"{labels.remark.partition(' (')[0]}, but {name!r} looks like several too; say which: --label-separator"
                )


def _read_list(cell: str) -> list[str]:
    """The labels of a cell such as ``['dog', 'rain']``."""
    try:
        names = ast.literal_eval(cell) if cell else []
    except (ValueError, SyntaxError):
        names = None
    # Without commas, as NumPy writes, Python would join the names.
    if (
        re.search(r"""['"]\s+['"]""", cell)
        or not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
    ):
        raise DatasetError(f"label {cell} is not a list of names such as ['dog', 'rain']")
    return names


def read_indicators(columns: Mapping[str, Sequence[str]], places: Sequence[str]) -> Labels:
    """Labels from a column per class, whose cells are 0 or 1; `places` name the rows in messages. DatasetError: a cell is
    something else, or a column has no 1."""
    for name, cells in columns.items():
        for place, cell in zip(places, cells, strict=True):
            if cell not in ("0", "1"):
                raise DatasetError(
                    f"{place}: column {name!r} is taken for a class, so its cells must be 0 or 1, not {cell!r}; add a column "
                    "label, or remove what is not a class"
                )
    empty = [name for name, cells in columns.items() if "1" not in cells]
    if empty:
        raise DatasetError(f"no clip is of class {empty[0]!r}: its column is 0 everywhere; remove it or add clips")
    rows = zip(*columns.values(), strict=True)
    sets = [[name for name, cell in zip(columns, row, strict=True) if cell == "1"] for row in rows]
    return Labels.several(sets, "a column of 0 and 1 for every class")
