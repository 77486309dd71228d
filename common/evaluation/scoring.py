"""Outcomes -> scores with intervals, as the record keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TypeVar

import numpy as np

from common.arrays import Array
from common.evaluation.metrics import STRATA, confusion_matrix, per_class, scores
from common.evaluation.outcomes import Outcome
from common.evaluation.record import ComparisonRecord, FitRecord, HeadRecord, PerClass
from common.evaluation.uncertainty import difference_interval, paired_p_value, share_interval
from common.features import FeatureSet

Key = TypeVar("Key", str, int)
MoreScores = Callable[[Array, Array, Sequence[str]], dict[str, float]]


def score_head(outcomes: Sequence[Outcome], features: FeatureSet, more_scores: MoreScores | None = None) -> HeadRecord:
    """The scores of one head over all splits and seeds.

    Args:
        more_scores: (labels, predictions, class names) -> scores in addition to those of `common.evaluation.metrics.scores`.
    """
    labels, names_of, n_classes = features.labels.numpy(), features.class_names, len(features.class_names)
    fits = [_score_fit(outcome, labels, names_of, more_scores) for outcome in outcomes]
    truth = labels[np.concatenate([outcome.rows for outcome in outcomes])]
    predictions = np.concatenate([outcome.predictions for outcome in outcomes])
    hits = _GroupedHits.of(outcomes, features)
    names = list(fits[0].scores)
    means = {name: float(np.mean([fit.scores[name] for fit in fits])) for name in names}
    by_split, by_seed = [fit.split for fit in fits], [fit.seed for fit in fits]
    classes, n_seeds = per_class(truth, predictions, n_classes), len(set(by_seed))
    return HeadRecord(
        mean=means,
        std_over_folds=_std_between(fits, by_split, names),
        std_over_seeds=_std_between(fits, by_seed, names),
        interval=share_interval(hits.hits, hits.groups, hits.splits),
        more_intervals={
            name: share_interval(hits.hits, hits.groups, hits.splits, strata(truth, names_of))
            for name, strata in STRATA.items()
            if np.isfinite(means.get(name, np.nan))
        },
        per_class=PerClass(**{**classes, "clips": [clips / n_seeds for clips in classes["clips"]]}),
        confusion=confusion_matrix(truth, predictions, n_classes).tolist(),
        splits=fits,
    )


def _score_fit(
    outcome: Outcome, labels: Array, class_names: Sequence[str], more_scores: MoreScores | None
) -> FitRecord:
    truth = labels[outcome.rows]
    scored = scores(truth, outcome.predictions, len(class_names), outcome.logits)
    if more_scores is not None:
        scored |= more_scores(truth, outcome.predictions, class_names)
    facts = asdict(outcome.facts) if outcome.facts is not None else {}
    identity = {"split": outcome.split, "seed": outcome.seed, "n_train": outcome.n_train, "n_test": len(truth)}
    converged = {} if outcome.converged is None else {"converged": outcome.converged}
    return FitRecord.model_validate({**identity, **facts, **converged, **scored})


def _std_between(fits: Sequence[FitRecord], keys: Sequence[Key], names: Sequence[str]) -> dict[str, float] | None:
    """Standard deviation of each score between the values of `keys`, after averaging over everything else."""
    values = sorted(set(keys))
    if len(values) < 2:
        return None
    return {
        name: float(
            np.std(
                [
                    np.mean([fit.scores[name] for fit, key in zip(fits, keys, strict=True) if key == value])
                    for value in values
                ]
            )
        )
        for name in names
    }


class _GroupedHits:
    """Whether each prediction is right, its group (the clip itself if groups are unknown), and its split."""

    def __init__(self, hits: Array, groups: Array, splits: Array) -> None:
        self.hits, self.groups, self.splits = hits, groups, splits

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], features: FeatureSet) -> _GroupedHits:
        rows = np.concatenate([outcome.rows for outcome in outcomes])
        predictions = np.concatenate([outcome.predictions for outcome in outcomes])
        groups = np.array(features.groups)[rows] if features.groups is not None else rows
        splits = np.concatenate([np.full(len(outcome.rows), outcome.split) for outcome in outcomes])
        return cls((predictions == features.labels.numpy()[rows]).astype(float), groups, splits)


def compare_heads(first: Sequence[Outcome], second: Sequence[Outcome], features: FeatureSet) -> ComparisonRecord:
    """The difference in accuracy between two heads on the same test clips: second minus first."""
    before = _GroupedHits.of(first, features)
    difference = _GroupedHits.of(second, features).hits - before.hits
    _, fold, sizes = np.unique(before.splits, return_inverse=True, return_counts=True)
    weighted = difference / sizes[fold] / len(sizes)  # every fold has the same weight
    return ComparisonRecord(
        difference=float(weighted.sum()),
        interval=difference_interval(difference, before.groups, before.splits),
        p_value=paired_p_value(weighted, before.groups),
        units="clips" if features.groups is None else "groups",
        n_units=len(np.unique(before.groups)),
    )
