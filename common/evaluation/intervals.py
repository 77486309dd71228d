"""Intervals and tests by whole groups, because clips of a recording, patient or speaker are dependent.

Intervals come from the jackknife over groups with Student's t. For shares they take Wilson's form, with the effective
number of clips that the jackknife implies, so that they stay within 0 to 1 and keep a width where everything is right. A
bootstrap of few groups is too narrow; docs/protocols.md has the simulations. Heads are held fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import expit, logit

from common.arrays import Array

MIN_GROUPS = 5  # for an interval
FEW_STRATA = 5
FEW_GROUPS, LEAST_EVEN = 20, 0.5  # below both, a few groups decide the score, and intervals are too narrow
CONFIDENCE, LEVEL = 0.95, 0.05
BATCH = 4_000_000  # random signs at once


def share_interval(
    hits: Array, groups: Array, splits: Array, strata: Array | None = None
) -> tuple[float, float] | None:
    """The 95 % interval of the mean over splits of the mean over strata of the share of hits, all (M,).

    Strata such as classes make it the interval of the balanced accuracy; None of the accuracy. There is no interval with fewer
    than MIN_GROUPS groups, in total or in any of up to FEW_STRATA strata (errors of many strata average out), or if folds or strata
    of a few groups count as much as those of many.
    """
    names = np.unique([] if strata is None else strata)
    if len(names) <= FEW_STRATA and any(len(np.unique(groups[strata == name])) < MIN_GROUPS for name in names):
        return None
    cells = Cells.of(hits, groups, splits, strata)
    if not cells.can_tell:
        return None
    share, error = cells.jackknife()
    # If few groups have a miss, or few a hit, the standard error itself is uncertain.
    right, sizes = cells.sums.sum(axis=1), cells.counts.sum(axis=1)
    informative = min(int((right < sizes).sum()), int((right > 0).sum()))
    t = _t_quantile(min(cells.effective_groups - 1, cells.degrees_of_freedom), informative)
    variance = share * (1 - share)
    clips = variance / error**2 if variance > 0 and error > 0 else cells.effective_groups
    # Wilson (1927), with the effective number of clips.
    centre = (share + t**2 / (2 * clips)) / (1 + t**2 / clips)
    half = t / (1 + t**2 / clips) * np.sqrt(variance / clips + t**2 / (4 * clips**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def difference_interval(differences: Array, groups: Array, splits: Array) -> tuple[float, float] | None:
    """The 95 % interval of the mean of (M,) hits of a head minus those of another; None as for `share_interval`."""
    cells = Cells.of(differences, groups, splits)
    if not cells.can_tell:
        return None
    difference, error = cells.jackknife()
    varied = Cells.of(np.abs(differences), groups, splits).sums.any(axis=1)
    t = _t_quantile(cells.effective_groups - 1, int(varied.sum()))
    # If no group differs, Wilson's upper limit of the share of groups that might.
    half = t * error if varied.any() else t**2 / (cells.effective_groups + t**2)
    return max(-1.0, float(difference - half)), min(1.0, float(difference + half))


def n_permutations(n_tests: int) -> int:
    """How often heads are swapped in each of `n_tests` tests made together: the smallest p passes the correction for them."""
    return max(9999, 100 * n_tests)


def paired_p_value(differences: Array, groups: Array, n_tests: int = 1) -> float | None:
    """Two-sided p-value of a permutation test that swaps two heads in whole groups, one of `n_tests` made together; None with
    fewer than two groups. The (M,) differences are hits of a head minus hits of the other, weighted as in the score."""
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return None
    sums = np.bincount(group, weights=differences)
    observed, rng = abs(sums.sum()), np.random.default_rng(0)
    sums, extreme, done, wanted = sums[sums != 0], 0, 0, n_permutations(n_tests)
    while done < wanted:
        n = min(wanted - done, max(1, BATCH // max(1, len(sums))))
        signs = 2.0 * rng.integers(0, 2, (n, len(sums)), dtype=np.int8) - 1
        extreme += int((np.abs(signs @ sums) >= observed * (1 - 1e-12)).sum())
        done += n
    return (1 + extreme) / (1 + wanted)


def jackknife_interval(share: float, without: Array) -> tuple[float, float] | None:
    """The 95 % interval of a score in [0, 1] that is not a mean of hits, such as a mean average precision, by the (G,) scores
    without every group; None with fewer than MIN_GROUPS groups, or where one of those is undefined."""
    if len(without) < MIN_GROUPS or not np.isfinite(without).all():
        return None
    t, error, variance = _t_quantile(len(without) - 1, 0), _jackknife_error(without), share * (1 - share)
    if error < 1e-9 or variance < 1e-9:  # everything is right, or wrong: Wilson's other limit
        half_width = t**2 / (len(without) + t**2)
        return max(0.0, share - half_width), min(1.0, share + half_width)
    # The delta method: the logits themselves would be infinite if the only mistake is in one group.
    centre, half = logit(share), t * error / variance
    return float(expit(centre - half)), float(expit(centre + half))


def jackknife_difference(difference: float, without: Array) -> tuple[tuple[float, float] | None, float | None]:
    """The 95 % interval of a difference of two such scores, and the two-sided p-value of a t test; None as there."""
    if len(without) < MIN_GROUPS or not np.isfinite(without).all():
        return None, None
    degrees, error = len(without) - 1, _jackknife_error(without)
    t = _t_quantile(degrees, 0)
    # If no group differs, Wilson's upper limit of the share of groups that might.
    half = t * error if error > 1e-12 else t**2 / (len(without) + t**2)
    p_value = float(2 * stats.t.sf(abs(difference) / error, degrees)) if error > 1e-12 else 1.0
    return (max(-1.0, difference - half), min(1.0, difference + half)), p_value


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of independent values (Student's t); None with a single one."""
    if len(values) < 2:
        return None
    mean, half = np.mean(values), _t_quantile(len(values) - 1, 0) * stats.sem(values)
    return float(mean - half), float(mean + half)


