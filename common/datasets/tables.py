"""Clips from tables: what the columns mean, and what the clips of every row are."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.datasets.clip import Clip
from common.datasets.labels import Labels, read_indicators, read_labels
from common.datasets.layout import DatasetError
from common.datasets.rows import Rows

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
NOT_THERE = "none"  # in place of a column's name


@dataclass(frozen=True)
class Role:
    """What a column can mean."""

    names: str  # its usual names, preferred first, without case, blanks and dashes; plurals count too
    pattern: str  # of its cells
    meaning: str  # of the pattern, in words


SECONDS = Role("", r"(\d*[.,]?\d*(e[-+]?\d+)?)", "a number of seconds")
ROLES = {
    "path": Role("path file filename filepath fname audiopath audiofile slicefilename audio clipid", ".+", "a file"),
    "label": Role("label classname class category species commonname annotation target cls txt", ".*", "text"),
    "fold": Role("fold", r"\d{0,9}", "a whole number"),
    "split": Role("split subset partition", "|".join(("", *SPLITS)), "train, valid or test"),
    "group": Role("group speaker speakerid patient patientid recording recordingid site fsid srcfile", ".*", "text"),
    "start": replace(SECONDS, names="start starttime begin begintime onset"),
    "end": replace(SECONDS, names="end endtime stop offset"),
}


@dataclass(frozen=True)
class Sounds:
    """What a folder or table lists."""

    root: Path  # the folder to which clip ids are relative
    clips: list[Clip]
    is_multilabel: bool = False
    remarks: tuple[str, ...] = ()  # how it was understood, for readers
    origin: str = ""  # the data set of the hub and its revision, if it is from there


def find_columns(names: Collection[str], chosen: Mapping[str, str]) -> dict[str, str]:
    """What the columns of a table mean: role -> column, as the user has `chosen` it (NOT_THERE: no column), or else by its usual
    names. DatasetError: a chosen column is not there, or several may be the group."""
    plain = {_plain(name): name for name in names}
    columns: dict[str, str] = {}
    for role, kind in ROLES.items():
        if role in chosen:
            column = chosen[role] if chosen[role] in names else plain.get(_plain(chosen[role]))
            if column is None and chosen[role] != NOT_THERE:
                raise DatasetError(
                    f"--{role}-column {chosen[role]}: there is no such column; there are {', '.join(names)}"
                )
        else:
            present = [plain[_plain(name)] for name in kind.names.split() if _plain(name) in plain]
            column = next(iter(present), None)
            if role == "end" and _plain(column or "") == "offset" and _plain(columns.get("start", "")) != "onset":
                column = None  # it may be a start
            if role == "group" and len(present) > 1 and _plain(present[0]) != "group":
                raise DatasetError(
                    f"the columns {' and '.join(present)} may both be the group that must stay on one side; say which: "
                    f"--group-column {column}, or --group-column {NOT_THERE}; or call it group"
                )
        if column is not None:
            columns[role] = column
    return columns


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+|\(s\)", "", name).casefold().removesuffix("s")


def clips_of(rows: Rows, chosen: Mapping[str, str], separator: str | None = None, is_labelled: bool = True) -> Sounds:
    """The clips of a table's rows; `chosen` is as for `find_columns`, `separator` as for `read_labels`, and `is_labelled`: there must
    be labels.

    Paths count from the table's folder, which is the root unless a file lies outside. Segments of one file are one group, unless a
    column says otherwise. DatasetError: a column or a cell is missing or wrong, or a clip is listed twice; the message names the line.
    """
    try:
        columns = find_columns(rows.columns, chosen)
        if rows.audio is not None:  # every row is a whole clip
            columns = {role: name for role, name in columns.items() if role not in ("start", "end") or role in chosen}
            columns["path"] = rows.audio
        if "path" not in columns:
            raise DatasetError(
                f"lacks the column path, or one of its usual names (it has {', '.join(rows.columns)}); name it: --path-column"
            )
        if "start" in columns and "end" not in columns and _plain("duration") in map(_plain, rows.columns):
            raise DatasetError("has a duration, but no end; add a column end (seconds), or --start-column none")
        is_labelled = is_labelled or "label" in columns
        labels = _labels(rows, columns, separator) if is_labelled else Labels([()] * len(rows))
    except DatasetError as error:
        raise DatasetError(f"{rows.file}: {error}") from error
    folder = rows.folder
    values = {role: _convert(rows, role, name, folder) for role, name in columns.items()}
    for role in sorted({"fold", "split", "group"} & values.keys()):
        empty = [place for place, value in zip(rows.places, values[role], strict=True) if value is None]
        if len(empty) == len(rows):
            del values[role]
        elif empty:
            raise DatasetError(f"{empty[0]} has no {role}, but others have; fill in all or none")
    root = _root(folder, values["path"])
    remarks = [_as_read(rows, columns), labels.remark]
    if "group" not in values and chosen.get("group") != NOT_THERE and len(set(values["path"])) < len(rows):
        values["group"] = [path.relative_to(root).as_posix() for path in values["path"]]
        remarks.append("segments of one file are one group, which stays on one side (if not: --group-column none)")
    others = [values.get(role, [None] * len(rows)) for role in ("split", "fold", "group", "start", "end")]
    clips = list(map(Clip, values["path"], labels.sets, *others))
    _refuse_wrong(clips, rows, is_empty_allowed=not is_labelled or labels.is_multilabel)
    return Sounds(root, clips, labels.is_multilabel, tuple(filter(None, remarks)), rows.origin)


def _refuse_wrong(clips: Sequence[Clip], rows: Rows, is_empty_allowed: bool) -> None:
    """DatasetError if a clip has no label, ends before it starts, or is listed twice."""
    listed: dict[tuple[object, ...], str] = {}
    for place, clip in zip(rows.places, clips, strict=True):
        first = listed.setdefault((clip.path, clip.start_s, clip.end_s), place)
        if first != place:
            raise DatasetError(f"{place}: {clip.path.name} is already listed in {first.removeprefix(f'{rows.file} ')}")
        if not clip.labels and not is_empty_allowed:
            raise DatasetError(f"{place}: its label is empty")
        if clip.end_s is not None and clip.end_s <= (clip.start_s or 0):
            raise DatasetError(f"{place}: end {clip.end_s} is not after start {clip.start_s or 0}")


def _labels(rows: Rows, columns: Mapping[str, str], separator: str | None) -> Labels:
    """The labels of the column, or else of a column of 0 and 1 for every class."""
    if "label" in columns:
        return read_labels([composed(cell) for cell in rows.columns[columns["label"]]], separator)
    others = {name: cells for name, cells in rows.columns.items() if name not in columns.values()}
    if len(others) < 2 or any(cells[0] not in ("0", "1") for cells in others.values()):
        raise DatasetError(
            f"lacks the column label, or a column of 0 and 1 for every class (it has {', '.join(rows.columns)}); name it: "
            "--label-column"
        )
    return read_indicators(others, rows.places)


def _convert(rows: Rows, role: str, column: str, folder: Path) -> list[Any]:
    """The values of a column, each of its distinct cells converted once; DatasetError names the line of one that is wrong."""
    cells, values = rows.columns[column], {}
    for text in dict.fromkeys(cells):
        try:
            values[text] = _value(role, text, folder)
        except ValueError as error:
            raise DatasetError(f"{rows.places[cells.index(text)]}: {error}") from error
    return [values[text] for text in cells]


def _value(role: str, text: str, folder: Path) -> object:
    """What a cell means, None if it is empty; ValueError says what is wrong with it."""
    if "\n" in text or "\r" in text:
        raise ValueError(f"{role} has a line break in it ({text[:60]!r}); is a quote missing?")
    if not re.fullmatch(ROLES[role].pattern, text, re.IGNORECASE):
        raise ValueError(f"{role} must be {ROLES[role].meaning}, not {text!r}")
    if role == "path":
        return _locate(text, folder)
    if not text:
        return None
    if role in ("start", "end"):
        return float(text.replace(",", "."))
    if role == "split":
        return SPLITS[text.lower()]
    return int(text) if role == "fold" else composed(text)


def _locate(text: str, folder: Path) -> Path:
    """The file that a cell means: as it is written, or else with slashes for backslashes, or with letters composed differently."""
    path = _below(folder, text)
    if (text.isascii() and "\\" not in text) or path.exists():
        return path
    slashes = text.replace("\\", "/")
    forms = [_below(folder, unicodedata.normalize(form, slashes)) for form in ("NFC", "NFD")]
    return next((form for form in forms if form.exists()), path)


def _below(folder: Path, text: str) -> Path:
    return Path(os.path.normpath(folder / os.path.expanduser(text)))  # noqa: PTH111 - pathlib's fails for users who do not exist


def _root(folder: Path, paths: Sequence[Path]) -> Path:
    outside = {parent for parent in {path.parent for path in paths} if folder not in (parent, *parent.parents)}
    return Path(os.path.commonpath([folder, *outside]))


def composed(name: str) -> str:
    """A name in one of the two forms in which programs write accents."""
    return unicodedata.normalize("NFC", name)


def _as_read(rows: Rows, columns: Mapping[str, str]) -> str:
    """What the columns were taken for, as far as their names do not say it; and those that are not used."""
    read = ", ".join(f"{role} = {name}" for role, name in columns.items() if role != name and name != rows.audio)
    unused = [name for name in rows.columns if name not in columns.values()] if "label" in columns else []
    parts = [f"columns: {read}"] * bool(read) + [f"columns that are not used: {', '.join(unused)}"] * bool(unused)
    return "; ".join(parts)


def alike(clips: Sequence[Clip]) -> list[str]:
    """A remark for all labels that differ only by case or blanks."""
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    for label, count in Counter(label for clip in clips for label in clip.labels).items():
        forms[" ".join(label.split()).casefold()][label] = count
    return [
        "these labels differ only by case or blanks, and are different classes: "
        + ", ".join(f"{name!r} ({count} clips)" for name, count in names.items())
        for names in forms.values()
        if len(names) > 1
    ]
