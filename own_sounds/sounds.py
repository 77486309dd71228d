"""One's own sounds as a task: a folder with a sub-folder per class, or a table (CSV or TSV) of paths and labels."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING

from common.datasets import Clip, DatasetError, DatasetMissingError, DatasetNote, Division, Prepared, Task
from common.files import read_json, write_json

if TYPE_CHECKING:
    import pandas as pd

    from common.features import FeatureSet

# What libsndfile decodes, by the usual endings of file names.
AUDIO = frozenset(
    f".{ending}"
    for ending in [
        "aif",
        "aifc",
        "aiff",
        "au",
        "caf",
        "flac",
        "mp3",
        "oga",
        "ogg",
        "opus",
        "rf64",
        "snd",
        "sph",
        "voc",
        "w64",
        "wav",
        "wave",
    ]
)
TABLES = {".csv": ",", ".tsv": "\t"}
COLUMNS = ("path", "label", "fold", "split", "group", "start", "end")
SPLITS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
}
SPLITS |= {"test": "test", "testing": "test", "eval": "test"}
MOST_FOLDS = 5
FOLDER = Path(__file__).resolve().parent
SOURCE_FILE = "own_sounds.json"  # beside the results


@dataclass(frozen=True)
class Source:
    """Where the sounds are, and how their classes and groups are found.

    Attributes:
        place: a folder, or a table.
        label_regex, group_regex: searched in each path below the root; the first bracket of a match, or else all of it, is
            the clip's class, or its group.
    """

    place: Path
    label_regex: str | None = None
    group_regex: str | None = None

    def save(self, folder: Path, root: Path) -> None:
        """Write beside the results what analyses need to find the sounds again."""
        content = {**asdict(self), "place": str(self.place), "root": str(root)}
        write_json(folder / SOURCE_FILE, json.dumps(content))

    @classmethod
    def load(cls, folder: Path) -> tuple[Source, Path] | None:
        """What `save` has written: source and root; None if there is nothing, DatasetError if it is damaged."""
        path = folder / SOURCE_FILE
        if not path.exists():
            return None
        try:
            content = json.loads(read_json(path))
            root = Path(content.pop("root"))
            source = cls(Path(content.pop("place")), **content)
            if not all(isinstance(each, (str, NoneType)) for each in (source.label_regex, source.group_regex)):
                raise ValueError("a regular expression is no text")
            return source, root
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(f"{path} is damaged; run own_sounds/probe.py again") from error

    @property
    def name(self) -> str:
        """A name for files: of the folder or the table, without what file names should not have."""
        stem = self.place.stem if self.place.suffix in TABLES else self.place.name
        return "own_" + re.sub(r"[^\w-]+", "_", stem).strip("_").lower()

    def read(self) -> tuple[Path, list[Clip]]:
        """The root, to which clip ids are relative, and the clips.

        Raises:
            DatasetError: the place is missing, is laid out otherwise, or a row of the table is wrong.
        """
        if not self.place.exists():
            raise DatasetMissingError(
                f"{self.place} not found; give a folder with a sub-folder per class, or a CSV or TSV"
            )
        if self.place.is_file():
            root, clips = read_table(self.place)
        else:
            root, clips = self.place, read_folder(self.place, has_classes=self.label_regex is None)
        if self.label_regex is not None:
            found = _matches(clips, root, self.label_regex, "--label-regex")
            clips = [replace(clip, class_name=name) for clip, name in zip(clips, found, strict=True)]
        if self.group_regex is not None:
            found = _matches(clips, root, self.group_regex, "--group-regex")
            clips = [replace(clip, group=name) for clip, name in zip(clips, found, strict=True)]
        return root, clips

    def task(self) -> Task:
        """The task of these sounds, for extraction, heads and analyses."""
        return Task(
            name=self.name,
            title=self.place.name,
            folder=FOLDER,
            read_clips=lambda root: self.read()[1],
            class_names=None,
            features_file=f"{self.name}_features_audiosep.pt",
            head_files={
                "linear": f"{self.name}_linear_classifier.pt",
                "three_layer": f"{self.name}_three_classifier.pt",
            },
            results_folder=FOLDER / "results" / self.name,
            prepare=prepare,
        )


def find_audio(folder: Path) -> tuple[list[Path], list[Path]]:
    """The audio files below a folder, and the other ones; hidden ones are neither."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    is_audio = {path: path.suffix.lower() in AUDIO for path in files}
    return [path for path in files if is_audio[path]], [path for path in files if not is_audio[path]]


