"""UrbanSound8K (Salamon et al. 2014): 8,732 urban sounds of up to 4 s, 10 classes, 10 official folds.

https://urbansounddataset.weebly.com/urbansound8k.html; the folds must not be reshuffled.
"""

from pathlib import Path

from common.datasets import Clip, Copy, DatasetError, Task, layout_error, plain_name, read_metadata

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

FOLD_SIZES = (873, 888, 925, 990, 936, 823, 838, 806, 816, 837)


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
    for place, row in zip(meta.places, meta, strict=True):
        file, name, number = row["slice_file_name"], row["class"], row["classID"]
        is_official = dict(enumerate(CLASS_NAMES)).get(int(number)) == name and int(row["fold"]) in range(1, 11)
        # [fsID]-[classID]-[occurrenceID]-[sliceID].wav
        if not is_official or not file.startswith(f"{row['fsID']}-{number}-"):
            raise DatasetError(
                f"{place} ({file}: fold {row['fold']}, classID {number}, {name}) is not the official row; unpack the official "
                "archive again"
            )
    return [
        Clip(
            root / "audio" / f"fold{row['fold']}" / plain_name(row["slice_file_name"], metadata),
            (row["class"],),
            fold=int(row["fold"]),
            group=row["fsID"],
        )
        for row in meta
    ]


TASK = Task(
    name="urbansound8k",
    title=TITLE,
    folder=Path(__file__).resolve().parent,
    read_clips=read_clips,
    class_names=CLASS_NAMES,
    features_file="urbansound8k_features_audiosep.pt",
    head_files={"linear": "urbansound8k_linear_classifier.pt", "three_layer": "urbansound8k_three_classifier.pt"},
    # Its start and end are places in the Freesound recording.
    copy=Copy({"label": "class", "group": "fsID", "split": "none", "start": "none", "end": "none"}, "fold"),
    official_counts={
        "clips": 8732,
        **{f"fold {fold}": clips for fold, clips in enumerate(FOLD_SIZES, start=1)},
        **{f"class {name}": {"siren": 929, "car_horn": 429, "gun_shot": 374}.get(name, 1000) for name in CLASS_NAMES},
    },
    # Slices of five Freesound recordings are in several folds.
    official_overlap=frozenset({"77751", "106905", "132016", "176638", "180937"}),
)
CHECKS = ((TASK,),)
