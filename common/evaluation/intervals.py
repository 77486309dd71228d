"""The uncertainty of scores, from whole groups, since clips of one recording, patient or speaker are not independent.

Intervals come from the jackknife over groups (each left out in turn) with Student's t, and for shares from Wilson's form
with the effective number of clips that this implies, so that they stay inside 0 to 1 and do not vanish where everything
is right. A bootstrap of few groups gives intervals that are too narrow: in simulations with 5 groups it covered the truth
80 % of the time, and these 95 to 99 %. The fitted heads are held fixed: an interval says how the score would vary with
other test clips, not with other training clips. How it varies with seeds is printed apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from common.arrays import Array

MIN_GROUPS = 5  # with fewer, no interval is given
FEW_STRATA = 5
PERMUTATIONS = 9999
CONFIDENCE = 0.95
BATCH = 4_000_000  # random signs at once


def share_interval(
    hits: Array, groups: Array, splits: Array, strata: Array | None = None
) -> tuple[float, float] | None:
    """A 95 % interval of a mean share of hits.

    Args:
        hits: (M,) whether each prediction is right; all splits and seeds.
        groups: (M,) the group of each.
        splits: (M,) the fold of each.
        strata: (M,) the part of the clips that each belongs to, such as its class. The score is the mean over splits of
            the mean over strata of the share of hits: without strata the accuracy, with classes the balanced accuracy.

    Returns:
        Its ends; None with fewer than MIN_GROUPS groups, also in one of a few strata. (The errors of many strata average out.)
    """
    if strata is not None and _smallest_stratum(groups, strata) < MIN_GROUPS:
        return None
    sums, counts, first_cells = _by_group(hits, groups, splits, strata)
    if len(sums) < MIN_GROUPS:
        return None
    share, error = _jackknife(sums, counts, first_cells)
    clips_of_group, effective_groups = counts.sum(axis=1), _effective_groups(counts)
    # What is not varied is not known: with few groups that have a miss, the error itself is uncertain.
    right = sums.sum(axis=1)
    informative = min(int((right < clips_of_group).sum()), int((right > 0).sum()))
    t = _t_quantile(min(effective_groups - 1, _degrees_of_cells(sums, counts, first_cells)), informative)
    variance = share * (1 - share)
    clips = variance / error**2 if variance > 0 and error > 0 else effective_groups
    # Wilson (1927), with the effective number of clips.
    centre = (share + t**2 / (2 * clips)) / (1 + t**2 / clips)
    half = t / (1 + t**2 / clips) * np.sqrt(variance / clips + t**2 / (4 * clips**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def difference_interval(differences: Array, groups: Array, splits: Array) -> tuple[float, float] | None:
    """A 95 % interval of the mean difference between two heads on the same clips.

    Args:
        differences: (M,) hit of one minus hit of the other, -1 to 1.
        groups, splits: as for `share_interval`.

    Returns:
        Its ends; None with fewer than MIN_GROUPS groups.
    """
    sums, counts, first_cells = _by_group(differences, groups, splits, None)
    if len(sums) < MIN_GROUPS:
        return None
    difference, error = _jackknife(sums, counts, first_cells)
    effective_groups = _effective_groups(counts)
    names, group = np.unique(groups, return_inverse=True)
    varied = np.bincount(group, weights=np.abs(differences), minlength=len(names)) > 0
    t = _t_quantile(effective_groups - 1, int(varied.sum()))
    # If no group shows a difference, Wilson's limit of the share of groups that would.
    half = t * error if varied.any() else t**2 / (effective_groups + t**2)
    return max(-1.0, float(difference - half)), min(1.0, float(difference + half))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values corrected for their number (Holm 1979): the chance of even one false alarm stays below the level.

    None stays None and does not count.
    """
    known = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (value, place) in enumerate(known):
        highest = max(highest, min(1.0, value * (len(known) - rank)))
        corrected[place] = highest
    return corrected


def _effective_groups(counts: Array) -> float:
    """The number of groups; fewer, if some are much larger than others."""
    sizes = counts.sum(axis=1)
    return float(sizes.sum() ** 2 / np.square(sizes).sum())


def _t_quantile(degrees: float, informative: int) -> float:
    """Student's t; if only a few groups vary, with as few degrees of freedom as they leave."""
    freedom = min(degrees, informative + 1) if informative else degrees
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, max(1.0, freedom)))


def _by_group(values: Array, groups: Array, splits: Array, strata: Array | None) -> tuple[Array, Array, Array]:
    """Sums and counts (G, cells), a cell being a stratum of a fold, and the first cell of each fold."""
    names, group = np.unique(groups, return_inverse=True)
    _, fold = np.unique(splits, return_inverse=True)
    _, stratum = np.unique(np.zeros(len(values)) if strata is None else strata, return_inverse=True)
    cells, cell = np.unique(np.stack([fold, stratum]), axis=1, return_inverse=True)
    sums, counts = np.zeros((len(names), cells.shape[1])), np.zeros((len(names), cells.shape[1]))
    np.add.at(sums, (group, cell), values)
    np.add.at(counts, (group, cell), 1)
    return sums, counts, np.flatnonzero(np.diff(cells[0], prepend=-1))


def _smallest_stratum(groups: Array, strata: Array) -> float:
    """The fewest groups of a stratum; infinite if there are more than FEW_STRATA."""
    names = np.unique(strata)
    if len(names) > FEW_STRATA:
        return np.inf
    return min(len(np.unique(groups[strata == name])) for name in names)


def _degrees_of_cells(sums: Array, counts: Array, first_cells: Array) -> float:
    """Degrees of freedom of a mean over cells of different reliability (Welch 1938, Satterthwaite 1946): if most of the
    uncertainty comes from a stratum with few groups, it is known as badly as that one."""
    totals = counts.sum(axis=0)
    shares = sums.sum(axis=0) / totals
    n_groups = (counts > 0).sum(axis=0)
    cells_of_fold = np.diff([*first_cells, len(totals)])
    weights = 1 / np.repeat(cells_of_fold, cells_of_fold) / len(first_cells)
    residuals = (sums - shares * counts) / totals
    freedom = np.maximum(n_groups - 1, 1)
    variances = weights**2 * np.square(residuals).sum(axis=0) * n_groups / freedom
    total = variances.sum()
    return float(total**2 / (np.square(variances) / freedom).sum()) if total > 0 else np.inf


def _jackknife(sums: Array, counts: Array, first_cells: Array) -> tuple[float, float]:
    """A mean over folds of means over strata, and its standard error by leaving out each group in turn."""
    (mean,) = _mean_of_cells(sums.sum(axis=0)[None], counts.sum(axis=0)[None], first_cells)
    without = _mean_of_cells(sums.sum(axis=0) - sums, counts.sum(axis=0) - counts, first_cells)
    share_left = (len(sums) - 1) / len(sums)
    return float(mean), float(np.sqrt(share_left * np.square(without - without.mean()).sum()))


def _mean_of_cells(sums: Array, counts: Array, first_cells: Array) -> Array:
    """(B, cells) -> (B,); a stratum or a fold of which nothing is left does not count."""
    is_present = counts > 0.5
    shares = np.divide(sums, counts, out=np.zeros_like(sums), where=is_present)
    totals, parts = (np.add.reduceat(values, first_cells, axis=1) for values in (shares, is_present.astype(float)))
    folds = np.divide(totals, parts, out=np.full(totals.shape, np.nan), where=parts > 0)
    means: Array = np.nanmean(folds, axis=1)
    return means


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
