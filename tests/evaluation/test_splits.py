"""Splits: the official splits if known, no row on two sides, missing classes refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from common.arrays import Array
from common.datasets import Prepared
from common.evaluation.splits import SplitError, folds_by_group, group_folds, hold_out_groups, make_splits, random_split
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


def most_folds(holds: Array, most: int = 5) -> int:
    """The largest number of folds (at most `most`) of groups whose classes are `holds` (G, C), all with every class: by trying."""
    n_groups = len(holds)
    bits = [int("".join("01"[has] for has in row), 2) for row in holds.astype(int)]
    classes, best = [0] * (1 << n_groups), [0] * (1 << n_groups)
    for chosen in range(1, 1 << n_groups):  # groups as bits of a number
        low = chosen & -chosen
        rest = chosen ^ low
        classes[chosen] = classes[rest] | bits[low.bit_length() - 1]
        best[chosen] = best[rest]
        part = rest
        while True:  # every fold that the first group can be in
            if classes[part | low] == (1 << holds.shape[1]) - 1:
                best[chosen] = max(best[chosen], 1 + best[rest ^ part])
            if not part:
                break
            part = (part - 1) & rest
    return min(best[-1], most)


@pytest.mark.parametrize(
    ("n_sets", "most_groups"), [(60, 8), pytest.param(500, 10, marks=pytest.mark.slow, id="many sets")]
)
def test_no_division_has_more_folds_by_group(n_sets: int, most_groups: int) -> None:
    rng, refused = np.random.default_rng(0), 0
    for _ in range(n_sets):
        n_groups, n_classes = rng.integers(2, most_groups + 1), rng.integers(2, 6)
        holds = rng.random((n_groups, n_classes)) < rng.uniform(0.3, 0.9)
        holds[rng.integers(0, n_groups, n_classes), np.arange(n_classes)] = True
        holds[np.arange(n_groups), rng.integers(0, n_classes, n_groups)] = True
        clips = holds * rng.integers(1, 8, holds.shape)
        labels = np.concatenate([np.repeat(np.arange(n_classes), row) for row in clips])
        groups = np.repeat(np.arange(n_groups), clips.sum(axis=1))
        expected = most_folds(holds)
        try:
            folds, _ = folds_by_group(labels, groups, list("abcde"[:n_classes]), 42)
        except SplitError:
            refused += 1
            assert expected < 2
            continue
        assert folds.max() == expected
        assert all(set(labels[folds == fold]) == set(range(n_classes)) for fold in range(1, expected + 1))
        assert all(len(set(folds[groups == group])) == 1 for group in range(n_groups))
    assert 0 < refused < n_sets / 2


def test_folds_are_found_where_the_heuristic_finds_none() -> None:
    """scikit-learn 28218: p3 has every class, p1 and p2 have the rest between them."""
    groups = np.repeat(["p1", "p2", "p2", "p3", "p3", "p3"], 4)
    labels = np.repeat([0, 1, 2, 0, 1, 2], 4)
    folds, words = folds_by_group(labels, groups, ["low", "high", "noise"], 42)
    assert {group: set(folds[groups == group]) for group in groups} in (
        {"p1": {1}, "p2": {1}, "p3": {2}},
        {"p1": {2}, "p2": {2}, "p3": {1}},
    )
    assert words == "2 folds by group, made here with seed 42; class low has clips of only 2 groups"


def test_found_folds_are_even() -> None:
    """As the heuristic's are; here it finds none with every class in each."""
    rng = np.random.default_rng(1)
    holds = rng.random((30, 10)) < 0.2
    for label in range(10):
        holds[rng.choice(30, 6, replace=False), label] = True
    clips = holds * 4
    labels = np.concatenate([np.repeat(np.arange(10), row) for row in clips])
    groups = np.repeat(np.arange(30), clips.sum(axis=1))
    heuristic = group_folds(labels, groups, 5, 42)
    folds = folds_by_group(labels, groups, list("abcdefghij"), 42)[0] - 1

    def unevenness(folds: Array) -> float:
        counts = np.array([np.bincount(labels[folds == fold], minlength=10) for fold in range(5)])
        return float(np.abs(counts / counts.sum(axis=0) - 0.2).mean())

    assert any(len(set(labels[heuristic == fold])) < 10 for fold in range(5))
    assert set(folds) == set(range(5)) and unevenness(folds) <= unevenness(heuristic)


def test_with_several_labels_every_class_is_left_to_learn() -> None:
    labels = np.zeros((10, 2), bool)
    labels[:, 0] = True
    labels[:4, 1] = True  # in two of five groups, which must not be in one fold
    groups = np.repeat(np.arange(5), 2)
    folds, _ = folds_by_group(labels, groups, ["often", "seldom"], 42)
    assert folds.max() == 5
    assert all(labels[folds != fold].any(axis=0).all() for fold in range(1, 6))
    with pytest.raises(SplitError, match="class seldom has clips of only 1 group;"):
        folds_by_group(labels[:, [0, 1]] & (groups < 1)[:, None] | [True, False], groups, ["often", "seldom"], 42)
