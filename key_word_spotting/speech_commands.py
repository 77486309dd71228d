"""Speech Commands (Warden 2018): words of a second; 30 words in v0.01, 35 in v0.02.

https://arxiv.org/abs/1804.03209; validation_list.txt and testing_list.txt of the archives define the splits, and no
speaker (the hash in the file name) is in two of them. The task of ten commands, `_unknown_` and `_silence_` is tested on a
separate archive, as in TensorFlow Datasets' ``speech_commands`` and in HEAR.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from common.datasets import (
    Clip,
    Copy,
    DatasetError,
    DatasetMissingError,
    OfficialCounts,
    Task,
    Variants,
    download_command,
    layout_error,
    read_text,
)

TITLE = "Speech Commands"
NOISE_FOLDER = "_background_noise_"  # minutes of noise, not a word
NOISE_OF_VALIDATION = "running_tap"  # the noise file for validation; the others are for training
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
NAME = re.compile(r"(?P<speaker>[0-9a-f]+)_nohash_\d+\.wav")
COMMANDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OTHER_WORDS = ("bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "tree", "wow")
SILENCE, UNKNOWN = "_silence_", "_unknown_"
CLASSES_12 = (*COMMANDS, SILENCE, UNKNOWN)

WORDS_V1 = (*COMMANDS, *DIGITS, *OTHER_WORDS)
WORDS = {
    "v0.01": sorted(WORDS_V1),
    "v0.02": sorted((*WORDS_V1, "backward", "follow", "forward", "learn", "visual")),
}
WORD_COUNTS = {
    "v0.01": OfficialCounts(64_721, splits={"train": 51_088, "valid": 6_798, "test": 6_835}),
    "v0.02": OfficialCounts(105_829, splits={"train": 84_843, "valid": 9_981, "test": 11_005}),
}
COMMAND_COUNTS = {
    "v0.01": OfficialCounts(splits={"test": 3_081}),
    "v0.02": OfficialCounts(splits={"train": 85_511, "valid": 10_102, "test": 4_890}),
}


def read_clips(root: Path, release: str) -> list[Clip]:
    """Every word file of a release, such as ``"v0.01"``, as a clip; files in neither list are for training; groups are
    speakers."""
    missing = [name for name in LISTS.values() if not (root / name).is_file()]
    folders = sorted(path for path in root.glob("[!._]*") if path.is_dir())
    if missing or not folders:
        expected = " and ".join(["<word>/*.wav", *missing])
        raise layout_error(root, TITLE, expected, f"speech_commands_{release}", f"speech_commands --only {release}")
    unknown = [folder.name for folder in folders if folder.name not in WORDS[release]]
    if unknown:
        names = ", ".join(unknown[:5])
        raise DatasetError(f"{root} holds folders that are not words of {release}: {names}; is it another version?")
    split_of = {path: split for split, file in LISTS.items() for path in read_text(root / file).split()}
    clips = []
    for path in (path for folder in folders for path in sorted(folder.glob("*.wav"))):
        name, word = NAME.fullmatch(path.name), path.parent.name
        if name is None:
            raise DatasetError(f"{path} is not named as <speaker>_nohash_<number>.wav; take it out of the folder")
        split = split_of.pop(f"{word}/{path.name}", "train")
        clips.append(Clip(path, (word,), split=split, group=name["speaker"]))
    if split_of:
        problem = f"{len(split_of)} files of the official lists are missing in {root}"
        raise DatasetError(f"{problem}, such as {next(iter(split_of))}; unpack {TITLE} again")
    return clips


def read_ten_commands(root: Path, release: str) -> list[Clip]:
    """The ten commands, all other words as ``_unknown_``, and a second of noise every half second as ``_silence_``. Training
    and validation clips come from the release's archive, test clips from the test set's, in a folder beside it."""
    test = _read_test_set(root, release)
    clips = [
        replace(clip, labels=clip.labels if clip.class_name in COMMANDS else (UNKNOWN,))
        for clip in read_clips(root, release)
        if clip.split != "test"  # the test set holds these clips too, and silence
    ]
    return clips + _read_silence(root / NOISE_FOLDER) + test


def _read_silence(folder: Path) -> list[Clip]:
    """Windows of 1 s every 0.5 s of the noise files; as in TensorFlow Datasets, none ends with its file."""
    from common.datasets.audio import AudioError, audio_duration_s

    clips = []
    for path in sorted(folder.glob("*.wav")):
        try:
            duration_s = audio_duration_s(path)
        except AudioError as error:
            raise DatasetError(f"{error}; unpack {TITLE} again") from error
        split = "valid" if path.stem == NOISE_OF_VALIDATION else "train"
        clips += [
            Clip(path, (SILENCE,), split=split, group=path.stem, start_s=window / 2, end_s=window / 2 + 1)
            for window in range(math.ceil(2 * (duration_s - 1)))
        ]
    if not clips:
        raise DatasetError(f"{folder} has no noise of over a second to cut {SILENCE} from; unpack {TITLE} again")
    return clips


def _read_test_set(root: Path, release: str) -> list[Clip]:
    """The archive of the ten-command task's test clips, in folders named as the classes; some end in .wav.wav."""
    usual = root.resolve().parent / f"speech_commands_test_set_{release}"
    folder = root / ".." / usual.name  # through the data root, so that clip ids are relative to it
    if not folder.is_dir():
        get = download_command(f"speech_commands --only test-{release}", usual)
        raise DatasetMissingError(f"{usual}, on which the ten-command task is tested, does not exist; get it: {get}")
    clips = []
    for name in CLASSES_12:
        paths = sorted((folder / name).glob("*.wav"))
        if not paths:
            raise DatasetError(f"{usual} has no .wav files of {name}; unpack {usual.name}.tar.gz there again")
        for path in paths:
            speaker = re.search("([0-9a-f]{8})_nohash_", path.name)
            # Clips without a speaker in their name, such as silence, are unrelated.
            clips.append(Clip(path, (name,), split="test", group=speaker[1] if speaker else f"{name}/{path.name}"))
    return clips


