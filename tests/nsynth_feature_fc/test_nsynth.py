"""NSynth: families from examples.json, three files put together, the side that trains."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from common.datasets import DatasetError, Division
from common.features import FeatureFileError, FeatureSet
from nsynth_feature_fc.nsynth import FAMILIES, prepare, read_clips


def note(name: str, family: str) -> dict:
    """An entry of examples.json, with the fields of the real ones."""
    return {
        "note": 1, "note_str": name, "instrument": 2, "instrument_str": name[:-8], "pitch": 60, "velocity": 100,
        "sample_rate": 16000, "qualities": [0] * 10, "qualities_str": ["dark"], "instrument_family": 3,
        "instrument_family_str": family, "instrument_source": 0, "instrument_source_str": "acoustic",
    }  # fmt: skip


def write_set(root: Path, split: str, families: list[str]) -> Path:
    folder = root / f"nsynth-{split}"
    (folder / "audio").mkdir(parents=True)
    names = [f"{family}_acoustic_{index:03d}-060-100" for index, family in enumerate(families)]
    notes = {name: note(name, family) for name, family in zip(names, families, strict=True)}
    (folder / "examples.json").write_text(json.dumps(notes))
    return folder


def test_every_note_of_a_set_is_a_clip(tmp_path: Path) -> None:
    write_set(tmp_path, "valid", ["bass", "vocal", "bass"])
    clips = read_clips(tmp_path, "valid")
    assert [clip.class_name for clip in clips] == ["bass", "vocal", "bass"]
    assert {clip.split for clip in clips} == {"valid"}
    assert clips[1].clip_id(tmp_path) == "nsynth-valid/audio/vocal_acoustic_001-060-100.wav"
    assert clips[1].group == "vocal_acoustic_001"


def test_wrong_layouts_and_damaged_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected nsynth-train/examples.json"):
        read_clips(tmp_path, "train")
    folder = write_set(tmp_path, "train", ["bass"])
    with pytest.raises(DatasetError, match=r"expected nsynth-train/examples.json .*; found audio/, examples.json"):
        read_clips(folder, "train")
    for content, words in (
        ('{"a": ', "is damaged"),
        ("[1]", "is damaged"),
        (json.dumps({"x": note("x", "kazoo")}), "note x has no known instrument_family_str"),
        (json.dumps({"x": {"note": 1}}), "note x has no known"),
    ):
        (folder / "examples.json").write_text(content)
        with pytest.raises(DatasetError, match=words):
            read_clips(tmp_path, "train")


def features_of(split: str, families: list[str], checkpoint: str = "random:0") -> FeatureSet:
    names = [name for name in FAMILIES if name in families]
    return FeatureSet(
        torch.arange(len(families)).float()[:, None].repeat(1, 3),
        torch.tensor([names.index(family) for family in families]),
        names,
        [f"{split}{index}" for index in range(len(families))],
        splits=[split] * len(families),
        groups=families,
        meta={"checkpoint": checkpoint},
    )


PARTS = {
    "train": ["vocal", "synth_lead", "bass", "bass"],
    "valid": ["bass", "vocal"],
    "test": ["vocal", "bass", "bass"],
}


def divided(families: str, train_on: str) -> Division:
    return Division({"families": families, "train_on": train_on}, test_share=0.2, seed=42)


def joined(*splits: str) -> FeatureSet:
    return FeatureSet.join([features_of(split, PARTS[split]) for split in splits], splits, FAMILIES)


def test_files_are_put_together_with_one_numbering() -> None:
    features = joined("train", "valid", "test")
    assert features.class_names == ["bass", "synth_lead", "vocal"]
    assert [features.class_names[label] for label in features.labels] == [
        name for names in PARTS.values() for name in names
    ]
    assert Counter(features.splits) == {"train": 4, "valid": 2, "test": 3}
    assert features.meta == {"checkpoint": "random:0"}


def test_files_of_two_encoders_are_refused() -> None:
    foreign = FeatureSet(torch.zeros(2, 3), torch.tensor([0, 1]), ["0", "1"], ["a", "b"])
    with pytest.raises(FeatureFileError, match=r"valid\.pt has classes that are not this data set's \(0, 1\)"):
        FeatureSet.join([foreign], ["valid.pt"], FAMILIES)
    parts = [features_of("train", ["bass"]), features_of("test", ["bass"], "random:1")]
    with pytest.raises(
        FeatureFileError, match=r"test\.pt and train\.pt were made with different settings \(checkpoint"
    ):
        FeatureSet.join(parts, ["train.pt", "test.pt"], FAMILIES)


def test_nsynth_has_ten_families_or_eleven() -> None:
    prepared = prepare(joined("train", "valid", "test"), divided("10", "train"))
    assert prepared.features.class_names == ["bass", "vocal"]  # vocal, the last official number, is not lost
    assert len(prepared.features) == 8
    assert "without synth_lead" in prepared.description
    assert prepared.is_official
    prepared = prepare(joined("train", "valid", "test"), divided("11", "train"))
    assert prepared.features.class_names == ["bass", "synth_lead", "vocal"]
    assert prepared.description.startswith("official train, valid and test sets, 11 families")
    assert prepared.is_official
    with pytest.raises(DatasetError, match="--families 11 needs the train set"):
        prepare(joined("valid", "test"), divided("11", "valid"))


def test_training_on_valid_says_so() -> None:
    for splits in (("valid", "test"), ("train", "valid", "test")):
        prepared = prepare(joined(*splits), divided("10", "valid"))
        assert "TRAINED ON VALID" in prepared.description
        assert not prepared.is_official
        assert Counter(prepared.features.splits) == {"train": 2, "test": 3}
        assert prepared.features.clip_ids[0] == "valid0"


def test_missing_sets_are_named() -> None:
    with pytest.raises(DatasetError, match=r"NSynth's train set are missing.* --train-on valid"):
        prepare(joined("valid", "test"), divided("10", "train"))
    with pytest.raises(DatasetError, match="NSynth's test set are missing"):
        prepare(joined("valid"), divided("10", "valid"))
