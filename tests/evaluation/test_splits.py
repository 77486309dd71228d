"""Splits: the official splits if known, no row on two sides, missing classes refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from common.datasets import Prepared
from common.evaluation.splits import SplitError, group_folds, hold_out_groups, make_splits, random_split
from common.features import FeatureSet
from tests.support.heads import small_features


def without_folds(per_fold: int = 6, folds: int = 3) -> FeatureSet:
    """Features without any official division."""
    return replace(small_features(per_fold=per_fold, folds=folds), folds=None)


def folds_of(features: FeatureSet) -> torch.Tensor:
    """The official folds."""
    assert features.folds is not None
    return features.folds


def test_folds_present_in_the_data_are_used() -> None:
    features = small_features(folds=3)
    features = replace(features, folds=torch.tensor([0, 1, 2, 10])[folds_of(features)])
    splits, protocol = make_splits(Prepared(features))
    assert protocol == "official folds 1, 2, 10"
    assert [split.name for split in splits] == ["fold 1", "fold 2", "fold 10"]
    for split in splits:
        assert not set(split.train) & set(split.test)
        assert sorted([*split.train, *split.test]) == list(range(len(features)))
        assert set(folds_of(features)[split.test].tolist()) == {int(split.name.split()[1])}
    assert sorted(np.concatenate([split.test for split in splits])) == list(range(len(features)))


def test_consecutive_folds_are_named_as_a_range() -> None:
    assert make_splits(Prepared(small_features(folds=5)))[1] == "official folds 1-5"


def test_the_official_train_and_test_sides_are_used() -> None:
    features = without_folds()
    sides = ["test" if row % 5 == 0 else "valid" if row % 5 == 1 else "train" for row in range(len(features))]
    (split,), protocol = make_splits(Prepared(replace(features, splits=sides)))
    assert protocol == "official train, valid and test split"
    for side, rows in (("train", split.train), ("valid", split.valid), ("test", split.test)):
        assert rows.tolist() == [row for row, name in enumerate(sides) if name == side]
    sides = ["train" if side == "valid" else side for side in sides]
    assert make_splits(Prepared(replace(features, splits=sides)))[1] == "official train and test split"


def test_an_official_split_without_a_side_is_refused() -> None:
    features = without_folds()
    with pytest.raises(SplitError, match="no test clips of the official split"):
        make_splits(Prepared(replace(features, splits=["train"] * len(features))))


def test_one_fold_is_refused() -> None:
    features = small_features()
    folds_of(features)[:] = 4
    with pytest.raises(SplitError, match="only fold 4 is present"):
        make_splits(Prepared(features))


def test_a_fold_without_a_class_is_refused() -> None:
    features = small_features()
    features.labels[(folds_of(features) == 2) & (features.labels == 3)] = 0
    with pytest.raises(SplitError, match=r"fold 2 has no clip of class class 3"):
        make_splits(Prepared(features))


def test_a_class_with_one_clip_cannot_be_split() -> None:
    features = without_folds()
    features.labels[features.labels == 3] = 0
    features.labels[7] = 3
    with pytest.raises(SplitError, match="class 3 has a single clip"):
        random_split(features, 0.2, 42)


def test_too_few_clips_for_the_share_are_refused() -> None:
    with pytest.raises(SplitError, match="cannot be split"):
        random_split(without_folds(per_fold=1, folds=2), 0.2, 42)


def test_a_single_group_cannot_be_held_out() -> None:
    features = replace(small_features(), groups=["one"] * 72)
    with pytest.raises(ValueError, match="n_splits=1"):
        hold_out_groups(features, np.arange(72), 0.2, 42)


def test_held_out_groups_are_whole_and_leave_every_class() -> None:
    features = small_features(per_fold=10)
    groups = [f"group {row // 3}" for row in range(len(features))]
    features = replace(features, groups=groups)
    rows = np.arange(0, len(features), 2)
    held_out = hold_out_groups(features, rows, 0.2, 42)
    kept = np.setdiff1d(rows, held_out)
    assert set(held_out) <= set(rows)
    assert not {groups[row] for row in held_out} & {groups[row] for row in kept}
    assert 0.1 < len(held_out) / len(rows) < 0.35
    assert set(features.labels[kept].tolist()) == {0, 1, 2, 3}
    assert np.array_equal(held_out, hold_out_groups(features, rows, 0.2, 42))
    assert not np.array_equal(held_out, hold_out_groups(features, rows, 0.2, 1))


def test_folds_of_groups_are_those_of_earlier_versions() -> None:
    """As scikit-learn 1.7.2 drew them: later versions draw others with the same seed, which would change scores."""
    labels, groups = np.arange(24) % 3, np.array([f"source {row * 5 % 8}" for row in range(24)])
    assert group_folds(labels, groups, 3, seed=1).tolist() == [0, 2, 2, 1, 1, 1, 0, 0] * 3


def test_no_class_is_held_out_as_a_whole() -> None:
    features = small_features(n_classes=2)
    features = replace(features, groups=[f"group {label}" for label in features.labels.tolist()])
    with pytest.raises(SplitError, match="what is left for training has no clip of class"):
        hold_out_groups(features, np.arange(len(features)), 0.5, 42)


def test_a_random_split_is_stratified_and_seeded() -> None:
    features = without_folds(per_fold=10)
    split = random_split(features, 0.2, 42)
    assert features.labels[split.test].bincount().tolist() == [6, 6, 6, 6]
    assert not set(split.train) & set(split.test)
    again = random_split(features, 0.2, 42)
    assert np.array_equal(split.test, again.test)
    other = random_split(features, 0.2, 43)
    assert not np.array_equal(split.test, other.test)
