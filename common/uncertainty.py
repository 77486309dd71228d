"""How far a score can be trusted: intervals and tests that resample whole groups, since clips of one recording,
patient or speaker are not independent."""

from __future__ import annotations

import numpy as np
from scipy import stats

RESAMPLES = 2000
PERMUTATIONS = 9999
CONFIDENCE = 0.95
BATCH = 4_000_000  # random signs at once


def accuracy_interval(hits: np.ndarray, groups: np.ndarray, splits: np.ndarray) -> tuple[float, float] | None:
    """A 95 % bootstrap interval (percentile) of the mean over splits of the accuracy; groups are drawn, not clips.

    Args:
        hits: (M,) whether each prediction is right (or, for a difference, by how much); all splits and seeds.
        groups: (M,) the group of each.
        splits: (M,) the fold of each.

    Returns:
        Its ends, or None with fewer than two groups.
    """
    names, group = np.unique(groups, return_inverse=True)
    folds, fold = np.unique(splits, return_inverse=True)
    if len(names) < 2:
        return None
    size = (len(folds), len(names))
    sums, counts = np.zeros(size), np.zeros(size)
    np.add.at(sums, (fold, group), hits)
    np.add.at(counts, (fold, group), 1)

    def mean_accuracy(*columns: np.ndarray, axis: int = -1) -> np.ndarray:
        drawn = [column.sum(axis=axis) for column in columns]
        right, all_ = np.stack(drawn[: len(folds)]), np.stack(drawn[len(folds) :])
        # A fold of which nothing was drawn says nothing.
        shares = np.divide(right, all_, out=np.full(right.shape, np.nan), where=all_ > 0)
        return np.nanmean(shares, axis=0)

    result = stats.bootstrap(
        (*sums, *counts),
        mean_accuracy,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=100,
        method="percentile",
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def paired_p_value(differences: np.ndarray, groups: np.ndarray) -> float | None:
    """Two-sided p-value for two heads being equally good on the same clips: a permutation test that swaps them in
    whole groups, so that the sign of each group's difference turns by chance.

    Args:
        differences: (M,) hit of one head minus hit of the other, weighted as they count.
        groups: (M,).

    Returns:
        None with fewer than two groups. At least 1e-4, one in PERMUTATIONS + 1.
    """
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return None
    sums = np.bincount(group, weights=differences)
    observed, rng = abs(sums.sum()), np.random.default_rng(0)
    sums, extreme, done = sums[sums != 0], 0, 0
    while done < PERMUTATIONS:
        n = min(PERMUTATIONS - done, max(1, BATCH // max(1, len(sums))))
        signs = 2.0 * rng.integers(0, 2, (n, len(sums)), dtype=np.int8) - 1
        extreme += int((np.abs(signs @ sums) >= observed * (1 - 1e-12)).sum())
        done += n
    return (1 + extreme) / (1 + PERMUTATIONS)
