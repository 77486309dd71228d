"""Feature files: what is saved is loaded, the original's files open, damaged ones are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.features import FeatureFileError, FeatureSet
from esc50_feature_fc import esc50
from tests.support.heads import small_features
from tests.support.samples import SHARED, needs_shared


def test_saved_and_loaded_are_equal(tmp_path: Path) -> None:
    features = small_features()
    features = replace(
        features,
        splits=["train"] * len(features),
        groups=[f"group {row // 2}" for row in range(len(features))],
        meta={
            "checkpoint": "random:0",
            "counts": {"clips": 3},
            "samples": torch.arange(len(features)),
            "failed": [("a", "b")],
        },
    )
    features.save(tmp_path / "features.pt")
    loaded = FeatureSet.load(tmp_path / "features.pt")
    for name in ("features", "labels", "folds"):
        assert torch.equal(getattr(loaded, name), getattr(features, name))
    for name in ("class_names", "clip_ids", "splits", "groups"):
        assert getattr(loaded, name) == getattr(features, name)
    assert loaded.meta.keys() == features.meta.keys()
    for key in ("checkpoint", "counts", "failed"):
        assert loaded.meta[key] == features.meta[key]
    assert torch.equal(loaded.meta["samples"], torch.arange(len(features)))


def test_the_file_is_a_plain_dict(tmp_path: Path) -> None:
    small_features().save(tmp_path / "features.pt")
    content = torch.load(tmp_path / "features.pt", weights_only=True)
    assert set(content) == {"features", "labels", "class_names", "clip_ids", "folds", "splits", "groups", "meta"}


def test_equal_sets_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one.pt", "another.pt"):
        small_features().save(tmp_path / name)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()


def test_files_of_the_original_project_open(tmp_path: Path) -> None:
    torch.save({"features": torch.ones(3, 4), "labels": torch.tensor([0, 2, 1])}, tmp_path / "labels.pt")
    loaded = FeatureSet.load(tmp_path / "labels.pt")
    assert loaded.class_names == ["0", "1", "2"]
    assert (loaded.folds, loaded.splits, loaded.groups, loaded.meta) == (None, None, None, {})
    torch.save({"features": torch.ones(2, 4, dtype=torch.float64), "keys": ["a.wav", "b.wav"]}, tmp_path / "keys.pt")
    loaded = FeatureSet.load(tmp_path / "keys.pt")
    assert loaded.clip_ids == ["a.wav", "b.wav"]
    assert loaded.features.dtype == torch.float32
    assert loaded.labels.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("labels", "numbered", "names"),
    [
        ([8975, 103, 8975], [1, 0, 1], ["103", "8975"]),  # speakers
        ([0, 10**9], [0, 1], ["0", "1000000000"]),
        ([2, 0, 1], [2, 0, 1], ["0", "1", "2"]),
    ],
    ids=["speakers", "large", "without gaps"],
)
def test_labels_without_class_names_are_numbered_without_gaps(
    labels: list[int], numbered: list[int], names: list[str], tmp_path: Path
) -> None:
    torch.save({"features": torch.ones(len(labels), 2), "labels": torch.tensor(labels)}, tmp_path / "f.pt")
    loaded = FeatureSet.load(tmp_path / "f.pt")
    assert loaded.labels.tolist() == numbered
    assert loaded.class_names == names
    assert [loaded.class_names[label] for label in loaded.labels] == [str(label) for label in labels]


def test_a_subset_drops_what_no_longer_occurs() -> None:
    features = small_features()
    features = replace(features, groups=[f"group {row}" for row in range(72)], splits=["train"] * 72)
    assert features.folds is not None
    rows = np.flatnonzero((features.labels != 1).numpy())[::-1].copy()
    part = features.subset(rows)
    assert part.class_names == ["class 0", "class 2", "class 3"]
    names = [features.class_names[label] for label in features.labels[rows]]
    assert [part.class_names[label] for label in part.labels] == names
    assert torch.equal(part.features, features.features[rows])
    assert part.clip_ids == [f"clip{row}.wav" for row in rows]
    assert part.groups == [f"group {row}" for row in rows]
    assert part.folds is not None
    assert part.folds.tolist() == features.folds[rows].tolist()
    assert part.splits == ["train"] * len(rows)


def test_the_columns_of_several_outputs_have_names() -> None:
    outputs = [("pre_conv", "mean", 10), ("encoder_block6", "std", 13), ("condition zero", "", 1)]
    features = replace(small_features(), meta={"outputs": outputs})
    assert features.output_columns == {
        "pre_conv mean": slice(0, 10),
        "encoder_block6 std": slice(10, 23),
        "condition zero": slice(23, 24),
    }
    assert small_features().output_columns == {}


@needs_shared
def test_the_published_files_open() -> None:
    folder = SHARED / "reference_features"
    recognised = esc50.recognise(FeatureSet.load(folder / "esc50_features_audiosep.pt"))
    assert recognised is not None
    features, sentence = recognised
    assert features.features.shape == (2000, 384)
    assert features.folds is not None
    assert features.folds.bincount().tolist() == [0, 400, 400, 400, 400, 400]
    assert features.class_names[42] == "siren"
    assert "official folds" in sentence
    icbhi = FeatureSet.load(folder / "icbhi_features_audiosep.pt")
    assert len(icbhi) == 887
    assert esc50.recognise(icbhi) is None


PAIR = {"features": torch.ones(2, 2), "labels": torch.tensor([0, 1])}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "valid dictionary"),
        ({"labels": torch.tensor([0])}, "features: Field required"),
        ({"features": torch.ones(3)}, "no 2-D"),
        ({"features": torch.ones(3, 2)}, "neither 'labels' nor 'keys'"),
        ({"features": torch.ones(0, 2), "labels": torch.ones(0, dtype=torch.int64)}, "no clips"),
        ({"features": torch.ones(3, 2), "labels": torch.tensor([0, 1])}, "3 rows of features but 2 labels"),
        ({"features": torch.ones(2, 2), "labels": torch.tensor([0.5, 1])}, "integer"),
        ({"features": torch.ones(2, 2), "labels": torch.tensor([-1, 1])}, "non-negative"),
        ({"features": torch.ones(2, 2), "labels": ["dog", "cat"]}, "labels: too many dimensions"),
        ({"features": torch.ones(2, 2), "keys": 5}, "valid list"),
        ({**PAIR, "class_names": 5}, "class_names: Input should be a valid list"),
        ({**PAIR, "folds": ["a", "b"]}, "folds: too many dimensions"),
        ({**PAIR, "folds": torch.tensor([1])}, "1 folds"),
        ({**PAIR, "groups": ["a"]}, "1 groups"),
        ({**PAIR, "labels": torch.tensor([0, 5]), "class_names": ["a"]}, "only 1 class names"),
        ({**PAIR, "meta": {"sample_rate": "fast"}}, "sample_rate"),
    ],
)
def test_damaged_files_are_named(content: Any, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(FeatureFileError) as error:
        FeatureSet.load(tmp_path / "bad.pt")
    assert str(tmp_path / "bad.pt") in str(error.value)
    assert words in str(error.value)


def test_files_without_features_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatureFileError, match=r"not found; run the task's extract"):
        FeatureSet.load(tmp_path / "missing.pt")
    with pytest.raises(FeatureFileError, match="folder"):
        FeatureSet.load(tmp_path)
    small_features().save(tmp_path / "cut.pt")
    content = (tmp_path / "cut.pt").read_bytes()
    for share in (0, 0.3, 0.9):
        (tmp_path / "cut.pt").write_bytes(content[: int(share * len(content))])
        with pytest.raises(FeatureFileError, match="damaged"):
            FeatureSet.load(tmp_path / "cut.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(FeatureFileError, match="not a feature file"):
        FeatureSet.load(tmp_path / "text.pt")
    torch.save({"features": Path("/")}, tmp_path / "objects.pt")
    with pytest.raises(FeatureFileError, match="refused"):
        FeatureSet.load(tmp_path / "objects.pt")


def test_clips_without_labels_stay_without() -> None:
    """In subsets, joins and other orders of classes, also beside clips that have one."""
    labels = torch.tensor([2, -1, 0, -1])
    one = FeatureSet(torch.arange(8.0).reshape(4, 2), labels, ["a", "b", "c"], ["1", "2", "3", "4"])
    assert one.label_texts == ["c", "", "a", ""]
    assert one.subset(np.array([0, 1])).label_texts == ["c", ""]
    assert one.subset(np.array([1, 3])).class_names == [] and one.subset(np.array([1])).label_texts == [""]
    assert one.in_order(["c", "b", "a"]).label_texts == one.label_texts
    other = FeatureSet(torch.zeros(1, 2), torch.tensor([-1]), [], ["5"])
    assert FeatureSet.join([one, other], ["x", "y"], None).label_texts == [*one.label_texts, ""]
