"""Properties that hold for whatever is generated: tiles, pooling in parts, shards, splits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from common.arrays import Array
from common.datasets import Prepared
from common.encoder.tiles import FRAMES_PER_COLUMN, MAX_TILE_FRAMES, POOLS, Moments, batch_moments, plan_tiles
from common.evaluation.splits import hold_out_groups, make_splits, random_split, with_validation
from common.features import FeatureSet

# The same examples at every run, and no more than a second of each test.
few = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


# Tiles


@few
@given(frames=st.integers(FRAMES_PER_COLUMN, 20_000), halo=st.sampled_from([128, 192]), steps=st.sampled_from([8, 16]))
def test_cores_cover_a_clip_once_within_halos(frames: int, halo: int, steps: int) -> None:
    tiles = plan_tiles(7, frames, halo)
    assert [tile.core_start for tile in tiles] == [0, *(tile.core_end for tile in tiles[:-1])]
    assert tiles[-1].core_end == frames
    for tile in tiles:
        assert tile.clip == 7
        assert tile.core_start < tile.core_end
        # The halo is as wide as asked for, or ends where the clip does.
        assert tile.first == max(0, tile.core_start - halo) or len(tiles) == 1
        assert tile.last == min(frames, tile.core_end + halo)
        assert 0 <= tile.first <= tile.core_start
        assert tile.core_end <= tile.last <= frames
        assert tile.frames <= tile.padded_frames(steps) <= MAX_TILE_FRAMES
        # Poolings fall where those of the whole clip fall.
        assert tile.first % FRAMES_PER_COLUMN == tile.core_start % FRAMES_PER_COLUMN == 0


@few
@given(frames=st.integers(FRAMES_PER_COLUMN, 20_000), halo=st.sampled_from([128, 192]), level=st.integers(0, 5))
def test_the_columns_of_all_cores_are_those_of_the_clip(frames: int, halo: int, level: int) -> None:
    found = []
    for tile in plan_tiles(0, frames, halo):
        own = tile.columns(level)
        assert 0 <= own.start < own.stop <= tile.frames >> level
        found += [own.start + (tile.first >> level), own.stop + (tile.first >> level)]
    edges = found[1:-1]
    assert (found[0], found[-1]) == (0, frames >> level)
    assert edges[::2] == edges[1::2]  # each core begins where the one before ends


# Pooling


@st.composite
def cuts(draw: st.DrawFn) -> tuple[torch.Tensor, list[slice]]:
    """Activations of one clip, and cuts that divide it in time."""
    time = draw(st.integers(1, 12))
    shape = (1, draw(st.integers(1, 3)), time, draw(st.integers(1, 4)))
    offset, scale = draw(st.sampled_from([0.0, 100.0])), draw(st.sampled_from([1e-3, 1.0]))
    values = offset + scale * np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape)
    inner = draw(st.sets(st.integers(1, time - 1))) if time > 1 else set()
    edges = [0, *sorted(inner), time]
    return torch.from_numpy(values).float(), [slice(*pair) for pair in itertools.pairwise(edges)]


@few
@given(cuts())
def test_merged_parts_equal_the_whole(cut: tuple[torch.Tensor, list[slice]]) -> None:
    values, parts = cut
    pieces = Moments.joined([batch_moments(values, [part], POOLS) for part in parts])
    exact = values[0].double().flatten(1)
    assert sum(pieces.counts) == exact.shape[1]
    items = list(range(len(parts)))
    # float32 sums of each part: their rounding is relative to the values, not to their deviation.
    within = {"rtol": 1e-5, "atol": 1e-6 * float(exact.abs().max())}
    torch.testing.assert_close(pieces.pooled(items, "mean").double(), exact.mean(dim=1), **within)
    torch.testing.assert_close(pieces.pooled(items, "std").double(), exact.std(dim=1, correction=0), **within)
    assert torch.equal(pieces.pooled(items, "max").double(), exact.amax(dim=1))
    # The order of the parts does not matter.
    again = pieces.pooled(items[::-1], "std")
    torch.testing.assert_close(again, pieces.pooled(items, "std"), rtol=1e-6, atol=0)


@few
@given(cuts(), st.integers(1, 5))
def test_the_items_of_a_batch_are_pooled_as_each_alone(cut: tuple[torch.Tensor, list[slice]], padding: int) -> None:
    values, parts = cut
    padded = torch.nn.functional.pad(values, (0, 0, 0, padding), value=1e4)
    together = Moments.joined([batch_moments(padded.expand(len(parts), -1, -1, -1), parts, POOLS)])
    for item, part in enumerate(parts):
        alone = Moments.joined([batch_moments(values, [part], POOLS)])
        assert together.counts[item] == alone.counts[0]
        within = {"rtol": 1e-5, "atol": 1e-6 * float(values.abs().max())}
        for pool in POOLS:
            torch.testing.assert_close(together.pooled([item], pool), alone.pooled([0], pool), **within)


# Splits


@dataclass(frozen=True)
class Divided:
    """Features with whatever division they have, and a seed."""

    features: FeatureSet
    seed: int


@st.composite
def divided(
    draw: st.DrawFn, kinds: Sequence[str] = ("folds", "splits", "none"), has_groups: bool | None = None
) -> Divided:
    """2 to 4 classes, 5 to 9 clips of each per fold or side; with or without groups of up to three clips of a class."""
    kind, n_classes = draw(st.sampled_from(kinds)), draw(st.integers(2, 4))
    n_parts = draw(st.integers(2, 4)) if kind == "folds" else 3
    with_groups = draw(st.booleans()) if has_groups is None else has_groups
    labels, parts, groups = [], [], []
    for part in range(n_parts):
        for label in range(n_classes):
            size = draw(st.integers(1, 3))
            for number in range(draw(st.integers(5, 9))):
                labels.append(label)
                parts.append(part)
                groups.append(f"{part} {label} {number // size}")
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(len(labels))
    features = FeatureSet(
        torch.from_numpy(order)[:, None].float(),
        torch.tensor(labels)[order],
        [f"class {label}" for label in range(n_classes)],
        [f"clip {row}" for row in order],
        folds=torch.tensor(parts)[order] + 1 if kind == "folds" else None,
        splits=[("train", "valid", "test")[parts[row]] for row in order] if kind == "splits" else None,
        groups=[groups[row] for row in order] if with_groups else None,
    )
    return Divided(features, draw(st.integers(0, 2**16)))


def classes_of(features: FeatureSet, rows: Array) -> set[int]:
    """The labels that occur in these rows."""
    return set(features.labels[torch.from_numpy(rows)].tolist())


@few
@given(divided())
def test_the_sides_of_every_split_are_disjoint_and_every_class_trains(drawn: Divided) -> None:
    features, seed = drawn.features, drawn.seed
    is_divided = features.folds is not None or features.splits is not None
    splits = make_splits(Prepared(features))[0] if is_divided else [random_split(features, 0.2, seed)]
    for split in splits:
        validated, words = with_validation(features, split, seed)
        train, valid, test = (set(rows.tolist()) for rows in (validated.train, validated.valid, validated.test))
        assert not train & valid
        assert not train & test
        assert not valid & test
        assert train | valid | test == set(range(len(features)))
        assert test == set(split.test.tolist())
        assert validated.learnable.tolist() == split.learnable.tolist()
        assert valid, words  # these sets can spare some
        assert classes_of(features, validated.train) == classes_of(features, np.arange(len(features)))
        if features.groups is not None and "whole groups" in words:
            groups = np.array(features.groups)
            assert not set(groups[validated.train]) & set(groups[validated.valid])
    if features.folds is not None:  # every row is tested once
        assert sorted(np.concatenate([split.test for split in splits]).tolist()) == list(range(len(features)))


@few
@given(divided(has_groups=True), st.floats(0.1, 0.5))
def test_held_out_groups_are_whole(drawn: Divided, share: float) -> None:
    features = drawn.features
    rows = np.flatnonzero(np.arange(len(features)) % 4 > 0)
    try:
        held_out = hold_out_groups(features, rows, share, drawn.seed)
    except ValueError:  # a class would not remain
        reject()
    kept, groups = np.setdiff1d(rows, held_out), np.array(features.groups)
    assert set(held_out) <= set(rows)
    assert len(held_out)
    assert not set(groups[held_out]) & set(groups[kept])
    assert classes_of(features, kept) == classes_of(features, np.arange(len(features)))


def clips_of(features: FeatureSet, rows: Array) -> set[str]:
    """The names of the clips in these rows."""
    return {features.clip_ids[row] for row in rows}


@few
@given(divided(("folds", "splits")))
def test_the_order_of_rows_changes_no_side(drawn: Divided) -> None:
    """Official divisions, whole groups and whole folds do not depend on the order of rows. (Random clips do.)"""
    features, seed = drawn.features, drawn.seed
    permuted = features.subset(np.random.default_rng(seed).permutation(len(features)))
    assert permuted.class_names == features.class_names
    before, now = (make_splits(Prepared(rows))[0] for rows in (features, permuted))
    for one, other in zip(before, now, strict=True):
        one, words = with_validation(features, one, seed)
        other, same_words = with_validation(permuted, other, seed)
        assert words == same_words
        assert clips_of(features, one.test) == clips_of(permuted, other.test)
        assert clips_of(features, one.learnable) == clips_of(permuted, other.learnable)
        if words != "20% of the training clips":
            assert clips_of(features, one.valid) == clips_of(permuted, other.valid)


@few
@given(divided(("none",)), st.floats(0.1, 0.5))
def test_a_random_split_has_its_share_of_every_class(drawn: Divided, share: float) -> None:
    features = drawn.features
    split = random_split(features, share, drawn.seed)
    assert not set(split.train) & set(split.test)
    assert sorted([*split.train, *split.test]) == list(range(len(features)))
    for label in range(len(features.class_names)):
        own = np.flatnonzero((features.labels == label).numpy())
        tested = np.isin(own, split.test).sum()
        assert abs(tested - share * len(own)) <= 1
    again = random_split(features, share, drawn.seed)
    assert np.array_equal(split.test, again.test)
