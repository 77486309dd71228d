"""UrbanSound8K (Salamon et al. 2014): 8,732 urban sounds of up to 4 s, 10 classes, 10 official folds.

https://urbansounddataset.weebly.com/urbansound8k.html; the folds must not be reshuffled.
"""

from pathlib import Path
from typing import Any

from common.datasets import Clip, DatasetError, OfficialCounts, Task, layout_error, plain_name, read_metadata

TITLE = "UrbanSound8K"
# In the order of the official classID 0 to 9.
CLASS_NAMES = (
    "air_conditioner",
    "car_horn",
    "children_playing",
    "dog_bark",
    "drilling",
    "engine_idling",
    "gun_shot",
    "jackhammer",
    "siren",
    "street_music",
)


def read_clips(root: Path) -> list[Clip]:
    """Every row of metadata/UrbanSound8K.csv as a clip; folds are the official 1-10, groups the Freesound ids.

    Raises:
        DatasetError: the layout differs, or a row is not the official CSV's.
    """
    metadata = root / "metadata" / "UrbanSound8K.csv"
    if not metadata.is_file() or not (root / "audio").is_dir():
        expected = "audio/fold1 to fold10 and metadata/UrbanSound8K.csv"
        raise layout_error(root, TITLE, expected, "UrbanSound8K", "urbansound8k")
    columns = ("slice_file_name", "fsID", "fold", "classID", "class")
    meta = read_metadata(metadata, columns, ("fsID", "fold", "classID"), TITLE)
    meta = meta.rename(columns={"class": "class_name"})  # a keyword cannot be a row's attribute
    rows: list[Any] = list(meta.itertuples())
    for line, row in enumerate(rows, start=2):
        official = row.classID in range(10) and row.class_name == CLASS_NAMES[row.classID] and row.fold in range(1, 11)
        # [fsID]-[classID]-[occurrenceID]-[sliceID].wav
        if not official or not str(row.slice_file_name).startswith(f"{row.fsID}-{row.classID}-"):
            raise DatasetError(
                f"{metadata} line {line} ({row.slice_file_name}: fold {row.fold}, classID {row.classID}, "
                f"{row.class_name}) is not the official row; unpack the official archive again"
            )
    return [
        Clip(
            root / "audio" / f"fold{row.fold}" / plain_name(row.slice_file_name, metadata),
            (row.class_name,),
            fold=int(row.fold),
            group=str(row.fsID),
        )
        for row in rows
    ]


TASK = Task(
    name="urbansound8k",
    title=TITLE,
    folder=Path(__file__).resolve().parent,
    read_clips=read_clips,
    class_names=CLASS_NAMES,
    features_file="urbansound8k_features_audiosep.pt",
    head_files={"linear": "urbansound8k_linear_classifier.pt", "three_layer": "urbansound8k_three_classifier.pt"},
    official_counts=OfficialCounts(
        clips=8732,
        folds=(873, 888, 925, 990, 936, 823, 838, 806, 816, 837),
        labels=dict.fromkeys(CLASS_NAMES, 1000) | {"siren": 929, "car_horn": 429, "gun_shot": 374},
    ),
    # Slices of five Freesound recordings are in several folds.
    official_overlap=frozenset({"77751", "106905", "132016", "176638", "180937"}),
)
CHECKS = ((TASK,),)
