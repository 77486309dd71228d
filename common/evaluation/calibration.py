"""What is measured on clips that a head has not learned from: whether its probabilities mean what they say, and how often
its "none of these" is a false alarm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from common.arrays import Array
from common.evaluation.record import CalibrationRecord, NoneOfTheseRecord, ReliabilityBin
from common.features import FeatureSet
from common.heads import (
    ChosenHead,
    HeadKind,
    Job,
    KnownSounds,
    Recipe,
    Split,
    conformal_threshold,
    fit_heads,
)

T = TypeVar("T")
RATE = 0.05  # the false-alarm rate at which every run measures
BINS = 15
RANGE = (-3.0, 3.0)  # of the temperature's decimal logarithm


@dataclass(frozen=True)
class Unseen:
    """A fitted head's logits (M, C) for rows that it has not learned from, and their labels (M,)."""

    logits: Array
    labels: Array


def unseen_by(
    kind: HeadKind,
    chosen: Sequence[ChosenHead],
    features: FeatureSet,
    job: Job,
    recipe: Recipe,
    device: torch.device,
) -> tuple[list[Unseen], Unseen | None]:
    """What one seed's heads answer for the test rows of each split and, with one split, for its validation rows.

    Args:
        chosen: the seed's heads, one a split.
        job: of the first split. If the head has learned from its validation rows, another is fitted without them.
    """
    labels = features.labels.numpy()
    tested = [Unseen(head.final.test_logits.numpy(), labels[head.final.job.split.test]) for head in chosen]
    if len(chosen) > 1 or not len(job.split.valid):
        return tested, None
    apart = chosen[0].choosing
    if not len(apart.valid_logits):
        again = replace(job, keep=recipe.epochs, shrinkage=chosen[0].final.job.shrinkage)
        (apart,) = fit_heads(kind, features, [again], recipe, device)
    return tested, Unseen(apart.valid_logits.numpy(), labels[apart.job.split.valid])


def held_out_distances(features: FeatureSet, job: Job, splits: Sequence[Split]) -> tuple[list[Array], Array | None]:
    """How far held-out rows of one seed's splits lie from the nearest training row.

    Args:
        job: of the first split, before validation rows are used for training.

    Returns:
        Distances of the test rows of each split, (M,) each; and with one split, those of its validation rows.
    """
    values = features.features.numpy()

    def distances(rows: Array, train: Array) -> Array:
        return KnownSounds.of(values[train], np.empty(0), job.seed).distances(values[rows])

    tested = [distances(split.test, split.train) for split in splits]
    has_validation = len(splits) == 1 and len(job.split.valid)
    return tested, distances(job.split.valid, job.split.train) if has_validation else None


def measure_none_of_these(tested: Sequence[Array], validated: Array | None) -> NoneOfTheseRecord | None:
    """How often clips of the known classes are called "none of these" when a share of RATE was asked for.

    With several splits (folds), the threshold of each is set by the distances of the others; with one, by its
    validation rows. Arguments as `held_out_distances` returns them; None if nothing can set a threshold.
    """
    alarms = []
    for distances, sources in zip(tested, _sources(tested, validated), strict=True):
        held_out = np.concatenate([*sources, np.empty(0)])
        if (len(held_out) + 1) * RATE < 1:
            return None
        alarms.append(distances > conformal_threshold(held_out, RATE))
    together = np.concatenate(alarms)
    return NoneOfTheseRecord(
        asked=RATE, measured=float(together.mean()), clips=len(together), fitted_on=_source_name(tested)
    )


def _sources(tested: Sequence[T], validated: T | None) -> list[list[T]]:
    """What may set a parameter that is measured on the test rows of each split: those of the other splits (folds); with one
    split, its validation rows, if it has any."""
    if len(tested) == 1:
        return [[] if validated is None else [validated]]
    return [[*tested[:place], *tested[place + 1 :]] for place in range(len(tested))]


def _source_name(tested: Sequence[object]) -> str:
    return "the other folds" if len(tested) > 1 else "validation clips"


def fit_temperature(logits: Array, labels: Array) -> float:
    """The temperature by which logits (N, C) are divided, of the least cross-entropy with labels (N,).

    Guo et al., "On Calibration of Modern Neural Networks" (2017), https://arxiv.org/abs/1706.04599.
    """

    def cross_entropy(exponent: float) -> float:
        log_probabilities = log_softmax(logits.astype(np.float64) / 10**exponent, axis=1)
        return -float(log_probabilities[np.arange(len(labels)), labels].mean())

    return float(10 ** minimize_scalar(cross_entropy, bounds=RANGE, method="bounded").x)


def calibrate(tested: Sequence[Unseen], validated: Unseen | None) -> CalibrationRecord | None:
    """A head's calibration, before and after a temperature that its test rows had no part in.

    Args:
        tested: of the test rows of each split, for one seed. With several splits (folds), the temperature of each is
            fitted on the answers of the others, and that of the kept head on all.
        validated: with one split, of its validation rows, by a head that has not learned from them.

    Returns:
        None if there is nothing to fit a temperature on.
    """
    sources = _sources(tested, validated)
    if not sources[0]:
        return None
    temperatures = [_joint_temperature(answers) for answers in sources]
    temperature = _joint_temperature(tested) if len(tested) > 1 else temperatures[0]
    labels = np.concatenate([answers.labels for answers in tested])
    before, after = (
        reliability(np.concatenate([softmax(logits, axis=1) for logits in scaled]), labels)
        for scaled in (
            [answers.logits.astype(np.float64) for answers in tested],
            [answers.logits.astype(np.float64) / by for answers, by in zip(tested, temperatures, strict=True)],
        )
    )
    return CalibrationRecord(
        temperature=temperature,
        fitted_on=_source_name(tested),
        error_before=expected_error(before),
        error_after=expected_error(after),
        before=before,
        after=after,
    )


def reliability(probabilities: Array, labels: Array) -> list[ReliabilityBin]:
    """Mean confidence and accuracy of the predictions in bins of equal width by confidence; empty bins are left out."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        ReliabilityBin(
            confidence=float(confidence[is_in_bin].mean()),
            accuracy=float(right[is_in_bin].mean()),
            clips=int(is_in_bin.sum()),
        )
        for number in range(BINS)
        if (is_in_bin := place == number).any()
    ]


def expected_error(bins: Sequence[ReliabilityBin]) -> float:
    """The expected calibration error: the mean gap between confidence and accuracy, weighted by clips."""
    clips = sum(part.clips for part in bins)
    return sum(part.clips * abs(part.confidence - part.accuracy) for part in bins) / clips


def _joint_temperature(answers: Sequence[Unseen]) -> float:
    logits, labels = ([getattr(answer, name) for answer in answers] for name in ("logits", "labels"))
    return fit_temperature(np.concatenate(logits), np.concatenate(labels))
