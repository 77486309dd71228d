"""Splits: the official ones if there are any, no row on two sides, missing classes refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from common.datasets import Prepared
from common.evaluation.splits import SplitError, hold_out_groups, make_splits, random_split
from common.features import FeatureSet
from tests.support.heads import small_features


def without_folds(per_fold: int = 6, folds: int = 3) -> FeatureSet:
    """Features without any official division."""
    return replace(small_features(per_fold=per_fold, folds=folds), folds=None)


def folds_of(features: FeatureSet) -> torch.Tensor:
    """The official folds, which there are."""
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
        assert rows.tolist() == [row for row, own in enumerate(sides) if own == side]
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
    with pytest.raises(SplitError, match="of a single group"):
        hold_out_groups(features, np.arange(72), 0.2, 42)
