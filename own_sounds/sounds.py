"""Sounds in a folder or a table (CSV or TSV), read as clips and made a task."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from common.datasets import (
    Clip,
    DatasetError,
    DatasetMissingError,
    DatasetNote,
    Division,
    Labels,
    Prepared,
    Task,
    read_csv,
    read_indicators,
    read_labels,
)
from common.files import read_json, write_json

if TYPE_CHECKING:
    import pandas as pd

    from common.features import FeatureSet

# The usual file extensions of what libsndfile decodes.
AUDIO = frozenset((
    ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".snd", ".sph", ".voc",
    ".w64", ".wav", ".wave",
))  # fmt: skip
SEPARATORS = {".csv": ",", ".tsv": "\t"}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
SECONDS = r"[\d.]*(e[-+]?\d+)?"
COLUMNS = {  # of a table: what a cell matches, and that in words
    "path": (".+", "a file"),
    "label": (".*", "text"),
    "fold": (r"\d{0,9}", "a whole number"),
    "split": ("|".join(("", *SPLITS)), "train, valid or test"),
    "group": (".*", "text"),
    "start": (SECONDS, "a number of seconds"),
    "end": (SECONDS, "a number of seconds"),
}
MOST_FOLDS = 5
FOLDER = Path(__file__).resolve().parent
SOURCE_FILE = "own_sounds.json"  # beside the results


@dataclass(frozen=True)
class Source:
    """A folder or table of sounds, and how to find the class and group of a clip."""

    place: Path  # the folder or the table
    # label_regex, group_regex: searched in every clip's path relative to the root; the first capture group of the
    # match, or all of it, is the class or the group
    label_regex: str | None = None
    group_regex: str | None = None
    label_separator: str | None = None  # as for `read_labels`
    is_multilabel: bool = False  # whether clips have several labels, as far as known before they are read

    def save(self, folder: Path, root: Path) -> None:
        """Write beside the results what analyses need to find the sounds again."""
        write_json(folder / SOURCE_FILE, json.dumps({**asdict(self), "place": str(self.place), "root": str(root)}))

    @classmethod
    def load(cls, folder: Path) -> tuple[Source, Path] | None:
        """The source and root written by `save`, or None; DatasetError if the file is damaged."""
        path = folder / SOURCE_FILE
        if not path.exists():
            return None
        try:
            content = json.loads(read_json(path))
            root, place = Path(content.pop("root")), Path(content.pop("place"))
            return cls(place, **content), root
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{path} is damaged; run own_sounds/probe.py again") from error

    @property
    def name(self) -> str:
        """The name of the task and its files: letters, digits, ``_`` and ``-``."""
        stem = self.place.stem if self.place.suffix in SEPARATORS else self.place.name
        return "own_" + re.sub(r"[^\w-]+", "_", stem).strip("_").lower()

    def read(self) -> Sounds:
        """The clips; DatasetError if the place is missing or laid out wrong."""
        if not self.place.exists():
            raise DatasetMissingError(f"{self.place} not found; give a folder with a sub-folder per class, or a table")
        if self.place.is_file():
            sounds = read_table(self.place, self.label_separator)
        else:
            sounds = Sounds(self.place, read_folder(self.place, has_classes=self.label_regex is None))
        root, clips = sounds.root, sounds.clips
        if self.label_regex is not None:
            labels = _matches(clips, root, self.label_regex, "--label-regex")
            clips = [replace(clip, labels=(label,)) for clip, label in zip(clips, labels, strict=True)]
            sounds = Sounds(root, clips)
        if self.group_regex is not None:
            groups = _matches(clips, root, self.group_regex, "--group-regex")
            clips = [replace(clip, group=group) for clip, group in zip(clips, groups, strict=True)]
        return replace(sounds, clips=clips)

    def task(self) -> Task:
        """The task for extraction, heads and analyses."""
        name = self.name
        return Task(
            name=name,
            title=self.place.name,
            folder=FOLDER,
            read_clips=lambda root: self.read().clips,
            class_names=None,
            is_multilabel=self.is_multilabel,
            features_file=f"{name}_features_audiosep.pt",
            head_files={"linear": f"{name}_linear_classifier.pt", "three_layer": f"{name}_three_classifier.pt"},
            results_folder=FOLDER / "results" / name,
            prepare=prepare,
        )


@dataclass(frozen=True)
class Sounds:
    """What a folder or table lists."""

    root: Path  # the folder to which clip ids are relative
    clips: list[Clip]
    is_multilabel: bool = False
    remark: str = ""  # how labels were understood, for readers; empty if that is plain


def refuse_unlearnable(sounds: Sounds) -> None:
    """DatasetError if the list alone tells that a class cannot be learned and tested."""
    counts = Counter(label for clip in sounds.clips for label in clip.labels)
    learnable = {label for clip in sounds.clips if clip.split != "test" for label in clip.labels}
    for label, count in sorted(counts.items()):
        if count == 1 or count == len(sounds.clips):
            clips = "a single clip is" if count == 1 else f"all {count:,} clips are"
            raise DatasetError(
                f"{clips} of class {label!r}: it cannot be learned and tested; leave it out or add clips"
            )
        if label not in learnable:
            raise DatasetError(
                f"class {label!r} has only test clips, so it cannot be learned; leave it out or add clips"
            )


def audio_files(paths: Sequence[Path]) -> list[Path]:
    """The files, and all audio files in the folders among them; DatasetError if a path is missing or has no audio."""
    files: list[Path] = []
    for path in (Path(os.path.realpath(path)) for path in paths):  # Path.resolve raises on a link to itself
        if not path.exists():
            raise DatasetMissingError(f"{path} not found; give audio files or folders of them")
        in_folder = _find_audio(path) if path.is_dir() else [path]
        if not in_folder:
            raise DatasetError(f"{path} holds no audio files")
        files += in_folder
    return list(dict.fromkeys(files))


def _find_audio(folder: Path) -> list[Path]:
    """All audio files in a folder and its sub-folders, sorted; hidden ones are skipped, other files are reported."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    others = [path for path in files if path.suffix.lower() not in AUDIO]
    if others:
        warnings.warn(f"{folder}: {len(others)} files that are not audio are left out", DatasetNote, stacklevel=3)
    return [path for path in files if path.suffix.lower() in AUDIO]