def read_folder(root: Path, has_classes: bool = True) -> list[Clip]:
    """Every audio file below `root`.

    Args:
        has_classes: whether the sub-folder that a file is in, at any depth, is its class; else it has none yet.
    """
    audio, others = find_audio(root)
    loose = [path for path in audio if path.parent == root] if has_classes else []
    if loose or not audio:
        found = f"{loose[0].name} lies directly in it" if loose else "it holds no audio files"
        raise DatasetError(
            f"{root}: {found}; make a sub-folder for every class, give a CSV with the columns path and label, or say with "
            "--label-regex where in the path the class is"
        )
    if others:
        warnings.warn(
            f"{len(others)} files that are no audio are left out (first: {others[0]})", DatasetNote, stacklevel=2
        )
    return [Clip(path, path.relative_to(root).parts[0] if has_classes else "") for path in audio]


def read_table(path: Path) -> tuple[Path, list[Clip]]:
    """The clips of a CSV or TSV with the columns path and label and, if there are any, fold, split, group, start, end.

    Paths are relative to the table's folder. Returns the root as well: that folder, or one above it if a file is
    outside.
    """
    table = _read_text_table(path)
    folder, clips = path.resolve().parent, []
    seen: dict[tuple[object, ...], int] = {}
    for line, row in enumerate(table.to_dict("records"), start=2):
        try:
            clip = _clip({str(key): str(value).strip() for key, value in row.items()}, folder)
        except ValueError as error:
            raise DatasetError(f"{path} line {line}: {error}") from error
        first = seen.setdefault((clip.path, clip.start_s, clip.end_s), line)
        if first != line:
            raise DatasetError(f"{path} line {line}: {row['path']} is listed in line {first} already")
        clips.append(clip)
    for column in ("fold", "split", "group"):
        missing = [place for place, clip in enumerate(clips, start=2) if getattr(clip, column) is None]
        if missing and len(missing) < len(clips):
            raise DatasetError(f"{path} line {missing[0]} has no {column}, but others have; fill in all or none")
    outside = [clip.path for clip in clips if folder not in clip.path.parents]
    return Path(os.path.commonpath([folder, *(each.parent for each in outside)])), clips


def _read_text_table(path: Path) -> pd.DataFrame:
    import pandas as pd

    separator = TABLES.get(path.suffix.lower())
    if separator is None:
        raise DatasetError(f"{path} is no table; give a .csv or .tsv, or a folder with a sub-folder per class")
    try:
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OverflowError) as error:  # pandas' own and UnicodeDecodeError are ValueErrors
        raise DatasetError(f"{path} cannot be read as a table: {' '.join(str(error).split())[:200]}") from error
    missing = [column for column in COLUMNS[:2] if column not in table.columns]
    if missing:
        raise DatasetError(
            f"{path} lacks the column {' and '.join(missing)} (it has {', '.join(map(str, table.columns[:10]))}); needed are path "
            f"and label, and known besides are {', '.join(COLUMNS[2:])}"
        )
    if table.empty:
        raise DatasetError(f"{path} lists no clips")
    unknown = [str(column) for column in table.columns if column not in COLUMNS]
    if unknown:
        warnings.warn(f"columns of {path.name} that are not used: {', '.join(unknown)}", DatasetNote, stacklevel=3)
    return table


