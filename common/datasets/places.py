"""Where clips may lie: a table, label files of Raven or Audacity, Parquet files, tars, and data sets of the Hugging Face hub."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.datasets.clip import AUDIO_SUFFIXES, CONTAINER_SUFFIXES
from common.datasets.containers import read_parquet, read_tar
from common.datasets.hub import fetch, is_on_hub, matching
from common.datasets.labels import ONE_CLASS
from common.datasets.layout import DatasetError, DatasetMissingError, DatasetNote, files_in
from common.datasets.rows import (
    SPREADSHEETS,
    TABLES,
    WHICH_ENCODING,
    Rows,
    annotation_files,
    is_audacity,
    is_raven,
    parse_csv,
    read_audacity,
    read_raven,
    read_text,
)
from common.datasets.tables import NOT_THERE, SPLITS, Sounds, clips_of, find_columns
from common.datasets.task import Task
from common.files import DamagedFileError, read_json, write_json

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
SPLIT = re.compile(rf"(?<![a-z])({'|'.join(sorted(SPLITS, key=len, reverse=True))})(?![a-z])", re.IGNORECASE)


def has_rows(place: Path, with_annotations: bool = True) -> bool:
    """Whether a place lists its clips itself, and is neither an audio file nor a folder of them. `with_annotations`: label files
    beside recordings count."""
    if place.is_dir():
        files = files_in(place)
        return bool(_containers_of(files) or (with_annotations and annotation_files(files)))
    return is_on_hub(place) or place.suffix.lower() in TABLES or bool(_containers(place))


def read_rows(place: Path, encoding: str | None = None, only: Sequence[str] = (), index: Path | None = None) -> Rows:
    """The rows of a table (CSV, TSV, Parquet), of label files of Raven or Audacity (one, or a folder), or of the clips in Parquet
    files and tars: one file, a folder of them, or a pattern such as ``shards/{000..127}.tar``. ``hf:`` is fetched first.

    `encoding` is that of text; None: UTF-8 or UTF-16. `only`: of several containers, parts of the paths of those to read, with ``*``
    and ``?``; all if none matches. `index`: where the rows of containers are kept, since listing many tars takes long; used while
    these are the same. DatasetMissingError: nothing is there; DatasetError: a file cannot be read, or is not a table.
    """
    if is_on_hub(place):
        files = fetch(str(place), only)
        root = next(folder for folder in files[0].parents if folder.parent.name == "snapshots")
        return _indexed(files, root, index, f"{str(place).partition('@')[0]}@{root.name}")
    files = files_in(place) if place.is_dir() else []
    containers = _containers_of(files) or _containers(place)
    if containers:
        root = place if place.is_dir() else containers[0].parent
        kept = matching([path.relative_to(root).as_posix() for path in containers], only)
        return _indexed([root / name for name in kept], root, index)
    if place.is_dir():
        labels = annotation_files(files)
        n_others = sum(path.suffix.lower() in AUDIO_SUFFIXES for path in files) - len(labels)
        if n_others > 0:
            text = f"{place}: {n_others} recordings without labels of Raven or Audacity beside them are left out"
            warnings.warn(text, DatasetNote, stacklevel=2)
        return Rows.joined([_read_annotations(path, encoding) for path in labels], place)
    if not place.exists():
        raise DatasetMissingError(f"{place} not found; give a folder with a sub-folder per class, or a table")
    if place.suffix.lower() in SPREADSHEETS:
        raise DatasetError(f"{place} is a spreadsheet; save it as CSV in UTF-8, and give that")
    if is_raven(place) or is_audacity(place):
        return _read_annotations(place, encoding)
    if place.suffix.lower() not in TABLES:
        raise DatasetError(
            f"{place} is not a table; give a .csv, .tsv, .parquet or .tar, or a folder with a sub-folder per class"
        )
    return parse_csv(read_text(place, WHICH_ENCODING, encoding), place, "give a table with a line for each clip")


def _containers_of(files: Sequence[Path]) -> list[Path]:
    """The Parquet files and tars among the files of a folder, unless that holds sounds."""
    is_of_sounds = any(path.suffix.lower() in AUDIO_SUFFIXES for path in files)
    return [] if is_of_sounds else [path for path in files if path.suffix in CONTAINER_SUFFIXES]


def _containers(place: Path) -> list[Path]:
    """The Parquet files and tars that a file's name or a pattern means."""
    if place.suffix not in CONTAINER_SUFFIXES:
        return []
    if place.exists():
        return [place]
    match = RANGE.search(place.name)
    if match is None:
        return sorted(place.parent.glob(place.name))
    numbers = [str(number).zfill(len(match[1])) for number in range(int(match[1]), int(match[2]) + 1)]
    paths = [place.with_name(RANGE.sub(number, place.name, 1)) for number in numbers]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise DatasetMissingError(
            f"{len(missing)} of the {len(paths)} files of {place} are missing, such as {missing[0]}"
        )
    return paths


