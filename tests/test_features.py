"""Feature files: what is saved is loaded, the original's files open, damaged ones are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import SHARED, made_up_features, needs_shared

from common.features import FeatureFileError, FeatureSet
from esc50_feature_fc import esc50


def test_saved_and_loaded_are_equal(tmp_path: Path) -> None:
    features = made_up_features()
    features.splits = ["train"] * len(features)
    features.groups = [f"group {row // 2}" for row in range(len(features))]
    features.meta = {
        "checkpoint": "random:0",
        "counts": {"clips": 3},
        "samples": torch.arange(3),
        "failed": [["a", "b"]],
    }
    features.save(tmp_path / "features.pt")
    loaded = FeatureSet.load(tmp_path / "features.pt")
    for name in ("features", "labels", "folds"):
        assert torch.equal(getattr(loaded, name), getattr(features, name))
    for name in ("class_names", "clip_ids", "splits", "groups"):
        assert getattr(loaded, name) == getattr(features, name)
    assert loaded.meta["counts"] == {"clips": 3}


def test_the_file_is_a_plain_dict(tmp_path: Path) -> None:
    made_up_features().save(tmp_path / "features.pt")
    content = torch.load(tmp_path / "features.pt", weights_only=True)
    assert set(content) == {"features", "labels", "class_names", "clip_ids", "folds", "splits", "groups", "meta"}


def test_equal_sets_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one.pt", "another.pt"):
        made_up_features().save(tmp_path / name)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()


def test_the_originals_files_open(tmp_path: Path) -> None:
    torch.save({"features": torch.ones(3, 4), "labels": torch.tensor([0, 2, 1])}, tmp_path / "labels.pt")
    loaded = FeatureSet.load(tmp_path / "labels.pt")
    assert loaded.class_names == ["0", "1", "2"]
    assert (loaded.folds, loaded.splits, loaded.groups, loaded.meta) == (None, None, None, {})
    torch.save({"features": torch.ones(2, 4, dtype=torch.float64), "keys": ["a.wav", "b.wav"]}, tmp_path / "keys.pt")
    loaded = FeatureSet.load(tmp_path / "keys.pt")
    assert loaded.clip_ids == ["a.wav", "b.wav"]
    assert loaded.features.dtype == torch.float32
    assert loaded.labels.tolist() == [-1, -1]


@needs_shared
def test_the_published_files_open() -> None:
    folder = SHARED / "reference_features"
    features, sentence = esc50.recognise(FeatureSet.load(folder / "esc50_features_audiosep.pt"))
    assert features.features.shape == (2000, 384)
    assert features.folds.bincount().tolist() == [0, 400, 400, 400, 400, 400]
    assert features.class_names[42] == "siren"
    assert "official folds" in sentence
    icbhi = FeatureSet.load(folder / "icbhi_features_audiosep.pt")
    assert len(icbhi) == 887
    assert esc50.recognise(icbhi) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "list"),
        ({"labels": torch.tensor([0])}, "no 2-D"),
        ({"features": torch.ones(3)}, "no 2-D"),
        ({"features": torch.ones(3, 2)}, "neither 'labels' nor 'keys'"),
        ({"features": torch.ones(0, 2), "labels": torch.ones(0, dtype=torch.int64)}, "no clips"),
        ({"features": torch.ones(3, 2), "labels": torch.tensor([0, 1])}, "3 rows of features but 2 labels"),
        ({"features": torch.ones(2, 2), "labels": torch.tensor([0.5, 1])}, "integer"),
        ({"features": torch.ones(2, 2), "labels": torch.tensor([-1, 1])}, "non-negative"),
        ({"features": torch.ones(2, 2), "labels": ["dog", "cat"]}, "not numbers"),
        ({"features": torch.ones(2, 2), "labels": torch.tensor([0, 10**9])}, "no class numbers"),
        ({"features": torch.ones(2, 2), "keys": 5}, "clip_ids is a int"),
        ({"features": torch.ones(2, 2), "labels": torch.tensor([0, 1]), "class_names": 5}, "class_names is a int"),
        ({"features": torch.ones(2, 2), "labels": torch.tensor([0, 1]), "folds": ["a", "b"]}, "no 1-D tensor"),
        ({"features": torch.ones(2, 2), "labels": torch.tensor([0, 1]), "folds": torch.tensor([1])}, "1 folds"),
        ({"features": torch.ones(2, 2), "labels": torch.tensor([0, 1]), "groups": ["a"]}, "1 groups"),
        ({"features": torch.ones(2, 2), "labels": torch.tensor([0, 5]), "class_names": ["a"]}, "only 1 class names"),
    ],
)
def test_damaged_files_are_named(content, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(FeatureFileError) as error:
        FeatureSet.load(tmp_path / "bad.pt")
    assert str(tmp_path / "bad.pt") in str(error.value)
    assert words in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FeatureFileError, match=r"not found; run the task's extract"):
        FeatureSet.load(tmp_path / "missing.pt")
    with pytest.raises(FeatureFileError, match="folder"):
        FeatureSet.load(tmp_path)
    made_up_features().save(tmp_path / "cut.pt")
    content = (tmp_path / "cut.pt").read_bytes()
    for share in (0, 0.3, 0.9):
        (tmp_path / "cut.pt").write_bytes(content[: int(share * len(content))])
        with pytest.raises(FeatureFileError, match="damaged"):
            FeatureSet.load(tmp_path / "cut.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(FeatureFileError, match="no feature file"):
        FeatureSet.load(tmp_path / "text.pt")
    torch.save({"features": Path("/")}, tmp_path / "objects.pt")
    with pytest.raises(FeatureFileError, match="refused"):
        FeatureSet.load(tmp_path / "objects.pt")