def _clip(row: dict[str, str], folder: Path) -> Clip:
    """A row of the table; ValueError says what is wrong with it."""
    if not row["path"] or not row["label"]:
        raise ValueError(f"{'path' if not row['path'] else 'label'} is empty")
    if ";" in row["label"]:
        raise ValueError(
            f"label {row['label']!r} names several classes; this project trains heads for one class a clip"
        )
    fold, split = row.get("fold", ""), row.get("split", "").lower()
    if fold and not re.fullmatch(r"\d{1,9}", fold):
        raise ValueError(f"fold must be a whole number, not {fold!r}")
    if "\0" in row["path"]:
        raise ValueError(f"{row['path']!r} is no file's name")
    if split and split not in SPLITS:
        raise ValueError(f"split must be train, valid or test, not {split!r}")
    start, end = (_seconds(row.get(name, ""), name) for name in ("start", "end"))
    if (start or 0.0) < 0 or (end is not None and end <= (start or 0.0)):
        raise ValueError(f"start {row.get('start')!r} and end {row.get('end')!r} are no segment")
    return Clip(
        Path(os.path.normpath(folder / Path(row["path"]).expanduser())),
        row["label"],
        split=SPLITS[split] if split else None,
        fold=int(fold) if fold else None,
        group=row.get("group") or None,
        start_s=start,
        end_s=end,
    )


def _seconds(text: str, name: str) -> float | None:
    try:
        seconds = float(text) if text else None
    except ValueError as error:
        raise ValueError(f"{name} must be a number of seconds, not {text!r}") from error
    if seconds is not None and not math.isfinite(seconds):
        raise ValueError(f"{name} must be a number of seconds, not {text!r}")
    return seconds


def _matches(clips: Sequence[Clip], root: Path, pattern: str, flag: str) -> list[str]:
    """What the pattern finds in each clip's path; DatasetError if it finds nothing in one."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DatasetError(f"{flag} {pattern!r} is no regular expression: {error}") from error
    names = []
    for clip in clips:
        path = clip.path.relative_to(root).as_posix()
        found = expression.search(path)
        name = found[1 if expression.groups else 0] if found else None
        if not name:
            raise DatasetError(f"{flag} {pattern!r} finds nothing in {path}")
        names.append(name)
    return names


def prepare(features: FeatureSet, division: Division) -> Prepared:
    """The rows in their given folds or splits; else in folds that keep groups apart; else as they are, for a random
    division, which is announced with a warning. None of these is called official."""
    if features.folds is not None:
        present = sorted(set(features.folds.tolist()))
        return Prepared(features, f"given folds {', '.join(map(str, present))}", is_official=False)
    if features.splits is not None:
        sides = [side for side in ("train", "valid", "test") if side in features.splits]
        return Prepared(features, f"given {', '.join(sides[:-1])} and {sides[-1]} split", is_official=False)
    if features.groups is None:
        return Prepared(features, is_official=False)
    return _by_groups(features, division.seed)


def _by_groups(features: FeatureSet, seed: int) -> Prepared:
    """As many folds as keep every class in every fold, at most MOST_FOLDS; no group is on two sides."""
    import numpy as np
    import torch

    from common.evaluation.splits import group_folds

    labels, groups = features.labels.numpy(), np.array(features.groups)
    of_class = Counter(label for label, _ in set(zip(labels.tolist(), groups.tolist(), strict=True)))
    rarest, count = min(of_class.items(), key=lambda each: (each[1], each[0]))
    for n_folds in range(min(MOST_FOLDS, count), 1, -1):
        with warnings.catch_warnings():  # about classes with fewer clips than folds, which is checked below
            warnings.simplefilter("ignore", UserWarning)
            folds = 1 + group_folds(labels, groups, n_folds, seed)
        if all(len(set(labels[folds == number])) == len(of_class) for number in range(1, n_folds + 1)):
            divided = replace(features, folds=torch.from_numpy(folds))
            return Prepared(divided, f"{n_folds} folds by group, made here with seed {seed}", is_official=False)
    raise DatasetError(
        f"no folds keep groups apart with every class in each: class {features.class_names[rarest]} has clips of only "
        f"{count} group{'s' * (count > 1)}; give folds or splits, or leave the groups out (then related clips may be on both sides)"
    )
