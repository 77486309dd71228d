"""Scores of predictions with their intervals, as the record keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score

from common.arrays import Array
from common.evaluation.intervals import difference_interval, paired_p_value, share_interval
from common.evaluation.outcomes import Outcome
from common.evaluation.rankings import Rankings, ranking_scores
from common.evaluation.record import ComparisonRecord, FitRecord, HeadRecord, Interval, PerClass, Units
from common.features import FeatureSet

MoreScores = Callable[[Array, Array, Sequence[str]], dict[str, float]]
TOP5_CLASSES = 30  # the fewest classes for which top-5 accuracy is informative


def scores(labels: Array, predictions: Array, n_classes: int, logits: Array | None = None) -> dict[str, float]:
    """Scores in [0, 1] of predictions (N,).

    Returns:
        ``accuracy``; ``balanced_accuracy``, the mean recall of the classes that occur; ``macro_f1``, the mean over all
        classes, with 0 for those that never occur or are never predicted; with logits (N, C) of TOP5_CLASSES or more
        classes, ``top5_accuracy``.
    """
    _, recall, f1, _ = precision_recall_fscore_support(labels, predictions, labels=range(n_classes), zero_division=0)
    scored = {
        "accuracy": float(accuracy_score(labels, predictions)),
        "balanced_accuracy": float(recall[np.unique(labels)].mean()),
        "macro_f1": float(f1.mean()),
    }
    if logits is not None and n_classes >= TOP5_CLASSES:
        scored["top5_accuracy"] = float(top_k_accuracy_score(labels, logits, k=5, labels=range(n_classes)))
    return scored


def per_class(labels: Array, predictions: Array, n_classes: int, n_seeds: int = 1) -> PerClass:
    """Scores of every class over all seeds; 0 where undefined."""
    columns = precision_recall_fscore_support(labels, predictions, labels=range(n_classes), zero_division=0)
    precision, recall, f1, clips = (column.tolist() for column in columns)
    return PerClass(precision=precision, recall=recall, f1=f1, clips=[count / n_seeds for count in clips])


def score_head(outcomes: Sequence[Outcome], features: FeatureSet, more_scores: MoreScores | None = None) -> HeadRecord:
    """The scores of a head over all splits and seeds; `more_scores` are the task's."""
    labels, class_names = features.labels.numpy(), features.class_names
    fits = [_score_fit(outcome, labels, class_names, more_scores) for outcome in outcomes]
    judged, seeds = judge(outcomes, features), {fit.seed for fit in fits}
    mean = {name: float(np.mean([fit.scores[name] for fit in fits])) for name in fits[0].scores}
    record = partial(
        HeadRecord,
        mean=mean,
        std_over_folds=_std_between(fits, "split"),
        std_over_seeds=_std_between(fits, "seed"),
        interval=judged.interval(),
        splits=fits,
    )
    if isinstance(judged, Rankings):
        return record(per_class=judged.by_class(len(seeds)))
    truth = labels[np.concatenate([outcome.rows for outcome in outcomes])]
    predictions = np.concatenate([outcome.predictions for outcome in outcomes])
    # Of scores that are means of the accuracies on strata of the clips.
    strata = {"balanced_accuracy": truth, "icbhi_score": (np.array(class_names) == "normal")[truth]}
    return record(
        more_intervals={
            name: judged.interval(stratum) for name, stratum in strata.items() if np.isfinite(mean.get(name, np.nan))
        },
        per_class=per_class(truth, predictions, len(class_names), len(seeds)),
        confusion=confusion_matrix(truth, predictions, labels=range(len(class_names))).tolist(),
    )


def _score_fit(
    outcome: Outcome, labels: Array, class_names: Sequence[str], more_scores: MoreScores | None
) -> FitRecord:
    truth = labels[outcome.rows]
    if truth.ndim == 2:
        assert outcome.logits is not None
        scored = ranking_scores(truth, outcome.logits)
    else:
        scored = scores(truth, outcome.predictions, len(class_names), outcome.logits)
    if more_scores is not None:
        scored |= more_scores(truth, outcome.predictions, class_names)
    identity = {"split": outcome.split, "seed": outcome.seed, "n_train": outcome.n_train, "n_test": len(truth)}
    return FitRecord.model_validate({**identity, **outcome.facts, **scored})


def _std_between(fits: Sequence[FitRecord], key: str) -> dict[str, float] | None:
    """Standard deviation (of a sample) of every score between the means of the fits of a split, or of a seed; None with one."""
    parts = [list(part) for _, part in groupby(sorted(fits, key=attrgetter(key)), attrgetter(key))]
    if len(parts) < 2:
        return None
    return {
        name: float(np.std([np.mean([fit.scores[name] for fit in part]) for part in parts], ddof=1))
        for name in fits[0].scores
    }


@dataclass(frozen=True, eq=False)
class Hits:
    """What intervals and tests of accuracy need."""

    hits: Array  # (M,) float, 1 for a right prediction; all splits and seeds
    groups: Array  # (M,) groups, or rows if groups are unknown
    splits: Array  # (M,) names of the splits
    units: Units  # what `groups` holds

    @property
    def n_groups(self) -> int:
        return len(np.unique(self.groups))

    @property
    def score(self) -> float:
        """The mean over splits of the accuracy."""
        return float(np.mean([self.hits[self.splits == split].mean() for split in np.unique(self.splits)]))

    def interval(self, strata: Array | None = None) -> Interval | None:
        """The 95 % interval of the accuracy, or of the mean accuracy of (M,) strata."""
        return share_interval(self.hits, self.groups, self.splits, strata)

    def minus(self, other: Hits, n_tests: int = 1) -> ComparisonRecord:
        """Its accuracy minus that of other hits of the same clips, in the same order; one of `n_tests` made together."""
        difference = self.hits - other.hits
        _, fold, sizes = np.unique(self.splits, return_inverse=True, return_counts=True)
        weighted = difference / sizes[fold] / len(sizes)  # folds of equal weight
        return ComparisonRecord(
            difference=self.score - other.score,
            interval=difference_interval(difference, self.groups, self.splits),
            p_value=paired_p_value(weighted, self.groups, n_tests),
            units=self.units,
            n_units=self.n_groups,
        )


def judge(outcomes: Sequence[Outcome], features: FeatureSet) -> Hits | Rankings:
    """What is right about the predictions of all splits and seeds, in order."""
    rows = np.concatenate([outcome.rows for outcome in outcomes])
    fits = np.repeat(np.arange(len(outcomes)), [len(outcome.rows) for outcome in outcomes])
    labels = features.labels.numpy()[rows]
    groups = rows if features.groups is None else np.array(features.groups)[rows]
    units: Units = "clips" if features.groups is None else "groups"
    if features.is_multilabel:
        ranks = np.concatenate([outcome.logits for outcome in outcomes if outcome.logits is not None])
        return Rankings(labels, ranks, fits, groups, units)
    hits = np.concatenate([outcome.predictions for outcome in outcomes]) == labels
    return Hits(hits.astype(float), groups, np.array([outcome.split for outcome in outcomes])[fits], units)


def compare_heads(first: Sequence[Outcome], second: Sequence[Outcome], features: FeatureSet) -> ComparisonRecord:
    """The difference in the main score between two heads on the same test clips: second minus first."""
    subtracted, other = judge(first, features), judge(second, features)
    return other.minus(subtracted)  # type: ignore[arg-type]  # both are of one kind
