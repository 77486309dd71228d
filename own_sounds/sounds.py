"""Sounds in a folder, a table or a container, read as clips and made a task."""

from __future__ import annotations

import argparse
import json
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic.dataclasses import dataclass

from common.datasets import Clip, DatasetError, DatasetMissingError, DatasetNote, Division, Prepared, Sounds, Task
from common.datasets.clip import AUDIO_SUFFIXES, CONTAINER_SUFFIXES
from common.datasets.hub import is_on_hub
from common.datasets.labels import ONE_CLASS
from common.datasets.layout import files_in
from common.datasets.rows import TABLES
from common.datasets.tables import ROLES, SPLITS, alike, clips_of, composed
from common.files import read_json, write_json
from own_sounds.windows import with_background

if TYPE_CHECKING:
    from common.features import FeatureSet

FOLDER = Path(__file__).resolve().parent
INPUTS = "audio files or folders; tables, Parquet files, tars or data sets of the hub, as for probe.py"
SOURCE_FILE = "own_sounds.json"  # beside the results


@dataclass(frozen=True)
class Source:
    """Where sounds are, and how to find the class and group of a clip."""

    place: Path  # a folder, a table, or what else `common.datasets.places.read_rows` reads
    # label_regex, group_regex: searched in every clip's path relative to the root; the first capture group of the
    # match, or all of it, is the class or the group
    label_regex: str | None = None
    group_regex: str | None = None
    label_separator: str | None = None  # as for `read_labels`
    encoding: str | None = None  # of a table; None: UTF-8 or UTF-16
    columns: tuple[tuple[str, str], ...] = ()  # (role, column) of a table, as for `find_columns`
    background: int = 0  # clips of each recording that are cut from between its events
    is_multilabel: bool = False  # whether clips have several labels, as far as known before they are read
    has_audio: bool = True  # whether it is not a file of embeddings

    def as_flags(self) -> list[str]:
        """The flags of `probe.py` that say the same."""
        values = {name: getattr(self, name) for name in ("label_regex", "group_regex", "label_separator", "encoding")}
        values |= {f"{role}_column": column for role, column in self.columns} | {"background": self.background or None}
        return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]

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
            root = Path(content.pop("root"))
            return cls(**content), root
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{path} is damaged; run own_sounds/probe.py again") from error

    @property
    def name(self) -> str:
        """The name of the task and its files: letters, digits, ``_`` and ``-``."""
        place = self.place.parent if re.search(r"[*?{]", self.place.name) else self.place
        stem = place.stem if place.suffix.lower() in (*TABLES, *CONTAINER_SUFFIXES) else place.name
        return "own_" + re.sub(r"[^\w-]+", "_", stem).strip("_").lower()

    @property
    def results_folder(self) -> Path:
        """Beside the sounds; in the working directory, if they are on the hub or no file can be written beside them."""
        beside = self.place.parent
        return (Path.cwd() if is_on_hub(self.place) or not os.access(beside, os.W_OK) else beside) / self.name

    def read(self, index: Path | None = None) -> Sounds:
        """The clips; `index` as for `read_rows`. DatasetError if the place is missing or laid out wrong."""
        from common.datasets.places import has_rows, read_rows

        if not self.has_audio:
            raise DatasetError(f"{self.place} holds embeddings without audio, so nothing can be extracted or degraded")
        if self.place.is_dir() and not has_rows(self.place):
            sounds = read_folder(self.place, has_classes=self.label_regex is None)
        else:
            rows = read_rows(self.place, self.encoding, index=index)
            sounds = clips_of(rows, dict(self.columns), self.label_separator, is_labelled=self.label_regex is None)
        clips = sounds.clips
        if self.label_regex is not None:
            labels = _matches(sounds, self.label_regex, "--label-regex")
            clips = [replace(clip, labels=(label,)) for clip, label in zip(clips, labels, strict=True)]
        if self.group_regex is not None:
            groups = _matches(sounds, self.group_regex, "--group-regex")
            clips = [replace(clip, group=group) for clip, group in zip(clips, groups, strict=True)]
        clips = [replace(clip, labels=tuple(map(composed, clip.labels))) for clip in clips]
        clips, remarks = with_background(clips, self.background)
        has_both = any(clip.fold is not None for clip in clips) and any(clip.split is not None for clip in clips)
        both = ["folds and splits are given: the folds are used"] * has_both
        return replace(sounds, clips=clips, remarks=(*sounds.remarks, *alike(clips), *remarks, *both))

    def task(self) -> Task:
        """The task for extraction, heads and analyses."""
        name = self.name
        return Task(
            name=name,
            title=self.place.name,
            folder=FOLDER,
            read_clips=lambda root: self.read().clips,
            takes_any_features=True,
            class_names=None,
            is_multilabel=self.is_multilabel,
            features_file=f"{name}_features_audiosep.pt",
            head_files={"linear": f"{name}_linear_classifier.pt", "three_layer": f"{name}_three_classifier.pt"},
            results_folder=self.results_folder,
            prepare=prepare,
        )


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how a table is to be read."""
    for role, kind in ROLES.items():
        text = f"the column with the {role}, or none (default: {', '.join(kind.names.split()[:6])} ...)"
        parser.add_argument(f"--{role}-column", metavar="NAME", help=text)
    text = f"what separates several labels in a cell of the table, such as ';'; '{ONE_CLASS}': nothing (default: by the cells)"
    parser.add_argument("--label-separator", metavar="TEXT", help=text)
    text = "of a table, such as latin-1 or big5 (default: UTF-8 or UTF-16)"
    parser.add_argument("--encoding", metavar="NAME", help=text)


def chosen_columns(flags: argparse.Namespace) -> dict[str, str]:
    """Role -> column, from the flags of `add_columns`."""
    return {role: column for role in ROLES if (column := getattr(flags, f"{role}_column"))}


def absolute(place: Path) -> Path:
    """A place as it is named, without following links; ``hf:`` stays as it is."""
    return place if is_on_hub(place) else Path(os.path.abspath(place))  # noqa: PTH100 - links keep their names


def clips_in(paths: Sequence[Path], flags: argparse.Namespace) -> Sounds:
    """The clips of a folder, or of files, folders, and what else lists clips in the folder that all are in, as the flags of
    `add_columns` say. DatasetError: a path is missing or has no audio, or a table cannot be read."""
    listed = [_listed(absolute(path), flags) for path in paths]
    if len(listed) == 1:
        return listed[0]
    clips = dict.fromkeys(clip for sounds in listed for clip in sounds.clips)
    root = Path(os.path.commonpath([clip.path.parent for clip in clips]))
    remarks = (remark for sounds in listed for remark in sounds.remarks)
    return Sounds(root, list(clips), any(sounds.is_multilabel for sounds in listed), tuple(remarks))


def _listed(path: Path, flags: argparse.Namespace) -> Sounds:
    from common.datasets.places import has_rows, read_rows

    if has_rows(path, with_annotations=False):
        rows = read_rows(path, flags.encoding)
        return clips_of(rows, chosen_columns(flags), flags.label_separator, is_labelled=False)
    if path.is_dir():
        return read_folder(path, has_classes=False)
    if not path.exists():
        raise DatasetMissingError(f"{path} not found; give audio files, folders of them, or tables")
    return Sounds(path.parent, [Clip(path)])


def find_audio(folder: Path) -> list[Path]:
    """All audio files in a folder and its sub-folders, sorted; hidden ones are skipped, other files are reported.
    DatasetError if there are none."""
    files = files_in(folder)
    audio = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
    others = len(files) - len(audio)
    if others:
        warnings.warn(f"{folder}: {others} files that are not audio are left out", DatasetNote, stacklevel=3)
    if not audio:
        raise DatasetError(f"{folder} holds no audio files")
    return audio


def read_folder(root: Path, has_classes: bool = True) -> Sounds:
    """A clip per audio file, of the class named by its top sub-folder, or of none yet if not `has_classes`. If the top folders
    are splits or folds, or a single one, and hold folders, those are the classes. DatasetError: there are no audio files,
    or some are in no folder of a class."""
    files = find_audio(root)
    if not has_classes:
        return Sounds(root, [Clip(path) for path in files])
    parts, above = [path.relative_to(root).parts for path in files], root
    while len({names[0] for names in parts}) == 1 and any(len(names) > 2 for names in parts):
        above /= parts[0][0]
        parts = [names[1:] for names in parts]
    tops = sorted({names[0] for names in parts if len(names) > 1})
    below = {names[1] for names in parts if len(names) > 2}
    kinds = {next(iter(_division_of(top)), "class") for top in tops}
    depth = 1 if "class" in kinds else 2
    if (len(kinds) > 1 and (below or depth == 2)) or (len(below) > 1 and all(map(_division_of, below))):
        raise DatasetError(
            f"{above}: some of the folders {', '.join(tops)}, or those in them, may be splits or folds; give a table"
        )
    loose = [path for path, names in zip(files, parts, strict=True) if len(names) <= depth]
    if loose:
        raise DatasetError(
            f"{loose[0]} does not lie in the folder of a class; make a sub-folder for every class, give a table with the columns "
            "path and label, or say with --label-regex where in the path the class is"
        )
    remarks = [f"the folders {', '.join(tops)} are the {kinds.pop()}s"] if depth == 2 else []
    remarks += [f"the classes are the folders in {above}"] if above != root else []
    clips = [
        Clip(path, (names[depth - 1],), **(_division_of(names[0]) if depth == 2 else {}))
        for path, names in zip(files, parts, strict=True)
    ]
    return Sounds(root, clips, remarks=tuple(remarks))


def _division_of(folder: str) -> dict[str, Any]:
    """The split or fold that a folder's name means; empty if it means neither."""
    number = re.fullmatch(r"fold[ _-]?(\d{1,4})", folder, re.IGNORECASE)
    if number is not None:
        return {"fold": int(number[1])}
    return {"split": SPLITS[folder.lower()]} if folder.lower() in SPLITS else {}


