"""Several labels a clip: heads rank the clips for every class, and are scored by their rankings.

Intervals and tests leave out every group in turn (jackknife) and take Student's t. Intervals of a score are symmetric on the
logit scale, so that they stay within 0 to 1; docs/protocols.md has the simulations. Average precision with few positives is
too high, so a score is compared with scores on test sets of the same size.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import norm
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score, roc_auc_score

from common.arrays import Array
from common.average_precision import average_precisions, without_each_group
from common.evaluation.intervals import jackknife_difference, jackknife_interval
from common.evaluation.record import ComparisonRecord, Interval, RankedClasses, Units

MOST_GROUPS = 1000  # that are left out one by one; more are joined at random


def ranking_scores(labels: Array, ranks: Array) -> dict[str, float]:
    """Scores in [0, 1], but for `d_prime`, of the ranks (M, C) of bool labels (M, C).

    Returns:
        ``macro_map``, the mean over classes of the average precision; ``micro_map``, the average precision of all pairs of
        clip and class; ``macro_auc``, the mean over classes of the area under the ROC curve; ``d_prime``, the distance of
        two normal distributions with that area, as AudioSet's benchmarks give it, or NaN where it would be infinite;
        ``lwlrap``, the label-weighted label-ranking average precision of DCASE 2019. Classes without positives are left out
        of the means, and of the area also those without negatives.
    """
    auc = float(np.nanmean(class_aucs(labels, ranks)))
    sizes = labels.sum(axis=1)
    return {
        "macro_map": float(np.nanmean(average_precisions(labels, ranks))),
        "micro_map": float(average_precision_score(labels.ravel(), ranks.ravel())),
        "macro_auc": auc,
        "d_prime": float(np.sqrt(2) * norm.ppf(auc)) if 0 < auc < 1 else float("nan"),
        "lwlrap": float(
            label_ranking_average_precision_score(labels[sizes > 0], ranks[sizes > 0], sample_weight=sizes[sizes > 0])
        ),
    }


def class_aucs(labels: Array, ranks: Array) -> Array:
    """(C,) the area under the ROC curve of every class; NaN without positives or without negatives."""
    is_defined = labels.any(axis=0) & ~labels.all(axis=0)
    aucs = np.full(labels.shape[1], np.nan)
    if is_defined.any():
        aucs[is_defined] = roc_auc_score(labels[:, is_defined], ranks[:, is_defined], average=None)
    return aucs


@dataclass(frozen=True, eq=False)
class Rankings:
    """What intervals and tests of mean average precision need."""

    labels: Array  # (M, C) bool; all splits and seeds
    ranks: Array  # (M, C), higher for a more probable label
    fits: Array  # (M,) int, which fit a row is of: only clips of one fit are ranked together
    groups: Array  # (M,) names of groups, or row numbers if groups are unknown
    units: Units  # what `groups` holds

    @property
    def n_groups(self) -> int:
        return len(np.unique(self.groups))

    @property
    def by_fit(self) -> list[tuple[Array, Array]]:
        return [(self.labels[self.fits == fit], self.ranks[self.fits == fit]) for fit in np.unique(self.fits)]

    @cached_property
    def score(self) -> float:
        """The mean over fits of the mean average precision."""
        return float(np.mean([np.nanmean(average_precisions(*part)) for part in self.by_fit]))

    @cached_property
    def blocks(self) -> Array:
        """(M,) the number of each row's group, or of its block of groups if there are more than MOST_GROUPS."""
        names, group = np.unique(self.groups, return_inverse=True)
        block_of = np.random.default_rng(0).permutation(len(names)) % MOST_GROUPS
        blocks: Array = block_of[group] if len(names) > MOST_GROUPS else group
        return blocks

    @cached_property
    def without_each(self) -> Array:
        """(G,) `score` without every block."""
        n_blocks, means = int(self.blocks.max()) + 1, []
        for fit, part in zip(np.unique(self.fits), self.by_fit, strict=True):
            left = without_each_group(*part, self.blocks[self.fits == fit], n_blocks)
            means.append(_means(list(left.T)))
        return np.array(_means(means))  # a fit is left out if all its labels are of the block

    def interval(self) -> Interval | None:
        """The 95 % interval of `score`; None with too few groups."""
        return jackknife_interval(self.score, self.without_each)

    def minus(self, other: Rankings, n_tests: int = 1) -> ComparisonRecord:
        """Its score minus that of other rankings of the same clips, in the same order, by a t test, however many are made."""
        difference = self.score - other.score
        interval, p_value = jackknife_difference(difference, self.without_each - other.without_each)
        return ComparisonRecord(
            difference=difference, interval=interval, p_value=p_value, units=self.units, n_units=self.n_groups
        )

    def by_class(self, n_seeds: int) -> RankedClasses:
        """Scores of every class: means over the fits where they are defined."""
        parts = self.by_fit
        return RankedClasses(
            average_precision=_means([average_precisions(*part) for part in parts]),
            auc=_means([class_aucs(*part) for part in parts]),
            clips=(self.labels.sum(axis=0) / n_seeds).tolist(),
        )


def _means(rows: Sequence[Array] | Sequence[list[float]]) -> list[float]:
    """(K, C) -> C means over the rows that have a value; NaN where none has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where none has
        means: list[float] = np.nanmean(np.array(rows), axis=0).tolist()
    return means