def index_of(output: Path) -> Path:
    """Where the rows of containers are kept, beside what is extracted from them."""
    return output.with_name(f"{output.name}.index.json")


def _indexed(files: Sequence[Path], root: Path, index: Path | None, origin: str = "") -> Rows:
    """The rows of containers; where there are tars, from the index if that is of the same files."""
    if index is None or not any(path.suffix == ".tar" for path in files):
        return _joined(files, root, origin)
    stamps = [[path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    if index.exists():
        try:
            content = json.loads(read_json(index))
            if content["stamps"] == stamps:
                return Rows(content["columns"], content["places"], root, content["audio"], origin)
        except (DamagedFileError, KeyError):
            pass  # it is made again
    rows = _joined(files, root, origin)
    content = {"stamps": stamps, "columns": rows.columns, "places": rows.places, "audio": rows.audio}
    write_json(index, json.dumps(content))
    return rows


def _joined(files: Sequence[Path], root: Path, origin: str) -> Rows:
    """The rows of containers. Where their names say so, and no column does, each is of a split."""
    tables = [read_tar(path) if path.suffix == ".tar" else read_parquet(path) for path in files]
    if len({rows.audio is None for rows in tables}) > 1:
        raise DatasetError(f"some of the files in {root} hold audio and some do not; give those with audio alone")
    rows = Rows.joined(tables, root, origin)
    if rows.audio is not None:
        rows.columns[rows.audio] = [Path(cell).relative_to(root).as_posix() for cell in rows.columns[rows.audio]]
    in_names = [SPLIT.findall(path.relative_to(root).as_posix()) for path in files]
    if len({splits[-1].lower() for splits in in_names if splits}) > 1 and "split" not in find_columns(rows.columns, {}):
        if not all(in_names):
            strange = files[in_names.index([])]
            raise DatasetError(
                f"the names of files in {root} say train, valid or test, but not that of {strange.name}; move it"
            )
        of_rows = [[splits[-1]] * len(table) for splits, table in zip(in_names, tables, strict=True)]
        rows.columns["split"] = list(itertools.chain.from_iterable(of_rows))
    return rows


def _read_annotations(path: Path, encoding: str | None) -> Rows:
    return read_raven(path, encoding) if is_raven(path) else read_audacity(path, encoding)


def read_task(task: Task, place: Path, index: Path | None = None) -> Sounds:
    """A task's clips: from the folder of the official archive, or from a copy of the data set in one of the forms of
    `read_rows`, whose columns give the official folds or splits. DatasetError: the layout differs, or the copy lacks the
    official division or has labels of another data set."""
    if task.takes_any_features:  # one's own sounds say themselves where they are
        return Sounds(place, task.read_clips(place))
    if not (is_on_hub(place) or place.is_file() or _containers(place)):
        try:
            return Sounds(place, task.read_clips(place))
        except DatasetMissingError:  # only now the folder is searched: official ones hold 300,000 files
            if not (place.is_dir() and has_rows(place, with_annotations=False)):
                raise
    copy = task.copy
    if copy is None:
        raise DatasetError(f"{task.title} is read from its official archive alone, not from {place}; give its folder")
    rows = read_rows(place, only=copy.files, index=index)
    for column in copy.columns.values():
        names = column.split("+")
        if set(names) <= rows.columns.keys() and len(names) > 1:
            rows.columns[column] = [
                "-".join(cells) for cells in zip(*(rows.columns[name] for name in names), strict=True)
            ]
    chosen = {role: column for role, column in copy.columns.items() if column in (*rows.columns, NOT_THERE)}
    sounds = clips_of(rows, chosen, ONE_CLASS)
    if copy.division and getattr(sounds.clips[0], copy.division) is None:
        raise DatasetError(
            f"{place} does not say which {copy.division} a clip is in (it has {', '.join(rows.columns)}), so the official "
            f"{copy.division}s of {task.title} are lost; use another copy, or the official archive"
        )
    clips, name_of = sounds.clips, {str(number): name for number, name in enumerate(task.class_names or ())}
    if {clip.class_name for clip in clips} <= name_of.keys():  # the copy has only the official numbers
        clips = [replace(clip, labels=(name_of[clip.class_name],)) for clip in clips]
    left_out = sum(clip.class_name in copy.left_out for clip in clips)
    remark = f"left out: {left_out:,} clips of {', '.join(sorted(copy.left_out))}, which are not of the task"
    clips = [clip for clip in clips if clip.class_name not in copy.left_out]
    return replace(sounds, clips=clips, remarks=(*sounds.remarks, *[remark] * bool(left_out)))
