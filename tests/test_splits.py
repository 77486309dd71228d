"""Splits: the official ones where there are any, no row on two sides, missing classes refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import made_up_features

from common.evaluation.splits import SplitError, hold_out_groups, make_splits


def test_folds_present_in_the_data_are_used() -> None:
    features = made_up_features(folds=3)
    features.folds = torch.tensor([0, 1, 2, 10])[features.folds]
    splits, protocol = make_splits(features, 0.2, 42)
    assert protocol == "official folds 1, 2, 10"
    assert [split.name for split in splits] == ["fold 1", "fold 2", "fold 10"]
    for split in splits:
        assert not set(split.train) & set(split.test)
        assert sorted([*split.train, *split.test]) == list(range(len(features)))
        assert set(features.folds[split.test].tolist()) == {int(split.name.split()[1])}
    assert sorted(np.concatenate([split.test for split in splits])) == list(range(len(features)))


def test_consecutive_folds_are_named_as_a_range() -> None:
    assert make_splits(made_up_features(folds=5), 0.2, 42)[1] == "official folds 1-5"


def test_official_train_and_test() -> None:
    features = made_up_features()
    features.folds = None
    features.splits = ["test" if row % 5 == 0 else "valid" if row % 5 == 1 else "train" for row in range(len(features))]
    (split,), protocol = make_splits(features, 0.2, 42)
    assert protocol == "official train, valid and test split"
    assert all(features.splits[row] == "valid" for row in split.valid)
    assert all(features.splits[row] == "train" for row in split.train)
    assert all(features.splits[row] == "test" for row in split.test)


def test_a_random_split_is_stratified_seeded_and_says_what_it_is() -> None:
    features = made_up_features(per_fold=10)
    features.folds = None
    (split,), protocol = make_splits(features, 0.2, 42)
    assert protocol == "random 20% test split, stratified"
    assert features.labels[split.test].bincount().tolist() == [6, 6, 6, 6]
    assert not set(split.train) & set(split.test)
    (again,), _ = make_splits(features, 0.2, 42)
    assert np.array_equal(split.test, again.test)
    (other,), _ = make_splits(features, 0.2, 43)
    assert not np.array_equal(split.test, other.test)


def test_an_official_split_without_a_side_is_refused() -> None:
    features = made_up_features()
    features.folds = None
    features.splits = ["train"] * len(features)
    with pytest.raises(SplitError, match="no test clips of the official split"):
        make_splits(features, 0.2, 42)


def test_one_fold_is_refused() -> None:
    features = made_up_features()
    features.folds[:] = 4
    with pytest.raises(SplitError, match="only fold 4 is present"):
        make_splits(features, 0.2, 42)


def test_a_fold_without_a_class_is_refused() -> None:
    features = made_up_features()
    features.labels[(features.folds == 2) & (features.labels == 3)] = 0
    with pytest.raises(SplitError, match=r"fold 2 has no clip of class class 3"):
        make_splits(features, 0.2, 42)


def test_a_class_with_one_clip_cannot_be_split() -> None:
    features = made_up_features()
    features.folds = None
    features.labels[features.labels == 3] = 0
    features.labels[7] = 3
    with pytest.raises(SplitError, match="class 3 has a single clip"):
        make_splits(features, 0.2, 42)


def test_too_few_clips_for_the_share() -> None:
    features = made_up_features(n_classes=4, per_fold=1, folds=2)
    features.folds = None
    with pytest.raises(SplitError, match="cannot be split"):
        make_splits(features, 0.2, 42)


def test_held_out_groups_are_whole_and_leave_every_class() -> None:
    features = made_up_features(per_fold=10)
    features.groups = [f"group {row // 3}" for row in range(len(features))]
    rows = np.arange(0, len(features), 2)
    held_out = hold_out_groups(features, rows, 0.2, 42)
    kept = np.setdiff1d(rows, held_out)
    assert set(held_out) <= set(rows)
    assert not {features.groups[row] for row in held_out} & {features.groups[row] for row in kept}
    assert 0.1 < len(held_out) / len(rows) < 0.35
    assert set(features.labels[kept].tolist()) == {0, 1, 2, 3}
    assert np.array_equal(held_out, hold_out_groups(features, rows, 0.2, 42))
    assert not np.array_equal(held_out, hold_out_groups(features, rows, 0.2, 1))