def read_folder(root: Path, has_classes: bool = True) -> list[Clip]:
    """A clip per audio file, of the class named by its top sub-folder, or of none yet if not `has_classes`."""
    files = _find_audio(root)
    loose = [path for path in files if path.parent == root] if has_classes else []
    if loose or not files:
        problem = f"{loose[0].name} lies directly in it" if loose else "it holds no audio files"
        raise DatasetError(
            f"{root}: {problem}; make a sub-folder for every class, give a CSV with the columns path and label, or say "
            "with --label-regex where in the path the class is"
        )
    return [Clip(path, path.relative_to(root).parts[:1] if has_classes else ()) for path in files]


def read_table(path: Path, label_separator: str | None = None) -> Sounds:
    """The clips of a table. Paths are relative to its folder, which is the root unless a file lies outside."""
    table = _read_cells(path)
    labels = _read_labels(path, table, label_separator)
    folder, clips = path.resolve().parent, []
    lines: dict[tuple[object, ...], int] = {}
    for line, (row, names) in enumerate(zip(table.to_dict("records"), labels.sets, strict=True), start=2):
        try:
            clip = replace(_clip({str(column): str(cell) for column, cell in row.items()}, folder), labels=names)
            if not names and not labels.is_multilabel:
                raise ValueError("its label is empty")
        except ValueError as error:
            raise DatasetError(f"{path} line {line}: {error}") from error
        first = lines.setdefault((clip.path, clip.start_s, clip.end_s), line)
        if first != line:
            raise DatasetError(f"{path} line {line}: {row['path']} is already listed in line {first}")
        clips.append(clip)
    for column in ("fold", "split", "group"):
        empty = [line for line, clip in enumerate(clips, start=2) if getattr(clip, column) is None]
        if empty and len(empty) < len(clips):
            raise DatasetError(f"{path} line {empty[0]} has no {column}, but others have; fill in all or none")
    outside = [clip.path.parent for clip in clips if folder not in clip.path.parents]
    root = Path(os.path.commonpath([folder, *outside]))
    return Sounds(root, clips, labels.is_multilabel, labels.remark)