def _jackknife_error(without: Array) -> float:
    """The standard error of a statistic by its values without every group."""
    return float(np.sqrt((len(without) - 1) / len(without) * np.square(without - without.mean()).sum()))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values corrected for multiple tests (Holm 1979); None stays None and does not count."""
    known = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (value, place) in enumerate(known):
        highest = max(highest, min(1.0, value * (len(known) - rank)))
        corrected[place] = highest
    return corrected


def _effective(weights: Array) -> float:
    """Kish's effective number of (N,) weights."""
    return float(weights.sum() ** 2 / np.square(weights).sum())


def _t_quantile(degrees: float, informative: int) -> float:
    """Student's t, with fewer degrees of freedom if only a few groups vary."""
    freedom = min(degrees, informative + 1) if informative else degrees
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, max(1.0, freedom)))


@dataclass(frozen=True)
class Cells:
    """Values by group and cell, a cell being a stratum of a fold."""

    # sums, counts: (G, cells)
    sums: Array
    counts: Array
    starts: Array  # the first cell of every fold

    @classmethod
    def of(cls, values: Array, groups: Array, splits: Array, strata: Array | None = None) -> Cells:
        names, group = np.unique(groups, return_inverse=True)
        _, fold = np.unique(splits, return_inverse=True)
        _, stratum = np.unique(np.zeros(len(values)) if strata is None else strata, return_inverse=True)
        cells, cell = np.unique(np.stack([fold, stratum]), axis=1, return_inverse=True)
        sums, counts = np.zeros((2, len(names), cells.shape[1]))
        np.add.at(sums, (group, cell), values)
        np.add.at(counts, (group, cell), 1)
        return cls(sums, counts, np.flatnonzero(np.diff(cells[0], prepend=-1)))

    @property
    def effective_groups(self) -> float:
        """Kish's effective number of groups, lower if some are much larger than others."""
        return _effective(self.counts.sum(axis=1))

    @property
    def can_tell(self) -> bool:
        """Whether there are enough groups, and the score rests on them about as evenly as their sizes are even."""
        cells_of_fold = np.diff([*self.starts, self.counts.shape[1]])
        weights = np.repeat(1 / cells_of_fold, cells_of_fold) / len(self.starts)
        effective = _effective((self.counts / self.counts.sum(axis=0) * weights).sum(axis=1))
        return len(self.sums) >= MIN_GROUPS and effective >= min(FEW_GROUPS, LEAST_EVEN * self.effective_groups)

    @property
    def degrees_of_freedom(self) -> float:
        """Of a mean over cells of different variance (Welch 1938, Satterthwaite 1946)."""
        totals = self.counts.sum(axis=0)
        shares = self.sums.sum(axis=0) / totals
        n_groups = (self.counts > 0).sum(axis=0)
        cells_of_fold = np.diff([*self.starts, len(totals)])
        weights = 1 / np.repeat(cells_of_fold, cells_of_fold) / len(self.starts)
        residuals = (self.sums - shares * self.counts) / totals
        freedom = np.maximum(n_groups - 1, 1)
        variances = weights**2 * np.square(residuals).sum(axis=0) * n_groups / freedom
        total = variances.sum()
        return float(total**2 / (np.square(variances) / freedom).sum()) if total > 0 else np.inf

    def jackknife(self) -> tuple[float, float]:
        """The mean over folds of means over strata, and its standard error by leaving out every group in turn."""
        sums, counts = self.sums.sum(axis=0), self.counts.sum(axis=0)
        (mean,) = self.means(sums[None], counts[None])
        without = self.means(sums - self.sums, counts - self.counts)
        return float(mean), _jackknife_error(without)

    def means(self, sums: Array, counts: Array) -> Array:
        """(B, cells) -> (B,); empty strata and folds do not count."""
        is_present = counts > 0.5
        shares = np.divide(sums, counts, out=np.zeros_like(sums), where=is_present)
        totals, parts = (np.add.reduceat(values, self.starts, axis=1) for values in (shares, is_present.astype(float)))
        folds = np.divide(totals, parts, out=np.full(totals.shape, np.nan), where=parts > 0)
        means: Array = np.nanmean(folds, axis=1)
        return means