def task(version: str, release: str, has_ten: bool = False) -> Task:
    """The task of all words of a version, such as ``"v1"`` of release ``"v0.01"``, or of ten commands, unknown and silence."""
    folder = Path(__file__).resolve().parent
    name = version + "_12" * has_ten
    return Task(
        name=f"speech_commands_{name}",
        title=f"{TITLE} {release}" + ", ten commands" * has_ten,
        folder=folder,
        read_clips=partial(read_ten_commands if has_ten else read_clips, release=release),
        class_names=CLASSES_12 if has_ten else tuple(WORDS[release]),
        features_file=f"spc_features_audiosep_{name}.pt",
        classify=("train_spc_fc_classifiers.py", "--version", version, *(("--task", "12") if has_ten else ())),
        head_files={"linear": f"spc_linear_classifier_{name}.pt", "three_layer": f"spc_three_classifier_{name}.pt"},
        copy=None if has_ten else Copy({"group": "speaker_id"}, "split", (f"{release}/",), frozenset({SILENCE})),
        data_folder=f"speech_commands_{release}",
        results_folder=folder / f"results_{name}",
        official_counts=(COMMAND_COUNTS if has_ten else WORD_COUNTS)[release],
    )


V1, V1_12 = task("v1", "v0.01"), task("v1", "v0.01", has_ten=True)
V2, V2_12 = task("v2", "v0.02"), task("v2", "v0.02", has_ten=True)
TASK_FLAG = {"--task": "words: every word of the archive; 12: ten commands, unknown and silence"}
V1_TASKS = Variants(TASK_FLAG, {("words",): V1, ("12",): V1_12})
V2_TASKS = Variants(TASK_FLAG, {("words",): V2, ("12",): V2_12})
VERSIONS = Variants(
    {"--version": "v1 (v0.01, 30 words) or v2 (v0.02, 35 words)", **TASK_FLAG},
    {("v1", "words"): V1, ("v2", "words"): V2, ("v1", "12"): V1_12, ("v2", "12"): V2_12},
)
V1_CHECKS, V2_CHECKS = ((V1,), (V1_12,)), ((V2,), (V2_12,))