def _read_labels(path: Path, table: pd.DataFrame, separator: str | None) -> Labels:
    """The labels of a table's rows: of the column ``label``, or else of a column of 0 and 1 for every class."""
    try:
        if "label" in table:
            return read_labels(table["label"].tolist(), separator)
        return read_indicators({str(name): table[name].tolist() for name in table.columns if name not in COLUMNS})
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def _read_cells(path: Path) -> pd.DataFrame:
    """The table as text; DatasetError unless it has rows and the required columns."""
    separator = SEPARATORS.get(path.suffix.lower())
    if separator is None:
        raise DatasetError(f"{path} is not a table; give a .csv or .tsv, or a folder with a sub-folder per class")
    options = {"sep": separator, "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
    table = read_csv(path, ("path",), "give a table with a line for each clip", **options)
    for column in table.columns:
        table[column] = table[column].str.strip()
    unknown = [str(column) for column in table.columns if column not in COLUMNS]
    if "label" not in table and len(unknown) < 2:
        raise DatasetError(
            f"{path} lacks the column label, or a column of 0 and 1 for every class (it has {', '.join(table.columns)})"
        )
    if unknown and "label" in table:
        warnings.warn(f"columns of {path.name} that are not used: {', '.join(unknown)}", DatasetNote, stacklevel=3)
    return table


def _clip(row: dict[str, str], folder: Path) -> Clip:
    """The clip of a table's row; ValueError says what is wrong with it."""
    for column, (pattern, meaning) in COLUMNS.items():
        if not re.fullmatch(pattern, row.get(column, ""), re.IGNORECASE):
            raise ValueError(f"{column} must be {meaning}, not {row[column]!r}")
    fold, split = row.get("fold"), row.get("split")
    start_s, end_s = (float(row[column]) if row.get(column) else None for column in ("start", "end"))
    if end_s is not None and end_s <= (start_s or 0):
        raise ValueError(f"end {end_s} is not after start {start_s or 0}")
    return Clip(
        Path(os.path.normpath(folder / Path(row["path"]).expanduser())),
        split=SPLITS[split.lower()] if split else None,
        fold=int(fold) if fold else None,
        group=row.get("group") or None,
        start_s=start_s,
        end_s=end_s,
    )


def _matches(clips: Sequence[Clip], root: Path, pattern: str, flag: str) -> list[str]:
    """What the pattern matches in every clip's path; DatasetError if it matches nothing somewhere."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DatasetError(f"{flag} {pattern!r} is not a regular expression: {error}") from error
    names = []
    for clip in clips:
        path = clip.path.relative_to(root).as_posix()
        match = expression.search(path)
        name = match[1 if expression.groups else 0] if match else None
        if not name:
            raise DatasetError(f"{flag} {pattern!r} matches nothing in {path}")
        names.append(name)
    return names


def prepare(features: FeatureSet, division: Division) -> Prepared:
    """Use the folds or splits of the table; else make folds that keep groups apart; else leave the rows undivided, for
    a random split with its warning. None of these is called official."""
    if features.folds is not None:
        numbers = sorted(set(features.folds.tolist()))
        return Prepared(features, f"given folds {', '.join(map(str, numbers))}", is_official=False)
    if features.splits is not None:
        names = [name for name in ("train", "valid", "test") if name in features.splits]
        return Prepared(features, f"given {', '.join(names[:-1])} and {names[-1]} split", is_official=False)
    if features.groups is None:
        return Prepared(features, is_official=False)
    return _by_groups(features, division.seed)


def _by_groups(features: FeatureSet, seed: int) -> Prepared:
    """As many folds as all hold every class and keep groups whole, at most MOST_FOLDS; DatasetError if below two."""
    import numpy as np
    import torch

    from common.evaluation.splits import class_counts, group_folds, groups_by_class

    labels, groups = features.labels.numpy(), np.array(features.groups)
    n_groups_of = groups_by_class(features)
    rarest = int(n_groups_of.argmin())
    n_groups = int(n_groups_of[rarest])
    for n_folds in range(min(MOST_FOLDS, n_groups), 1, -1):
        with warnings.catch_warnings():  # of scikit-learn, about classes with fewer clips than folds
            warnings.simplefilter("ignore", UserWarning)
            folds = 1 + group_folds(labels, groups, n_folds, seed)
        # With several labels a clip, a class that is not tested is left out of a mean.
        sides = [labels[(folds == number) ^ features.is_multilabel] for number in range(1, n_folds + 1)]
        if all(class_counts(side, len(n_groups_of)).all() for side in sides):
            divided = replace(features, folds=torch.from_numpy(folds))
            return Prepared(divided, f"{n_folds} folds by group, made here with seed {seed}", is_official=False)
    raise DatasetError(
        f"no folds keep groups apart and hold every class: class {features.class_names[rarest]} has clips of only {n_groups} "
        f"group{'s' * (n_groups > 1)}; give folds or splits, or leave out the groups (then related clips may be on both sides)"
    )
