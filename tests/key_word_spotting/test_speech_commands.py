"""Speech Commands: words, official lists, ten commands with noise and unknown words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from common.cli import classify_main, extract_main
from common.datasets import DatasetError
from key_word_spotting import speech_commands
from tests.support.samples import SHARED, needs_shared, write_wav


def test_words_of_the_other_version_are_refused(commands: Path) -> None:
    write_wav(commands / "visual" / "0a_nohash_0.wav")
    with pytest.raises(DatasetError, match=r"not words of v0.01: visual; is it another version"):
        speech_commands.V1.read_clips(commands)
    assert len(speech_commands.V2.read_clips(commands)) == 7
    assert [len(words) for words in speech_commands.WORDS.values()] == [30, 35]


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


@pytest.mark.filterwarnings("ignore::common.datasets.DatasetNote")
def test_the_official_lists_split_the_words(commands: Path) -> None:
    clips = speech_commands.V1.read_clips(commands)
    assert Counter((clip.class_name, clip.split) for clip in clips) == {
        (word, split): 1 for word in ("yes", "no") for split in ("train", "valid", "test")
    }
    assert {clip.group for clip in clips if clip.split == "valid"} == {"1b"}


@pytest.mark.filterwarnings("ignore::common.datasets.DatasetNote")
def test_a_wrong_layout_or_file_is_named(commands: Path, tmp_path: Path) -> None:
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
    with pytest.raises(DatasetError, match=r"expected <word>/\*\.wav and testing_list\.txt; found "):
        speech_commands.V1.read_clips(commands)


@pytest.fixture
def ten_commands(tmp_path: Path) -> Path:
    """Speech Commands v0.01 with all ten commands and two other words, and its test set beside it."""
    root, test_set = tmp_path / "speech_commands_v0.01", tmp_path / "speech_commands_test_set_v0.01"
    speakers = {"train": "0000000a", "valid": "0000000b", "test": "0000000c"}
    for number, word in enumerate((*speech_commands.COMMANDS, "bed", "cat")):
        for speaker in speakers.values():
            write_wav(root / word / f"{speaker}_nohash_0.wav", number, rate=16_000)
        folder = test_set / (word if word in speech_commands.COMMANDS else "_unknown_")
        suffix = ".wav.wav" if word == "cat" else ".wav"
        write_wav(folder / f"{word}_{speakers['test']}_nohash_0{suffix}", number, rate=16_000, format="WAV")
    write_wav(test_set / "_silence_" / "0.wav", 99, rate=16_000)
    for name, seconds in (("running_tap", 2.2), ("white_noise", 3.0)):
        write_wav(root / "_background_noise_" / f"{name}.wav", 7, seconds, rate=16_000)
    for split, name in speech_commands.LISTS.items():
        words = (*speech_commands.COMMANDS, "bed", "cat")
        (root / name).write_text("".join(f"{word}/{speakers[split]}_nohash_0.wav\n" for word in words))
    return root


@pytest.mark.filterwarnings("ignore::common.datasets.DatasetNote")
def test_the_ten_command_task_has_unknown_words_and_silence(ten_commands: Path) -> None:
    clips = speech_commands.V1_12.read_clips(ten_commands)
    counts = Counter((clip.class_name, clip.split) for clip in clips)
    for split in ("train", "valid", "test"):
        assert all(counts[command, split] == 1 for command in speech_commands.COMMANDS)
        assert counts["_unknown_", split] == 2
    # 3.0 s of noise hold windows at 0, 0.5, 1.0 and 1.5 s; the one at 2.0 s would end with the file.
    assert [counts["_silence_", split] for split in ("train", "valid", "test")] == [4, 3, 1]
    noise = [clip for clip in clips if clip.class_name == "_silence_" and clip.split == "train"]
    assert [(clip.start_s, clip.end_s) for clip in noise] == [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0), (1.5, 2.5)]
    sides = [{clip.group for clip in clips if clip.split == split} for split in ("train", "valid", "test")]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    assert sides[2] == {"0000000c", "_silence_/0.wav"}
    assert len({clip.clip_id(ten_commands) for clip in clips}) == len(clips)


def test_the_windows_of_silence_are_those_of_tensorflow_datasets(tmp_path: Path) -> None:
    # About the lengths of v0.02's noise files. TensorFlow Datasets counts 85,511 training and 10,102 validation
    # clips, of which 84,843 and 9,981 are words.
    lengths = {
        "doing_the_dishes": 1_522_930,
        "dude_miaowing": 988_891,
        "exercise_bike": 980_062,
        "pink_noise": 960_000,
        "running_tap": 978_488,
        "white_noise": 960_000,
    }
    for name, samples in lengths.items():
        write_wav(tmp_path / f"{name}.wav", seconds=samples / 16_000, rate=16_000)
    clips = speech_commands._read_silence(tmp_path)
    expected = {name: len(range(0, samples - 16_000, 8_000)) for name, samples in lengths.items()}
    assert Counter(clip.group for clip in clips) == expected
    assert Counter(clip.split for clip in clips) == {"train": 85_511 - 84_843, "valid": 10_102 - 9_981}


@pytest.mark.filterwarnings("ignore::common.datasets.DatasetNote")
def test_what_the_ten_command_task_lacks_is_named(ten_commands: Path, tmp_path: Path) -> None:
    noise, test_set = ten_commands / "_background_noise_", tmp_path / "speech_commands_test_set_v0.01"
    (noise / "running_tap.wav").unlink()
    (noise / "white_noise.wav").write_bytes(b"no audio")
    with pytest.raises(DatasetError, match=r"white_noise.wav: cannot be read as audio"):
        speech_commands.V1_12.read_clips(ten_commands)
    (noise / "white_noise.wav").unlink()
    with pytest.raises(DatasetError, match="has no noise of over a second"):
        speech_commands.V1_12.read_clips(ten_commands)
    (test_set / "_silence_" / "0.wav").unlink()
    with pytest.raises(DatasetError, match=r"has no \.wav files of _silence_"):
        speech_commands.V1_12.read_clips(ten_commands)
    test_set.rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"get it: .* speech_commands --only test-v0.01 --root "):
        speech_commands.V1_12.read_clips(ten_commands)


@pytest.mark.filterwarnings("ignore::common.datasets.DatasetNote")
@pytest.mark.usefixtures("scripts_load_the_stand_in", "no_figures")
def test_the_ten_commands_go_from_audio_to_scores(ten_commands: Path, tmp_path: Path) -> None:
    features, results = tmp_path / "features.pt", tmp_path / "results"
    root = ("--data-root", str(ten_commands), "--checkpoint", "random:2024", "--device", "cpu")
    extract_main(speech_commands.V1_TASKS, ["--task", "12", *root, "--output", str(features)])
    options = ("--epochs", "2", "--output-dir", str(results), "--features", str(features))
    classify_main(speech_commands.VERSIONS, ["--version", "v1", "--task", "12", *options])
    record = json.loads((results / "result.json").read_text())
    assert record["features"]["class_names"] == [*speech_commands.COMMANDS, "_silence_", "_unknown_"]
    protocol = record["protocols"]["official"]
    assert protocol["division"] == "official train, valid and test split"
    assert protocol["heads"]["linear"]["splits"][0]["n_test"] == 13
    with pytest.raises(SystemExit):
        classify_main(speech_commands.VERSIONS, ["--version", "v1", *options])  # the 30 words' features are others


@needs_shared
@pytest.mark.filterwarnings("ignore::common.datasets.DatasetNote")
def test_the_real_words_share_no_speaker_between_splits() -> None:
    clips = speech_commands.V1.read_clips(SHARED / "real_audio" / "speech_commands")
    assert len(clips) == 240
    sides = {split: {clip.group for clip in clips if clip.split == split} for split in ("train", "valid", "test")}
    assert all(sides.values())
    assert not sides["train"] & sides["valid"] | sides["train"] & sides["test"] | sides["valid"] & sides["test"]
