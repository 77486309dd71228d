"""ESC-50 (Piczak 2015): 2,000 environmental recordings of 5 s, 50 classes, 5 official folds.

https://github.com/karolpiczak/ESC-50; clips of the same source recording are in the same fold.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.datasets import Clip, Copy, DatasetError, OfficialCounts, Task, layout_error, read_columns

if TYPE_CHECKING:
    from common.features import FeatureSet

TITLE = "ESC-50"
# In the order of the official target numbers 0 to 49.
CLASS_NAMES = (
    "dog", "rooster", "pig", "cow", "frog", "cat", "hen", "insects", "sheep", "crow",
    "rain", "sea_waves", "crackling_fire", "crickets", "chirping_birds",
    "water_drops", "wind", "pouring_water", "toilet_flush", "thunderstorm",
    "crying_baby", "sneezing", "clapping", "breathing", "coughing",
    "footsteps", "laughing", "brushing_teeth", "snoring", "drinking_sipping",
    "door_wood_knock", "mouse_click", "keyboard_typing", "door_wood_creaks", "can_opening",
    "washing_machine", "vacuum_cleaner", "clock_alarm", "clock_tick", "glass_breaking",
    "helicopter", "chainsaw", "siren", "car_horn", "engine", "train", "church_bells", "airplane", "fireworks",
    "hand_saw",
)  # fmt: skip


def read_clips(root: Path) -> list[Clip]:
    """Every row of meta/esc50.csv as a clip; folds are the official 1-5, groups the source recordings. DatasetError also if a
    row contradicts its file's name, as in altered copies of the CSV."""
    listing = root / "meta" / "esc50.csv"
    if not listing.is_file() or not (root / "audio").is_dir():
        raise layout_error(root, TITLE, "audio/*.wav and meta/esc50.csv", "ESC-50-master", "esc50")
    columns, fix = ("filename", "fold", "target", "category", "src_file"), f"unpack {TITLE} again"
    names, clips = {str(number): name for number, name in enumerate(CLASS_NAMES)}, []
    for place, (file, fold, target, category, source) in read_columns(listing, columns, fix):
        name = re.fullmatch(r"([1-5])-\d+-[A-Z]-(\d+)\.wav", file)
        if not name or name.groups() != (fold, target) or names.get(target) != category or not source:
            raise DatasetError(f"{place} ({file}) is not the official row; {fix}")
        clips.append(Clip(root / "audio" / file, (category,), fold=int(fold), group=source))
    return clips


def recognise(features: FeatureSet) -> tuple[FeatureSet, str] | None:
    """Give the original project's file the official folds: its 2,000 rows are in the order of esc50.csv, sorted by file name
    and so by fold, with 8 clips of every class in every 400 rows."""
    import torch

    if len(features) != 2000 or features.folds is not None:
        return None
    counts = torch.stack([rows.bincount(minlength=50) for rows in features.labels.split(400)])
    if counts.shape != (5, 50) or not (counts == 8).all():
        return None
    folds = torch.arange(2000) // 400 + 1
    sentence = "recognised as all of ESC-50 in the order of esc50.csv: the official folds 1-5 are assigned"
    return replace(features, folds=folds, class_names=list(CLASS_NAMES)), sentence


TASK = Task(
    name="esc50",
    title=TITLE,
    folder=Path(__file__).resolve().parent,
    read_clips=read_clips,
    class_names=CLASS_NAMES,
    features_file="esc50_features_audiosep.pt",
    classify=("esc50_linear_classifier.py",),
    head_files={"linear": "esc50_linear_classifier.pt", "three_layer": "esc50_three_classifier.pt"},
    copy=Copy({"label": "category", "group": "src_file", "split": "none"}, "fold"),
    recognise=recognise,
    official_counts=OfficialCounts(2000, folds=(400,) * 5, labels=dict.fromkeys(CLASS_NAMES, 40)),
)
CHECKS = ((TASK,),)
