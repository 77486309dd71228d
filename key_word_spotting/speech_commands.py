"""Speech Commands (Warden 2018): one-second words; 30 of them in v0.01, 35 in v0.02.

https://arxiv.org/abs/1804.03209; the archives' own validation_list.txt and testing_list.txt make the splits,
and no speaker (the hash in a file's name) is in two of them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from common.clips import Clip, DatasetError, Task, layout_error

TITLE = "Speech Commands"
NOISE_FOLDER = "_background_noise_"  # minutes of noise, not a word
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
NAME = re.compile(r"(?P<speaker>[0-9a-f]+)_nohash_\d+\.wav")


def read_clips(root: Path) -> list[Clip]:
    """Every word file as a clip; what is in neither list is training data; groups are speakers.

    Raises:
        DatasetError: another layout, a file that is not named as the archive's are, or a listed one that is missing.
    """
    missing = [name for name in LISTS.values() if not (root / name).is_file()]
    words = (
        sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] not in "._") if root.is_dir() else []
    )
    if missing or not words:
        raise layout_error(root, TITLE, "<word>/*.wav, validation_list.txt and testing_list.txt", "speech_commands")
    split_of = {
        listed: split for split, name in LISTS.items() for listed in (root / name).read_text(encoding="utf-8").split()
    }
    clips = []
    for folder in words:
        for path in sorted(folder.glob("*.wav")):
            name = NAME.fullmatch(path.name)
            if name is None:
                raise DatasetError(f"{path} is not named as <speaker>_nohash_<number>.wav; take it out of the folder")
            split = split_of.pop(f"{folder.name}/{path.name}", "train")
            clips.append(Clip(path, folder.name, split=split, group=name["speaker"]))
    if split_of:
        raise DatasetError(
            f"{len(split_of)} files of the official lists are missing in {root} (first: {next(iter(split_of))}); "
            f"unpack {TITLE} again"
        )
    return clips


FOLDER = Path(__file__).resolve().parent
V1 = Task(
    name="speech_commands_v1",
    title=f"{TITLE} v0.01",
    folder=FOLDER,
    read_clips=read_clips,
    class_names=None,  # the words are the folders
    features_file="spc_features_audiosep_v1.pt",
    head_files={"linear": "spc_linear_classifier_v1.pt", "three_layer": "spc_three_classifier_v1.pt"},
    data_folder="speech_commands_v0.01",
    results_folder=FOLDER / "results_v1",
)
V2 = replace(
    V1,
    name="speech_commands_v2",
    title=f"{TITLE} v0.02",
    features_file="spc_features_audiosep_v2.pt",
    head_files={"linear": "spc_linear_classifier_v2.pt", "three_layer": "spc_three_classifier_v2.pt"},
    data_folder="speech_commands_v0.02",
    results_folder=FOLDER / "results_v2",
)
VERSIONS = ("--version", {"v1": V1, "v2": V2})
