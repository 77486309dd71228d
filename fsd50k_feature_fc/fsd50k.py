"""FSD50K (Fonseca et al. 2022): 51,197 Freesound clips of 0.3 to 30 s, 200 classes of AudioSet's ontology, several a clip.

https://zenodo.org/records/4060432; dev is divided into training and validation clips, eval is for testing. A clip has the
ancestors of its labels too.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

from common.datasets import (
    Clip,
    DatasetError,
    DatasetNote,
    OfficialCounts,
    Task,
    layout_error,
    plain_name,
    read_columns,
)

TITLE = "FSD50K"
SPLITS = {"train": "train", "val": "valid"}  # of dev.csv
FIX = f"unpack {TITLE}.ground_truth.zip again"


def read_clips(root: Path) -> list[Clip]:
    """Every clip of dev.csv and eval.csv; groups are the uploaders, if the metadata are there."""
    truth = root / f"{TITLE}.ground_truth"
    folders = {name: root / f"{TITLE}.{name}_audio" for name in ("dev", "eval")}
    has_sounds = any(folder.is_dir() for folder in folders.values())
    if not has_sounds or not all((truth / f"{name}.csv").is_file() for name in folders):
        expected = f"{TITLE}.dev_audio, {TITLE}.eval_audio and {TITLE}.ground_truth"
        raise layout_error(root, TITLE, expected, TITLE, "fsd50k")
    clips = [
        Clip(folder / f"{file}.wav", labels, split=split, group=uploaders.get(file))
        for name, folder in folders.items()
        for uploaders in [_read_uploaders(root, name)]
        for file, labels, split in _read_rows(truth / f"{name}.csv")
    ]
    nameless = [clip.path.stem for clip in clips if clip.group is None]
    if 0 < len(nameless) < len(clips):
        raise DatasetError(f"{root / f'{TITLE}.metadata'} has no uploader of {nameless[0]}; unpack it again")
    if nameless:
        note = f"no {TITLE}.metadata in {root}: which clips are of one uploader is unknown"
        warnings.warn(f"{note}, so single clips are resampled", DatasetNote, stacklevel=2)
    return clips


def _read_rows(path: Path) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """The file name without suffix, labels and split of every row."""
    columns = ("fname", "labels", "split") if path.stem == "dev" else ("fname", "labels")
    for place, (file, text, *splits) in read_columns(path, columns, FIX):
        split = next(iter(splits), "test")
        if path.stem == "dev" and split not in SPLITS:
            raise DatasetError(f"{place}: split must be train or val, not {split!r}; {FIX}")
        yield plain_name(file, path), tuple(text.split(",")), SPLITS.get(split, "test")


def _read_uploaders(root: Path, name: str) -> dict[str, str]:
    """File name without suffix -> who uploaded it to Freesound; empty without metadata."""
    path = root / f"{TITLE}.metadata" / f"{name}_clips_info_FSD50K.json"
    if not path.is_file():
        return {}
    try:
        return {file: str(info["uploader"]) for file, info in json.loads(path.read_bytes()).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} is damaged ({error!r}); unpack {TITLE}.metadata.zip again") from error


TASK = Task(
    name="fsd50k",
    title=TITLE,
    folder=Path(__file__).resolve().parent,
    read_clips=read_clips,
    class_names=None,  # the official vocabulary is in alphabetical order
    features_file="fsd50k_features_audiosep.pt",
    classify=("fsd50k_linear_classifier.py",),
    head_files={"linear": "fsd50k_linear_classifier.pt", "three_layer": "fsd50k_three_classifier.pt"},
    is_multilabel=True,
    official_counts=OfficialCounts(51_197, classes=200, splits={"test": 10_231}),
)
CHECKS = ((TASK,),)
