"""ICBHI: labels from numbers, the official split and its counts, patients on one side, the challenge's scores."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from common.datasets import Clip, DatasetError, DatasetNote, Division
from common.evaluation.splits import make_splits, with_validation
from common.features import FeatureSet
from icbhi_feature_fc.icbhi import (
    CYCLE_CLASSES,
    RECORDING_CLASSES,
    SPLIT_FILE,
    prepare,
    read_cycles,
    read_recordings,
    scores,
)
from tests.support.samples import SHARED, needs_shared, write_wav

ROWS = {  # recording -> annotation, split
    "101_1b1_Al_sc_Meditron": ("0.5\t1.5\t0\t0\n1.5\t2.25\t0\t0\n", "train"),
    "102_1b1_Ar_sc_Meditron": ("0.0\t1.0\t0\t0\n1.0\t2.0\t1\t0\n", "train"),
    "103_2b2_Ar_mc_LittC2SE": ("0.0\t1.0\t0\t1\n", "test"),
    "104_1b1_Al_sc_Litt3200": ("0.0\t1.0\t1\t1\n\n", "test"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "ICBHI_final_database"
    for seed, (stem, (annotation, _)) in enumerate(ROWS.items()):
        write_wav(root / f"{stem}.wav", seed, seconds=2.5, rate=4_000)
        (root / f"{stem}.txt").write_text(annotation)
    (tmp_path / SPLIT_FILE).write_text("".join(f"{stem}\t{split}\r\n" for stem, (_, split) in ROWS.items()))
    return root


def test_recordings_are_clips(root: Path) -> None:
    clips = read_recordings(root)
    assert [clip.class_name for clip in clips] == ["normal", "abnormal", "abnormal", "abnormal"]
    assert [clip.split for clip in clips] == ["train", "train", "test", "test"]
    assert [clip.group for clip in clips] == ["101", "102", "103", "104"]


def test_cycles_are_segments(root: Path) -> None:
    clips = read_cycles(root)
    assert [clip.class_name for clip in clips] == ["normal", "normal", "normal", "crackle", "wheeze", "both"]
    assert (clips[1].start_s, clips[1].end_s) == (1.5, 2.25)
    assert clips[1].clip_id(root) == "101_1b1_Al_sc_Meditron.wav#1.5-2.25"


def test_the_device_in_the_split_file_does_not_matter(root: Path) -> None:
    """For one recording the official list and the archive disagree about it."""
    path = root.parent / SPLIT_FILE
    path.write_text(path.read_text().replace("103_2b2_Ar_mc_LittC2SE", "103_2b2_Ar_mc_Meditron"))
    assert read_recordings(root)[2].split == "test"


def test_text_files_without_a_recording_are_ignored(root: Path) -> None:
    (root / "filename_format.txt").write_text("crackle wheeze")
    assert len(read_recordings(root)) == 4


@pytest.mark.parametrize(
    "row",
    [
        "start\tend\tcrackles\twheezes",
        "0.0\t1.0\t0",
        "0.0\t1.0\t2\t0",
        "1.0\t0.5\t0\t0",
        "-1\t0.5\t0\t0",
        "0\t1\tcrackle\t0",
        "nan\t1\t0\t0",
        "0.5\tinf\t0\t0",
    ],
)
def test_bad_annotations_are_named(row: str, root: Path) -> None:
    (root / "102_1b1_Ar_sc_Meditron.txt").write_text(f"0.0\t1.0\t0\t0\n{row}\n")
    with pytest.raises(DatasetError, match=r"102_1b1_Ar_sc_Meditron.txt line 2 .* is not an annotation"):
        read_recordings(root)


def test_a_list_in_another_encoding_is_refused(root: Path) -> None:
    listing = root.parent / SPLIT_FILE
    before = listing.read_text()
    listing.write_bytes(before.encode("utf-16"))
    assert len(read_recordings(root)) == 4
    listing.write_bytes(before.encode() + b"\xff")
    with pytest.raises(DatasetError, match=r"cannot be read: not text in UTF-8 or UTF-16 \(line \d+\)"):
        read_recordings(root)


def test_missing_and_empty_annotations_are_named(root: Path) -> None:
    (root / "102_1b1_Ar_sc_Meditron.txt").write_text("")
    with pytest.raises(DatasetError, match=r"102_1b1_Ar_sc_Meditron.txt is empty"):
        read_cycles(root)
    (root / "102_1b1_Ar_sc_Meditron.txt").unlink()
    with pytest.raises(DatasetError, match=r"102_1b1_Ar_sc_Meditron.txt cannot be read \(No such file"):
        read_cycles(root)


def test_recordings_outside_the_split_are_refused(root: Path) -> None:
    write_wav(root / "105_1b1_Tc_sc_Meditron.wav", rate=4_000)
    with pytest.raises(DatasetError, match=r"105_1b1_Tc_sc_Meditron.wav is not in the official split"):
        read_recordings(root)
    (root / "105_1b1_Tc_sc_Meditron.wav").rename(root / "notes.wav")
    with pytest.raises(DatasetError, match=r"notes.wav is not in the official split"):
        read_recordings(root)


def test_a_missing_split_file_and_a_wrong_folder_are_explained(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="one folder too high"):
        read_recordings(tmp_path)
    (tmp_path / SPLIT_FILE).write_text("101_1b1_Al_sc_Meditron validation\n")
    with pytest.raises(DatasetError, match=r"line 1 .* is not 'recording<TAB>train.test'"):
        read_recordings(root)
    (tmp_path / SPLIT_FILE).unlink()
    with pytest.raises(DatasetError, match=r"get it: python -m common\.download icbhi --only split --root "):
        read_recordings(root)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole data set without its sound: annotations with the official counts of every recording."""
    folder = tmp_path_factory.mktemp("official")
    root = folder / "ICBHI_final_database"
    root.mkdir()
    for row in pd.read_csv(SHARED / "facts" / "icbhi_recordings.csv").itertuples():
        (root / f"{row.stem_on_disk}.wav").touch()
        kinds = [(0, 0)] * row.normal + [(1, 0)] * row.crackle + [(0, 1)] * row.wheeze + [(1, 1)] * row.both
        lines = [f"{start}\t{start + 1}\t{crackles}\t{wheezes}\n" for start, (crackles, wheezes) in enumerate(kinds)]
        (root / f"{row.stem_on_disk}.txt").write_text("".join(lines))
    (folder / SPLIT_FILE).write_bytes((SHARED / "real_audio" / SPLIT_FILE).read_bytes())
    return root


