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

from common.datasets import Clip, DatasetError, DatasetMissingError, DatasetNote, Division, Prepared, Task, read_csv
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
    "label": ("[^;]+", "one class (heads are trained for one class a clip)"),
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
    """A folder or table of sounds, and how to find the class and group of a clip.

    Attributes:
        place: the folder or the table.
        label_regex, group_regex: searched in every clip's path relative to the root; the first capture group of the
            match, or all of it, is the class or the group.
    """

    place: Path
    label_regex: str | None = None
    group_regex: str | None = None

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

    def read(self) -> tuple[Path, list[Clip]]:
        """The root, to which clip ids are relative, and the clips; DatasetError if the place is missing or laid out wrong."""
        if not self.place.exists():
            raise DatasetMissingError(f"{self.place} not found; give a folder with a sub-folder per class, or a table")
        if self.place.is_file():
            root, clips = read_table(self.place)
        else:
            root, clips = self.place, read_folder(self.place, has_classes=self.label_regex is None)
        if self.label_regex is not None:
            labels = _matches(clips, root, self.label_regex, "--label-regex")
            clips = [replace(clip, class_name=label) for clip, label in zip(clips, labels, strict=True)]
        if self.group_regex is not None:
            groups = _matches(clips, root, self.group_regex, "--group-regex")
            clips = [replace(clip, group=group) for clip, group in zip(clips, groups, strict=True)]
        return root, clips

    def task(self) -> Task:
        """The task for extraction, heads and analyses."""
        name = self.name
        return Task(
            name=name,
            title=self.place.name,
            folder=FOLDER,
            read_clips=lambda root: self.read()[1],
            class_names=None,
            features_file=f"{name}_features_audiosep.pt",
            head_files={"linear": f"{name}_linear_classifier.pt", "three_layer": f"{name}_three_classifier.pt"},
            results_folder=FOLDER / "results" / name,
            prepare=prepare,
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
    return [Clip(path, path.relative_to(root).parts[0] if has_classes else "") for path in files]


def read_table(path: Path) -> tuple[Path, list[Clip]]:
    """The root and the clips of a table. Paths are relative to its folder, which is the root unless a file lies outside."""
    table = _read_cells(path)
    folder, clips = path.resolve().parent, []
    lines: dict[tuple[object, ...], int] = {}
    for line, row in enumerate(table.to_dict("records"), start=2):
        try:
            clip = _clip({str(column): str(cell).strip() for column, cell in row.items()}, folder)
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
    return Path(os.path.commonpath([folder, *outside])), clips


def _read_cells(path: Path) -> pd.DataFrame:
    """The table as text; DatasetError unless it has rows and the required columns."""
    separator = SEPARATORS.get(path.suffix.lower())
    if separator is None:
        raise DatasetError(f"{path} is not a table; give a .csv or .tsv, or a folder with a sub-folder per class")
    options = {"sep": separator, "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
    table = read_csv(path, ("path", "label"), "give a table with a line for each clip", **options)
    unknown = [str(column) for column in table.columns if column not in COLUMNS]
    if unknown:
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
        row["label"],
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

    from common.evaluation.splits import group_folds

    labels, groups = features.labels.numpy(), np.array(features.groups)
    groups_of_class = Counter(label for label, _ in set(zip(labels.tolist(), groups.tolist(), strict=True)))
    rarest, n_groups = min(groups_of_class.items(), key=lambda item: (item[1], item[0]))
    for n_folds in range(min(MOST_FOLDS, n_groups), 1, -1):
        with warnings.catch_warnings():  # of scikit-learn, about classes with fewer clips than folds
            warnings.simplefilter("ignore", UserWarning)
            folds = 1 + group_folds(labels, groups, n_folds, seed)
        if all(len(set(labels[folds == number])) == len(groups_of_class) for number in range(1, n_folds + 1)):
            divided = replace(features, folds=torch.from_numpy(folds))
            return Prepared(divided, f"{n_folds} folds by group, made here with seed {seed}", is_official=False)
    raise DatasetError(
        f"no folds keep groups apart and hold every class: class {features.class_names[rarest]} has clips of only {n_groups} "
        f"group{'s' * (n_groups > 1)}; give folds or splits, or leave out the groups (then related clips may be on both sides)"
    )