def _matches(sounds: Sounds, pattern: str, flag: str) -> list[str]:
    """What the pattern matches in every clip's path; DatasetError if it matches nothing somewhere."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DatasetError(f"{flag} {pattern!r} is not a regular expression: {error}") from error
    from common.datasets.containers import name_of

    names = []
    for clip in sounds.clips:
        path = name_of(clip.path, sounds.root)
        match = expression.search(path)
        name = match[1 if expression.groups else 0] if match else None
        if not name:
            raise DatasetError(f"{flag} {pattern!r} matches nothing in {path}")
        names.append(name)
    return names


def prepare(features: FeatureSet, division: Division) -> Prepared:
    """Use the folds or splits of the table; else make folds that keep groups apart; else leave the rows undivided, for
    a random split with its warning. None of these is called official."""
    if features.folds is not None or features.splits is not None:
        return Prepared(features, is_official=False)
    if features.groups is None:
        from common.features import SEGMENT

        files = [SEGMENT.sub("", clip_id) for clip_id in features.clip_ids]
        if len(set(files)) == len(files):
            return Prepared(features, is_official=False)
        features = replace(features, groups=files)  # segments of one file stay together
    import numpy as np
    import torch

    from common.evaluation.splits import folds_by_group

    folds, words = folds_by_group(
        features.labels.numpy(), np.array(features.groups), features.class_names, division.seed
    )
    return Prepared(replace(features, folds=torch.from_numpy(folds)), words, is_official=False)
