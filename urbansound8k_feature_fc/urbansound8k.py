"""UrbanSound8K (Salamon et al. 2014): 8,732 urban sounds of up to 4 s, 10 classes, 10 official folds.

https://urbansounddataset.weebly.com/urbansound8k.html; the folds must not be reshuffled.
"""

from pathlib import Path

from common.datasets import Clip, Copy, DatasetError, OfficialCounts, Task, layout_error, plain_name, read_columns

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
    """Every row of metadata/UrbanSound8K.csv as a clip; folds are the official 1-10, groups the Freesound ids. DatasetError also
    if a row is not the official CSV's."""
    metadata = root / "metadata" / "UrbanSound8K.csv"
    if not metadata.is_file() or not (root / "audio").is_dir():
        expected = "audio/fold1 to fold10 and metadata/UrbanSound8K.csv"
        raise layout_error(root, TITLE, expected, "UrbanSound8K", "urbansound8k")
    columns, fix = ("slice_file_name", "fsID", "fold", "classID", "class"), f"unpack {TITLE} again"
    names, clips = {str(number): name for number, name in enumerate(CLASS_NAMES)}, []
    for place, (file, source, fold, target, label) in read_columns(metadata, columns, fix):
        # [fsID]-[classID]-[occurrenceID]-[sliceID].wav
        is_fold = fold in map(str, range(1, 11))
        if not is_fold or names.get(target) != label or not file.startswith(f"{source}-{target}-"):
            raise DatasetError(f"{place} ({file}) is not the official row; {fix}")
        path = root / "audio" / f"fold{fold}" / plain_name(file, metadata)
        clips.append(Clip(path, (label,), fold=int(fold), group=source))
    return clips


TASK = Task(
    name="urbansound8k",
    title=TITLE,
    folder=Path(__file__).resolve().parent,
    read_clips=read_clips,
    class_names=CLASS_NAMES,
    features_file="urbansound8k_features_audiosep.pt",
    classify=("urbansound8k_linear_classifier.py",),
    head_files={"linear": "urbansound8k_linear_classifier.pt", "three_layer": "urbansound8k_three_classifier.pt"},
    # Its start and end are places in the Freesound recording.
    copy=Copy({"label": "class", "group": "fsID", "split": "none", "start": "none", "end": "none"}, "fold"),
    official_counts=OfficialCounts(
        clips=8732,
        folds=(873, 888, 925, 990, 936, 823, 838, 806, 816, 837),
        labels=dict.fromkeys(CLASS_NAMES, 1000) | {"siren": 929, "car_horn": 429, "gun_shot": 374},
    ),
    # Slices of five Freesound recordings are in several folds.
)
CHECKS = ((TASK,),)
