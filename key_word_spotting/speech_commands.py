"""Speech Commands (Warden 2018): one-second words; 30 of them in v0.01, 35 in v0.02.

https://arxiv.org/abs/1804.03209; the archives' own validation_list.txt and testing_list.txt make the splits,
and no speaker (the hash in a file's name) is in two of them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common.clips import Clip, DatasetError, DatasetNote, Task, layout_error

TITLE = "Speech Commands"
NOISE_FOLDER = "_background_noise_"  # minutes of noise, not a word
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
NAME = re.compile(r"(?P<speaker>[0-9a-f]+)_nohash_\d+\.wav")


WORDS_V1 = [
    "bed",
    "bird",
    "cat",
    "dog",
    "down",
    "eight",
    "five",
    "four",
    "go",
    "happy",
    "house",
    "left",
    "marvin",
    "nine",
    "no",
    "off",
    "on",
    "one",
    "right",
    "seven",
    "sheila",
    "six",
    "stop",
    "three",
    "tree",
    "two",
    "up",
    "wow",
    "yes",
    "zero",
]
WORDS_V2 = sorted([*WORDS_V1, "backward", "follow", "forward", "learn", "visual"])


def read_clips(root: Path, words: Sequence[str], data_folder: str) -> list[Clip]:
    """Every word file as a clip; what is in neither list is training data; groups are speakers.

    Args:
        words: the version's words; a folder of any other is refused, missing ones are named.
        data_folder: how the folder of this version is usually called.

    Raises:
        DatasetError: another layout or version, a file that is not named as the archive's are, or a listed one that
            is missing.
    """
    missing = [name for name in LISTS.values() if not (root / name).is_file()]
    folders = (
        sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] not in "._") if root.is_dir() else []
    )
    if folders and missing and not (root / data_folder).is_dir():
        raise DatasetError(f"{' and '.join(missing)} of {TITLE} are missing in {root}; unpack the archive there again")
    if missing or not folders:
        raise layout_error(root, TITLE, "<word>/*.wav, validation_list.txt and testing_list.txt", data_folder)
    strangers = [folder.name for folder in folders if folder.name not in words]
    if strangers:
        other = " (words of v0.02: is it the other version's script?)" if set(strangers) <= set(WORDS_V2) else ""
        raise DatasetError(
            f"{root} holds folders that are no words of this version: {', '.join(strangers[:5])}{other}; take them out"
        )
    absent = sorted(set(words) - {folder.name for folder in folders})
    if absent:
        warnings.warn(
            f"{len(absent)} of the {len(words)} words are missing in {root}: {', '.join(absent[:6])}...",
            DatasetNote,
            stacklevel=2,
        )
    split_of = {
        listed: split for split, name in LISTS.items() for listed in (root / name).read_text(encoding="utf-8").split()
    }
    clips = []
    for folder in folders:
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


def task(version: str, release: str, words: list[str]) -> Task:
    """The task of one version, such as ``"v1"`` of release ``"v0.01"``."""
    folder, data_folder = Path(__file__).resolve().parent, f"speech_commands_{release}"
    return Task(
        name=f"speech_commands_{version}",
        title=f"{TITLE} {release}",
        folder=folder,
        read_clips=partial(read_clips, words=words, data_folder=data_folder),
        class_names=tuple(words),
        features_file=f"spc_features_audiosep_{version}.pt",
        head_files={
            "linear": f"spc_linear_classifier_{version}.pt",
            "three_layer": f"spc_three_classifier_{version}.pt",
        },
        data_folder=data_folder,
        results_folder=folder / f"results_{version}",
    )


V1, V2 = task("v1", "v0.01", WORDS_V1), task("v2", "v0.02", WORDS_V2)
VERSIONS = ("--version", {"v1": V1, "v2": V2})
