"""The data sets: official layouts read, others explained, the real samples as they are."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from common.datasets import DatasetError, plain_name
from common.features import FeatureSet
from demo import generate
from demo.generate import generate_esc50, generate_urbansound8k
from demo.sounds import Sound, note, recording
from esc50_feature_fc import esc50
from icbhi_feature_fc import icbhi
from key_word_spotting import speech_commands
from nsynth_feature_fc import nsynth
from speaker_recognition import librispeech
from tests.support.samples import SHARED, needs_shared, write_csv, write_wav
from urbansound8k_feature_fc import urbansound8k


def test_esc50_has_official_folds(esc50_root: Path) -> None:
    clips = esc50.read_clips(esc50_root)
    assert len(clips) == 10
    first = clips[0]
    assert (first.class_name, first.fold, first.group) == ("dog", 1, "1001")
    assert first.clip_id(esc50_root) == "audio/1-1001-A-0.wav"
    assert len(set(esc50.CLASS_NAMES)) == 50


@needs_shared
def test_the_real_esc50_sample_is_read() -> None:
    clips = esc50.read_clips(SHARED / "real_audio" / "ESC-50-master")
    assert len(clips) == 50
    assert {clip.fold for clip in clips} == {4}
    assert {clip.class_name for clip in clips} == set(esc50.CLASS_NAMES)
    assert all(clip.path.is_file() for clip in clips)


@needs_shared
def test_the_real_urbansound8k_sample_is_read() -> None:
    clips = urbansound8k.read_clips(SHARED / "real_audio" / "UrbanSound8K")
    assert Counter(clip.fold for clip in clips) == {1: 80, 2: 80, 3: 79}
    assert {clip.class_name for clip in clips} == set(urbansound8k.CLASS_NAMES)
    assert all(clip.path.is_file() for clip in clips)
    assert clips[0].group == "57320"


URBANSOUND8K_COLUMNS = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")


def urbansound8k_root(tmp_path: Path, *rows: tuple) -> Path:
    (tmp_path / "UrbanSound8K" / "audio").mkdir(parents=True)
    write_csv(tmp_path / "UrbanSound8K" / "metadata" / "UrbanSound8K.csv", URBANSOUND8K_COLUMNS, list(rows))
    return tmp_path / "UrbanSound8K"


def test_urbansound8k_has_official_folds(tmp_path: Path) -> None:
    root = urbansound8k_root(tmp_path, ("7-3-0-1.wav", 7, 0.0, 4.0, 1, 10, 3, "dog_bark"))
    (clip,) = urbansound8k.read_clips(root)
    assert clip.clip_id(root) == "audio/fold10/7-3-0-1.wav"
    assert (clip.class_name, clip.fold, clip.group) == ("dog_bark", 10, "7")


@pytest.mark.parametrize(
    "row",
    [
        ("7-3-0-1.wav", 7, 0.0, 4.0, 1, 11, 3, "dog_bark"),
        ("7-3-0-1.wav", 7, 0.0, 4.0, 1, 1, 3, "siren"),
        ("7-3-0-1.wav", 7, 0.0, 4.0, 1, 1, 10, "siren"),
        ("7-3-0-1.wav", 8, 0.0, 4.0, 1, 1, 3, "dog_bark"),
    ],
    ids=["fold", "class", "class number", "source"],
)
def test_altered_rows_of_urbansound8k_are_named(row: tuple, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"line 2 .* is not the official row"):
        urbansound8k.read_clips(urbansound8k_root(tmp_path, row))


@pytest.mark.parametrize(
    "row",
    [
        ("1-1001-A-0.wav", 2, 0, "dog", "True", 1001, "A"),
        ("1-1001-A-0.wav", 1, 1, "rooster", "True", 1001, "A"),
        ("1-1001-A-0.wav", 1, 0, "rooster", "True", 1001, "A"),
        ("1-1001-A-0.wav", 1, 0, "puppy", "True", 1001, "A"),
        ("../../secret.wav", 1, 0, "dog", "True", 1001, "A"),
    ],
    ids=["fold", "target", "category", "unknown category", "file name"],
)
def test_altered_rows_of_esc50_are_named(row: tuple, tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    write_csv(
        tmp_path / "meta" / "esc50.csv", ("filename", "fold", "target", "category", "esc10", "src_file", "take"), [row]
    )
    with pytest.raises(DatasetError, match=r"line 2 .* is not the official row"):
        esc50.read_clips(tmp_path)


@pytest.mark.parametrize("module", [esc50, urbansound8k])
def test_wrong_layouts_say_what_was_expected_and_found(module: ModuleType, tmp_path: Path) -> None:
    title = module.TASK.title
    with pytest.raises(DatasetError, match=f"is not a folder. Give that of {title} "):
        module.read_clips(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"expected audio/.* found nothing"):
        module.read_clips(tmp_path)
    write_wav(tmp_path / "sounds" / "one.wav")
    with pytest.raises(DatasetError, match=r"expected audio/.* found sounds/"):
        module.read_clips(tmp_path)
    with pytest.raises(DatasetError, match="is not a folder"):
        module.read_clips(tmp_path / "sounds" / "one.wav")


@pytest.mark.parametrize(("module", "folder"), [(esc50, "ESC-50-master"), (urbansound8k, "UrbanSound8K")])
def test_a_data_root_one_folder_too_low_is_explained(module: ModuleType, folder: str, tmp_path: Path) -> None:
    (tmp_path / folder / "audio").mkdir(parents=True)
    with pytest.raises(DatasetError, match=f"is a part of .*; give all of it: --data-root {tmp_path / folder}$"):
        module.read_clips(tmp_path / folder / "audio")


def test_a_data_root_one_folder_too_high_is_explained(esc50_root: Path) -> None:
    with pytest.raises(DatasetError, match=f"give --data-root {esc50_root}"):
        esc50.read_clips(esc50_root.parent)


def test_damaged_metadata_is_named(esc50_root: Path) -> None:
    path = esc50_root / "meta" / "esc50.csv"
    whole = path.read_text()
    for content, words in (
        ("", "lists no clips"),
        ("filename,fold\na,1\n", "lacks the columns target, category, src_file"),
        (whole.splitlines()[0] + "\n", "lists no clips"),
        (whole.replace(",dog,", ",,", 1), "line 2 .* is not the official row"),
        (whole.replace(",1,0,dog", ",one,0,dog", 1), "line 2 .* is not the official row"),
        (whole.replace("\n", ",more\n").replace(",more", "", 1), "line 2 has 8 cells, but 7 are named"),
    ):
        path.write_text(content)
        with pytest.raises(DatasetError, match=words):
            esc50.read_clips(esc50_root)


def published(order: torch.Tensor) -> FeatureSet:
    """A file as the original project published it: no folds, labels in the order of esc50.csv."""
    labels = torch.arange(50).repeat_interleave(8).repeat(5)[order]
    return FeatureSet(torch.zeros(2000, 4), labels, [str(label) for label in range(50)], [""] * 2000)


def test_the_published_order_is_recognised_and_no_other() -> None:
    features, _ = esc50.recognise(published(torch.arange(2000)))
    assert features.folds.tolist() == [1 + row // 400 for row in range(2000)]
    assert features.class_names == list(esc50.CLASS_NAMES)
    shuffled = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    assert esc50.recognise(published(shuffled)) is None
    assert esc50.recognise(published(torch.arange(1999))) is None


def test_the_demos_data_sets_are_official_layouts_and_reproducible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_recording(sound: Sound, rng: np.random.Generator, seconds: float, *room: Any) -> np.ndarray:
        return recording(sound, rng, min(seconds, 0.4), *room)

    monkeypatch.setattr(generate, "recording", short_recording)
    for write, module, folds in ((generate_esc50, esc50, 5), (generate_urbansound8k, urbansound8k, 10)):
        for name in ("one", "another"):
            write(tmp_path / module.__name__ / name, recordings=1)
        one, another = (sorted((tmp_path / module.__name__ / name).rglob("*.*")) for name in ("one", "another"))
        assert [path.read_bytes() for path in one] == [path.read_bytes() for path in another]
        clips = module.read_clips(tmp_path / module.__name__ / "one")
        assert Counter((clip.fold, clip.class_name) for clip in clips).keys() == {
            (fold, name) for fold in range(1, folds + 1) for name in {clip.class_name for clip in clips}
        }
        assert len({clip.class_name for clip in clips}) == 10


@pytest.mark.filterwarnings("ignore::common.datasets.DatasetNote")
def test_the_demos_other_data_sets_are_official_layouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "note", lambda rng, time, *timbre: note(rng, time[:6400], *timbre))
    generate.generate_icbhi(tmp_path / "ICBHI_final_database", patients=10)
    recordings = icbhi.read_recordings(tmp_path / "ICBHI_final_database")
    assert {(clip.split, clip.class_name) for clip in recordings} == {
        (split, name) for split in ("train", "test") for name in icbhi.RECORDING_CLASSES
    }
    assert len(icbhi.read_cycles(tmp_path / "ICBHI_final_database")) == 5 * len(recordings)
    generate.generate_nsynth(tmp_path, notes=1)
    families = {split: {clip.class_name for clip in nsynth.read_clips(tmp_path, split)} for split in nsynth.SPLITS}
    assert families["train"] == set(nsynth.FAMILIES)
    assert families["valid"] == families["test"] == set(nsynth.FAMILIES) - {"synth_lead"}
    generate.generate_librispeech(tmp_path, speakers=2, utterances=1)
    assert len({clip.group for clip in librispeech.read_clips(tmp_path, "train-clean-100")}) == 4
    generate.generate_speech_commands(tmp_path / "commands", speakers=5)
    assert {clip.split for clip in speech_commands.V1.read_clips(tmp_path / "commands")} == {"train", "valid", "test"}


@pytest.mark.parametrize("name", ["../../secret.wav", "7-3-0-1/../../x.wav", "7-3-0-1.wav\0", "..\\x.wav"])
def test_names_that_lead_out_of_the_data_set_are_refused(name: str, tmp_path: Path) -> None:
    if "\0" not in name:  # pandas reads up to it
        with pytest.raises(DatasetError, match=r"lists .*, which is not a file name|is not the official row"):
            urbansound8k.read_clips(urbansound8k_root(tmp_path / "u", (name, 7, 0.0, 4.0, 1, 10, 3, "dog_bark")))
    folder = tmp_path / "nsynth" / "nsynth-test"
    (folder / "audio").mkdir(parents=True)
    entry = {"instrument_family_str": "bass", "instrument_str": "bass_synthetic_000"}
    (folder / "examples.json").write_text(json.dumps({name.removesuffix(".wav"): entry}))
    with pytest.raises(DatasetError, match=r"examples\.json lists .*, which is not a file name"):
        nsynth.read_clips(tmp_path / "nsynth", "test")
    with pytest.raises(DatasetError, match="is not a file name"):
        plain_name(name, tmp_path)
