"""LibriSpeech and Speech Commands: labels, sessions and speakers, splits that share neither."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED, needs_shared, write_wav

from common.clips import DatasetError, DatasetNote
from common.features import FeatureSet
from common.splits import make_splits
from key_word_spotting import speech_commands
from speaker_recognition import librispeech

SPEAKERS = """\
; comments
;ID  |SEX| SUBSET           |MINUTES| NAME
14   | F | train-clean-360  | 25.03 | Kristin LeMoine
60   | M | train-clean-100  | 20.18 | |CBW|Simon
61   | M | test-clean       |  8.08 | Paul-Gabriel Wiener
62   | F | train-clean-100  | 25.00 | Somebody
"""


@pytest.fixture
def libri(tmp_path: Path) -> Path:
    root = tmp_path / "LibriSpeech"
    for speaker, chapter, subset in (
        (60, 1, "train-clean-100"),
        (60, 2, "train-clean-100"),
        (62, 3, "train-clean-100"),
        (61, 4, "test-clean"),
    ):
        for number in range(2):
            name = f"{speaker}-{chapter}-{number:04d}.flac"
            write_wav(root / subset / str(speaker) / str(chapter) / name, number, rate=16_000)
    (root / "SPEAKERS.TXT").write_text(SPEAKERS)
    return root


def test_utterances_by_speaker_and_chapter(libri: Path) -> None:
    clips = librispeech.read_clips(libri, "train-clean-100")
    assert Counter(clip.class_name for clip in clips) == {"60": 4, "62": 2}
    assert {clip.group for clip in clips} == {"60-1", "60-2", "62-3"}
    assert [clip.class_name for clip in librispeech.read_clips(libri, "test-clean")] == ["61", "61"]


def test_a_name_may_hold_the_separator(libri: Path) -> None:
    assert librispeech.read_speakers(libri / "SPEAKERS.TXT")["60"] == "train-clean-100"


def test_wrong_librispeech(libri: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected SPEAKERS.TXT and dev-clean/"):
        librispeech.read_clips(libri, "dev-clean")
    with pytest.raises(DatasetError, match=f"give the folder that holds it: {libri}"):
        librispeech.read_clips(libri / "test-clean", "test-clean")
    stranger = write_wav(libri / "test-clean" / "14" / "9" / "14-9-0000.flac")
    with pytest.raises(DatasetError, match=r"speaker 14 is not in test-clean .*in train-clean-360"):
        librispeech.read_clips(libri, "test-clean")
    stranger.rename(stranger.with_name("15-9-0000.flac"))
    with pytest.raises(DatasetError, match="does not belong into"):
        librispeech.read_clips(libri, "test-clean")
    (libri / "SPEAKERS.TXT").write_text("14 F train\n")
    with pytest.raises(DatasetError, match="line 1"):
        librispeech.read_clips(libri, "test-clean")


def speakers(chapters: dict[str, list[int]]) -> FeatureSet:
    """Utterances of each speaker's chapters: speaker -> how many in each."""
    rows = [
        (label, f"{speaker}-{chapter}")
        for label, (speaker, counts) in enumerate(chapters.items())
        for chapter, count in enumerate(counts)
        for _ in range(count)
    ]
    return FeatureSet(
        torch.zeros(len(rows), 2),
        torch.tensor([label for label, _ in rows]),
        list(chapters),
        [str(row) for row in range(len(rows))],
        groups=[group for _, group in rows],
    )


BY_CHAPTER = {"split": "chapter", "train_test_split": 0.2}


def test_chapters_that_cannot_be_split() -> None:
    features = speakers({"7": [50], "8": [30]})
    with pytest.raises(DatasetError, match="no speaker has two chapters"), pytest.warns(DatasetNote):
        librispeech.prepare(features, BY_CHAPTER, 42)
    features.groups = None
    with pytest.raises(DatasetError, match="names no chapters"):
        librispeech.prepare(features, BY_CHAPTER, 42)


def test_words_of_the_other_version(commands: Path) -> None:
    write_wav(commands / "visual" / "0a_nohash_0.wav")
    with pytest.raises(DatasetError, match=r"no words of this version: visual \(words of v0.02"):
        speech_commands.V1.read_clips(commands)
    with pytest.warns(DatasetNote, match="32 of the 35 words are missing"):
        assert len(speech_commands.V2.read_clips(commands)) == 7
    assert (len(speech_commands.WORDS_V1), len(speech_commands.WORDS_V2)) == (30, 35)


