"""The uncertainty of scores: intervals and tests that resample whole groups, since clips of one recording, patient or
speaker are not independent."""

from __future__ import annotations

import numpy as np
from scipy import stats

from common.arrays import Array

RESAMPLES = 2000
PERMUTATIONS = 9999
CONFIDENCE = 0.95
BATCH = 4_000_000  # random signs at once


def hits_interval(hits: Array, groups: Array, splits: Array, strata: Array | None = None) -> tuple[float, float] | None:
    """A 95 % bootstrap interval (percentile) of a mean share of hits; groups are resampled, not clips.

    Args:
        hits: (M,) whether each prediction is right (or, for a difference, by how much); all splits and seeds.
        groups: (M,) the group of each.
        splits: (M,) the fold of each.
        strata: (M,) the part of the clips that each belongs to, such as its class. The score is the mean over splits of
            the mean over strata of the share of hits: without strata the accuracy, with classes the balanced accuracy.

    Returns:
        Its ends, or None with fewer than two groups.
    """
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return None
    _, fold = np.unique(splits, return_inverse=True)
    _, stratum = np.unique(np.zeros(len(hits)) if strata is None else strata, return_inverse=True)
    cells, cell = np.unique(np.stack([fold, stratum]), axis=1, return_inverse=True)
    sums, counts = np.zeros((len(names), cells.shape[1])), np.zeros((len(names), cells.shape[1]))
    np.add.at(sums, (group, cell), hits)
    np.add.at(counts, (group, cell), 1)
    first_cells = np.flatnonzero(np.diff(cells[0], prepend=-1))

    def score(drawn: Array, axis: int = -1) -> Array:
        del axis  # the last
        flat = drawn.reshape(-1, len(names)).astype(np.int64)
        places = flat + len(names) * np.arange(len(flat))[:, None]
        times = np.bincount(places.ravel(), minlength=flat.size).reshape(flat.shape)
        right, all_ = times @ sums, times @ counts
        # A stratum of which nothing was drawn is left out.
        said = all_ > 0
        shares = np.divide(right, all_, out=np.zeros_like(right), where=said)
        totals, parts = (np.add.reduceat(each, first_cells, axis=1) for each in (shares, said))
        folds = np.divide(totals, parts, out=np.full(totals.shape, np.nan), where=parts > 0)
        means: Array = np.nanmean(folds, axis=1).reshape(drawn.shape[:-1])
        return means

    result = stats.bootstrap(
        (np.arange(len(names)),),
        score,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=100,
        method="percentile",
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def paired_p_value(differences: Array, groups: Array) -> float | None:
    """Two-sided p-value for two heads being equally good on the same clips: a permutation test that swaps them in
    whole groups, so that the sign of each group's difference is random.

    Args:
        differences: (M,) hit of one head minus hit of the other, weighted as in the score.
        groups: (M,).

    Returns:
        None with fewer than two groups. The smallest possible value is 1e-4, one in PERMUTATIONS + 1.
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