@needs_shared
def test_icbhi_has_the_official_counts(official: Path) -> None:
    recordings = Counter((clip.split, clip.class_name) for clip in read_recordings(official))
    assert recordings == {
        ("train", "normal"): 160,
        ("train", "abnormal"): 379,
        ("test", "normal"): 127,
        ("test", "abnormal"): 254,
    }
    cycles = Counter((clip.split, clip.class_name) for clip in read_cycles(official))
    assert [cycles["train", name] for name in CYCLE_CLASSES] == [2063, 1215, 501, 363]
    assert [cycles["test", name] for name in CYCLE_CLASSES] == [1579, 649, 385, 143]


def divided(patient_disjoint: bool) -> Division:
    return Division({"patient_disjoint": patient_disjoint}, test_share=0.2, seed=42)


def features_of(clips: list[Clip]) -> FeatureSet:
    names = sorted({clip.class_name for clip in clips})
    return FeatureSet(
        torch.zeros(len(clips), 2),
        torch.tensor([names.index(clip.class_name) for clip in clips]),
        names,
        [clip.path.name for clip in clips],
        splits=[clip.split for clip in clips],
        groups=[clip.group for clip in clips],
    )


@needs_shared
@pytest.mark.parametrize("disjoint", [False, True])
def test_validation_patients_train_nothing(official: Path, disjoint: bool) -> None:
    features = features_of(read_recordings(official))
    note = "patients 156, 218 are left out" if disjoint else "patients 156, 218 are on both sides of the official split"
    with pytest.warns(DatasetNote, match=note):
        prepared = prepare(features, divided(disjoint))
    sides = "no patient on both sides" if disjoint else "patients 156, 218 on both sides"
    assert prepared.description.endswith(f", {sides}")
    assert prepared.is_official != disjoint
    assert ("without some training clips" in prepared.description) == disjoint
    (split,), protocol = make_splits(prepared)
    assert protocol == f"{'given' if disjoint else 'official'} train and test split"
    split, words = with_validation(prepared.features, split, 42)
    assert words == "20% of the training clips, whole groups"
    groups = np.array(prepared.features.groups)
    train, valid, test = (set(groups[rows]) for rows in (split.train, split.valid, split.test))
    assert not train & valid
    assert 10 <= len(valid) <= 22  # of 79 training patients
    assert 0.15 < len(split.valid) / (len(split.train) + len(split.valid)) < 0.25
    assert (train | valid) & test == (set() if disjoint else {"156", "218"})
    assert len(split.train) + len(split.valid) == (526 if disjoint else 539)
    assert len(split.test) == 381


@pytest.mark.parametrize("disjoint", [False, True])
def test_a_split_without_common_patients_is_the_official_one(root: Path, disjoint: bool) -> None:
    prepared = prepare(features_of(read_recordings(root)), divided(disjoint))
    assert prepared.description == "official 60/40 split, no patient on both sides"
    assert prepared.is_official
    assert prepared.features.splits == ["train", "train", "test", "test"]


def test_patients_on_both_sides_are_dropped_from_training(root: Path) -> None:
    clips = [replace(clip, group="103" if clip.group == "102" else clip.group) for clip in read_recordings(root)]
    with pytest.warns(DatasetNote, match="1 training clips of patients 103 are left out"):
        prepared = prepare(features_of(clips), divided(True))
    assert not prepared.is_official
    assert prepared.description == "official 60/40 split without some training clips, no patient on both sides"
    assert prepared.features.splits == ["train", "test", "test"]
    assert prepared.features.groups == ["101", "103", "104"]
    with pytest.warns(DatasetNote, match="patients 103 are on both sides of the official split"):
        prepared = prepare(features_of(clips), divided(False))
    assert prepared.is_official
    assert prepared.description == "official 60/40 split, patients 103 on both sides"
    assert len(prepared.features) == 4


def test_the_normal_class_is_found_by_its_name() -> None:
    labels, predictions = np.array([3, 3, 3, 3, 1, 1, 2, 0]), np.array([3, 3, 3, 1, 1, 2, 2, 3])
    scored = scores(labels, predictions, ("both", "crackle", "wheeze", "normal"))
    assert scored == {"sensitivity": 0.5, "specificity": 0.75, "icbhi_score": 0.625}
    # Where no clip is normal, the first class is another.
    scored = scores(np.array([0, 0, 1]), np.array([0, 1, 1]), ("crackle", "wheeze"))
    assert scored["sensitivity"] == pytest.approx(2 / 3)
    assert np.isnan(scored["specificity"])
    assert np.isnan(scored["icbhi_score"])


def test_the_majority_is_the_training_sides() -> None:
    assert scores(np.array([0, 1]), np.array([0, 0]), RECORDING_CLASSES)["icbhi_score"] == 0.5
