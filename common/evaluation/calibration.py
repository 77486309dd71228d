"""Whether probabilities mean what they say: a temperature for the logits, and how far confidence is from accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from common.arrays import Array
from common.evaluation.record import CalibrationRecord, ReliabilityBin
from common.evaluation.unseen import Unseen

BINS = 15
RANGE = (-3.0, 3.0)  # of the temperature's decimal logarithm


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
    if len(tested) > 1:
        places = range(len(tested))
        own = [_joint_temperature([tested[other] for other in places if other != place]) for place in places]
        temperature = _joint_temperature(tested)
    elif validated is not None:
        temperature = fit_temperature(validated.logits, validated.labels)
        own = [temperature]
    else:
        return None
    labels = np.concatenate([each.labels for each in tested])
    before = np.concatenate([softmax(each.logits.astype(np.float64), axis=1) for each in tested])
    after = np.concatenate(
        [softmax(each.logits.astype(np.float64) / by, axis=1) for each, by in zip(tested, own, strict=True)]
    )
    bins = [reliability(probabilities, labels) for probabilities in (before, after)]
    return CalibrationRecord(
        temperature=temperature,
        fitted_on="the other folds" if len(tested) > 1 else "validation clips",
        error_before=expected_error(bins[0]),
        error_after=expected_error(bins[1]),
        before=bins[0],
        after=bins[1],
    )


def reliability(probabilities: Array, labels: Array) -> list[ReliabilityBin]:
    """Mean confidence and accuracy of the predictions in bins of equal width by confidence; empty bins are left out."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        ReliabilityBin(
            confidence=float(confidence[own].mean()), accuracy=float(right[own].mean()), clips=int(own.sum())
        )
        for number in range(BINS)
        if (own := place == number).any()
    ]


def expected_error(bins: Sequence[ReliabilityBin]) -> float:
    """The expected calibration error: the mean gap between confidence and accuracy, weighted by clips."""
    clips = sum(each.clips for each in bins)
    return sum(each.clips * abs(each.confidence - each.accuracy) for each in bins) / clips


def _joint_temperature(answers: Sequence[Unseen]) -> float:
    logits, labels = ([getattr(each, name) for each in answers] for name in ("logits", "labels"))
    return fit_temperature(np.concatenate(logits), np.concatenate(labels))