@pytest.mark.filterwarnings("ignore::common.clips.DatasetNote")
def test_no_chapter_on_both_sides() -> None:
    features = speakers({"7": [50, 40, 5, 5], "8": [30, 30], "9": [80], "10": [1, 99]})
    with pytest.warns(DatasetNote, match="1 speakers with a single chapter are left out: 9"):
        prepared, protocol = librispeech.prepare(features, BY_CHAPTER, 42)
    assert "1 speakers with one chapter left out" in protocol
    assert prepared.class_names == ["7", "8", "10"]
    assert len(prepared) == len(features) - 80
    (split,), _ = make_splits(prepared, 0.2, 42)
    groups = np.array(prepared.groups)
    assert not set(groups[split.train]) & set(groups[split.test])
    for rows in (split.train, split.test):
        assert set(prepared.labels[rows].tolist()) == {0, 1, 2}
    again, _ = librispeech.prepare(speakers({"7": [50, 40, 5, 5], "8": [30, 30]}), BY_CHAPTER, 42)
    assert set(again.splits) == {"train", "test"}


def test_by_utterance_is_the_random_split() -> None:
    features = speakers({"7": [50], "8": [30, 30]})
    prepared, protocol = librispeech.prepare(features, {"split": "utterance"}, 42)
    (split,), named = make_splits(prepared, 0.2, 42)
    assert protocol == ""
    assert "related clips may stand on both sides" in named
    assert prepared.labels[split.test].bincount().tolist() == [10, 12]


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    root = tmp_path / "speech_commands_v0.01"
    for word in ("yes", "no"):
        for speaker in ("0a", "1b", "2c"):
            write_wav(root / word / f"{speaker}_nohash_0.wav", rate=16_000)
    write_wav(root / "_background_noise_" / "running_tap.wav", rate=16_000)
    (root / "validation_list.txt").write_text("yes/1b_nohash_0.wav\nno/1b_nohash_0.wav\n")
    (root / "testing_list.txt").write_text("yes/2c_nohash_0.wav\nno/2c_nohash_0.wav\n")
    return root


@pytest.mark.filterwarnings("ignore::common.clips.DatasetNote")
def test_words_and_lists(commands: Path) -> None:
    clips = speech_commands.V1.read_clips(commands)
    assert Counter((clip.class_name, clip.split) for clip in clips) == {
        (word, split): 1 for word in ("yes", "no") for split in ("train", "valid", "test")
    }
    assert {clip.group for clip in clips if clip.split == "valid"} == {"1b"}


@pytest.mark.filterwarnings("ignore::common.clips.DatasetNote")
def test_wrong_speech_commands(commands: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="one folder too high"):
        speech_commands.V1.read_clips(tmp_path)
    (commands / "yes" / "2c_nohash_0.wav").unlink()
    with pytest.raises(DatasetError, match=r"1 files of the official lists are missing .*yes/2c_nohash_0.wav"):
        speech_commands.V1.read_clips(commands)
    write_wav(commands / "yes" / "2c_nohash_0.wav")
    write_wav(commands / "no" / "recording 7.wav")
    with pytest.raises(DatasetError, match="is not named as"):
        speech_commands.V1.read_clips(commands)
    (commands / "testing_list.txt").unlink()
    with pytest.raises(DatasetError, match=r"^testing_list.txt of Speech Commands are missing"):
        speech_commands.V1.read_clips(commands)


@needs_shared
@pytest.mark.filterwarnings("ignore::common.clips.DatasetNote")
def test_the_real_samples() -> None:
    clips = speech_commands.V1.read_clips(SHARED / "real_audio" / "speech_commands")
    assert len(clips) == 240
    sides = {split: {clip.group for clip in clips if clip.split == split} for split in ("train", "valid", "test")}
    assert all(sides.values())
    assert not sides["train"] & sides["valid"] | sides["train"] & sides["test"] | sides["valid"] & sides["test"]
    clips = librispeech.read_clips(SHARED / "real_audio" / "LibriSpeech", "train-clean-100")
    assert Counter(Counter(clip.class_name for clip in clips).values()) == {12: 6}
    assert len({clip.group for clip in clips}) == 12
