"""Intervals and tests keep their promises: coverage of the truth, and the rate of false alarms."""

from __future__ import annotations

import numpy as np
import pytest

from common.evaluation.intervals import MIN_GROUPS, difference_interval, paired_p_value, share_interval


def test_intervals_are_of_groups_not_clips() -> None:
    rng = np.random.default_rng(0)
    hits = np.repeat((rng.uniform(size=100) < 0.6).astype(float), 10)  # ten clips of a group fare alike
    splits = np.zeros(1000, dtype=int)
    by_group = share_interval(hits, np.repeat(np.arange(100), 10), splits)
    by_clip = share_interval(hits, np.arange(1000), splits)
    width = 2 * 1.96 * np.sqrt(0.6 * 0.4 / 100)
    assert by_group is not None and by_clip is not None
    assert by_group[1] - by_group[0] == pytest.approx(width, rel=0.1)
    assert by_clip[1] - by_clip[0] == pytest.approx(width / np.sqrt(10), rel=0.1)
    assert share_interval(hits, np.arange(1000) % (MIN_GROUPS - 1), splits) is None


def test_the_mean_of_folds_and_of_strata_of_different_sizes() -> None:
    hits, clips, where = np.r_[np.ones(900), np.zeros(100)], np.arange(1000), np.r_[np.zeros(900), np.ones(100)]
    for splits, strata in ((where, None), (np.zeros(1000), where)):
        low, high = share_interval(hits, clips, splits, strata) or (0, 1)
        assert 0.45 < low < 0.5 < high < 0.55


def test_where_a_few_groups_decide_there_is_no_interval() -> None:
    """With two folds of 20 and 2 groups, or 5 of 10 classes of a single group, intervals held the truth 81 to 95 times in 100."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(22), 10)
    hits = (rng.random(220) < 0.8).astype(float)
    assert share_interval(hits, groups, groups < 20) is None
    assert difference_interval(hits - 0.5, groups, groups < 20) is None
    assert share_interval(hits, groups, groups < 11) is not None
    classes = np.minimum(groups, 5)  # five of one group each, one of seventeen
    assert share_interval(hits, groups, np.zeros(220), classes) is None
    few = np.repeat(np.arange(6), 10)
    assert share_interval(hits[:60], few, np.minimum(few, 4)) is not None  # five folds of a group or two


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_interval_does_not_vanish_where_everything_is_right_or_wrong(share: float) -> None:
    low, high = share_interval(np.full(400, share), np.arange(400) // 20, np.zeros(400)) or (0, 0)
    assert 0 <= low < high <= 1
    assert high - low == pytest.approx(2.093**2 / (20 + 2.093**2), rel=0.01)  # of 20 groups
    low, high = difference_interval(np.zeros(400), np.arange(400) // 20, np.zeros(400)) or (0, 0)
    assert -low == high > 0.1


def test_repeating_every_prediction_adds_nothing() -> None:
    """As seeds that agree do."""
    rng = np.random.default_rng(1)
    hits, groups = (rng.uniform(size=300) < 0.7).astype(float), np.arange(300) // 10
    once = share_interval(hits, groups, np.zeros(300))
    thrice = share_interval(np.tile(hits, 3), np.tile(groups, 3), np.zeros(900))
    assert thrice == pytest.approx(once)


def made_up_hits(
    rng: np.random.Generator, groups: int, share: float, correlation: float, is_uneven: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Hits of clips in groups whose shares are beta-distributed, and the groups."""
    sizes = np.maximum(1, np.round(rng.lognormal(2.5, 1.0 if is_uneven else 0.0, groups))).astype(int)
    strength = 1 / correlation - 1
    shares = rng.beta(share * strength, (1 - share) * strength, groups)
    group = np.repeat(np.arange(groups), sizes)
    return (rng.uniform(size=len(group)) < shares[group]).astype(float), group


@pytest.mark.slow
@pytest.mark.parametrize("is_uneven", [False, True])
@pytest.mark.parametrize("correlation", [0.05, 0.3])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("groups", [5, 8, 20, 50])
def test_intervals_cover_the_truth(groups: int, share: float, correlation: float, is_uneven: bool) -> None:
    """Of 95 % nominally. Where one group in a hundred is very different, a sample may not hold one: then 88 %."""
    rng, covered, tries = np.random.default_rng(0), 0, 1000
    for _ in range(tries):
        hits, group = made_up_hits(rng, groups, share, correlation, is_uneven)
        low, high = share_interval(hits, group, np.zeros(len(hits))) or (1, 0)
        covered += low <= share <= high
    assert covered / tries >= (0.92 if share < 0.9 or correlation < 0.1 else 0.88)


def test_p_values_hold_under_the_null() -> None:
    rng = np.random.default_rng(0)
    p_values = [paired_p_value(rng.integers(-1, 2, 60).astype(float), np.arange(60) // 2) for _ in range(60)]
    assert 0.3 < np.mean(p_values) < 0.75
    assert np.mean(np.array(p_values) < 0.05) < 0.15
    assert paired_p_value(np.ones(60), np.arange(60)) < 0.001
    assert paired_p_value(np.ones(60), np.zeros(60)) is None


@pytest.mark.slow
@pytest.mark.parametrize("groups", [(4, 40), (5, 40), (8, 40), (40, 40), (3,) * 6, (8,) * 10])
def test_intervals_of_strata_cover_the_truth(groups: tuple[int, ...]) -> None:
    """As of a balanced accuracy; no interval where one of few strata has very few groups, or where a few groups decide the score."""
    rng, covered, intervals, tries = np.random.default_rng(0), 0, 0, 500
    for _ in range(tries):
        parts = [made_up_hits(rng, count, 0.7, 0.3, True) for count in groups]
        firsts = np.cumsum([0, *groups[:-1]])
        hits = np.concatenate([hits for hits, _ in parts])
        group = np.concatenate([clips + first for (_, clips), first in zip(parts, firsts, strict=True)])
        stratum = np.repeat(range(len(groups)), [len(hits) for hits, _ in parts])
        ends = share_interval(hits, group, np.zeros(len(hits)), stratum)
        intervals += ends is not None
        covered += ends is not None and ends[0] <= 0.7 <= ends[1]
    least, most = {(4, 40): (0, 0), (5, 40): (200, 400), (8, 40): (400, 490)}.get(groups, (tries, tries))
    assert least <= intervals <= most
    assert covered >= 0.88 * intervals


@pytest.mark.slow
@pytest.mark.parametrize("groups", [5, 8, 20, 50])
def test_intervals_of_differences_cover_the_truth(groups: int) -> None:
    rng, covered, tries = np.random.default_rng(0), 0, 1000
    for _ in range(tries):
        first, group = made_up_hits(rng, groups, 0.7, 0.2, True)
        second = np.where(rng.uniform(size=len(first)) < 0.3, rng.uniform(size=len(first)) < 0.7, first)
        low, high = difference_interval(second - first, group, np.zeros(len(first))) or (1, 0)
        covered += low <= 0 <= high
    assert covered / tries >= 0.93
