"""The heads to keep, with their calibration and false alarms measured on clips that they were not fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from common.arrays import Array
from common.evaluation.outcomes import HeadFitter
from common.evaluation.record import CalibrationRecord, NoneOfTheseRecord, Record, ReliabilityBin
from common.features import FeatureSet
from common.heads import (
    ChosenHead,
    FittedHead,
    HeadKind,
    Job,
    KnownSounds,
    Split,
    TrainedHead,
    conformal_threshold,
    fit_heads,
    recipe_for,
)

T = TypeVar("T")
RATE = 0.05  # the false-alarm rate at which every run measures
BINS = 15
EXPONENTS = (-3.0, 3.0)  # range of the temperature's decimal logarithm


@dataclass(frozen=True)
class HeldOut(Generic[T]):
    """Something measured on rows that one seed's heads were not fitted on.

    Attributes:
        tested: on the test rows of every split.
        validated: with a single split, on its validation rows, if it has any.
    """

    tested: Sequence[T]
    validated: T | None = None

    @property
    def sources(self) -> list[list[T]]:
        """For every split, what may set a parameter that is measured on its test rows: the other splits (folds), or the
        validation rows of a single split; empty if it has none."""
        if len(self.tested) > 1:
            return [[*self.tested[:place], *self.tested[place + 1 :]] for place in range(len(self.tested))]
        return [[] if self.validated is None else [self.validated]]

    @property
    def for_kept_head(self) -> list[T]:
        """What sets the parameter of the head to keep, which with folds is fitted on all rows."""
        return list(self.tested) if len(self.tested) > 1 else self.sources[0]

    @property
    def source_name(self) -> str:
        """`sources`, for readers."""
        return "the other folds" if len(self.tested) > 1 else "validation clips"


@dataclass(frozen=True)
class Unseen:
    """A head's logits (M, C) for rows that it was not fitted on, and their labels (M,)."""

    logits: Array
    labels: Array


@dataclass(frozen=True)
class KeptHead:
    """A head to keep, and what is measured of the first seed's heads of its kind."""

    head: TrainedHead
    calibration: CalibrationRecord | None
    none_of_these: NoneOfTheseRecord | None

    @property
    def measured(self) -> dict[str, Record | None]:
        """By the names of `HeadRecord`."""
        return {"calibration": self.calibration, "none_of_these": self.none_of_these}


def heads_to_keep(
    features: FeatureSet, jobs: Sequence[Job], chosen: Mapping[HeadKind, Sequence[ChosenHead]], fitter: HeadFitter
) -> dict[HeadKind, KeptHead]:
    """The first seed's heads; `chosen` are the heads of `jobs`."""
    first = jobs[0]
    n_splits = sum(job.seed == first.seed for job in jobs)  # the first seed's jobs come first
    splits = [head.final.job.split for head in chosen["linear"][:n_splits]]  # the same for both kinds
    distances = _held_out_distances(features, first, splits)
    none_of_these, known = _measure_none_of_these(distances), None
    if distances.for_kept_head:
        train = splits[0].train if n_splits == 1 else np.arange(len(features))
        known = KnownSounds.of(features.features.numpy()[train], np.concatenate(distances.for_kept_head), first.seed)
    kept = {}
    for kind, heads in chosen.items():
        calibration = calibrate(_unseen_by(kind, heads[:n_splits], features, first, fitter))
        temperature = 1.0 if calibration is None else calibration.temperature
        final = _final_head(kind, features, heads[:n_splits], fitter)
        class_names, encoder = features.class_names, features.provenance
        head = TrainedHead(kind, final.module, final.scaler, class_names, encoder, temperature, known)
        kept[kind] = KeptHead(head, calibration, none_of_these)
    return kept


def _final_head(kind: HeadKind, features: FeatureSet, fitted: Sequence[ChosenHead], fitter: HeadFitter) -> FittedHead:
    """The head of a single split; with folds, one more, fitted on all clips for the median number of epochs."""
    final = fitted[0].final
    if len(fitted) == 1:
        return final
    everything = Split("all clips", np.arange(len(features)), np.arange(0))
    epoch = int(np.median([head.final.epoch for head in fitted]))
    job = Job(everything, final.job.seed, epoch, final.job.shrinkage)
    return fit_heads(kind, features, [job], recipe_for(kind, fitter.config), fitter.device)[0]


def _unseen_by(
    kind: HeadKind, chosen: Sequence[ChosenHead], features: FeatureSet, job: Job, fitter: HeadFitter
) -> HeldOut[Unseen]:
    """The logits of a seed's heads for held-out rows; if the head of the first `job` was fitted on its validation rows too,
    those of another, fitted without them."""
    labels = features.labels.numpy()
    tested = [Unseen(head.final.test_logits.numpy(), labels[head.final.job.split.test]) for head in chosen]
    if len(chosen) > 1 or not len(job.split.valid):
        return HeldOut(tested)
    head = chosen[0].choosing
    if not len(head.valid_logits):
        recipe = recipe_for(kind, fitter.config)
        again = replace(job, keep=recipe.epochs, shrinkage=chosen[0].final.job.shrinkage)
        (head,) = fit_heads(kind, features, [again], recipe, fitter.device)
    return HeldOut(tested, Unseen(head.valid_logits.numpy(), labels[head.job.split.valid]))


def _held_out_distances(features: FeatureSet, job: Job, splits: Sequence[Split]) -> HeldOut[Array]:
    """Distances (M,) of held-out rows of a seed's splits to the nearest training row; the first `job` still has the
    validation rows that its split may use for training."""
    values = features.features.numpy()

    def distances(rows: Array, train: Array) -> Array:
        return KnownSounds.of(values[train], np.empty(0), job.seed).distances(values[rows])

    tested = [distances(split.test, split.train) for split in splits]
    has_validation = len(splits) == 1 and len(job.split.valid)
    return HeldOut(tested, distances(job.split.valid, job.split.train) if has_validation else None)


def _measure_none_of_these(held_out: HeldOut[Array]) -> NoneOfTheseRecord | None:
    """How often clips of known classes are marked "none of these" at a rate of RATE; None if there are too few distances to
    set a threshold."""
    alarms = []
    for distances, sources in zip(held_out.tested, held_out.sources, strict=True):
        if (sum(map(len, sources)) + 1) * RATE < 1:
            return None
        alarms.append(distances > conformal_threshold(np.concatenate(sources), RATE))
    measured = np.concatenate(alarms)
    return NoneOfTheseRecord(
        asked=RATE, measured=float(measured.mean()), clips=len(measured), fitted_on=held_out.source_name
    )


def calibrate(held_out: HeldOut[Unseen]) -> CalibrationRecord | None:
    """A head's calibration before and after temperature scaling; None if no rows can set the temperature."""
    if not held_out.sources[0]:
        return None
    before = _reliability_at([1.0] * len(held_out.tested), held_out.tested)
    after = _reliability_at([_joint_temperature(parts) for parts in held_out.sources], held_out.tested)
    return CalibrationRecord(
        temperature=_joint_temperature(held_out.for_kept_head),
        fitted_on=held_out.source_name,
        error_before=expected_error(before),
        error_after=expected_error(after),
        before=before,
        after=after,
    )


def _reliability_at(temperatures: Sequence[float], tested: Sequence[Unseen]) -> list[ReliabilityBin]:
    scaled = [part.logits.astype(np.float64) / by for part, by in zip(tested, temperatures, strict=True)]
    return reliability(softmax(np.concatenate(scaled), axis=1), np.concatenate([part.labels for part in tested]))


def _joint_temperature(parts: Sequence[Unseen]) -> float:
    logits, labels = zip(*((part.logits, part.labels) for part in parts), strict=True)
    return fit_temperature(np.concatenate(logits), np.concatenate(labels))


def fit_temperature(logits: Array, labels: Array) -> float:
    """The temperature that minimises the cross-entropy of ``logits / temperature``, (N, C), with labels (N,).

    Guo et al., "On Calibration of Modern Neural Networks" (2017), https://arxiv.org/abs/1706.04599.
    """

    def cross_entropy(exponent: float) -> float:
        log_probabilities = log_softmax(logits.astype(np.float64) / 10**exponent, axis=1)
        return -float(log_probabilities[np.arange(len(labels)), labels].mean())

    return float(10 ** minimize_scalar(cross_entropy, bounds=EXPONENTS, method="bounded").x)


def reliability(probabilities: Array, labels: Array) -> list[ReliabilityBin]:
    """Mean confidence and accuracy of predictions in BINS bins of equal width by confidence, without empty bins.

    Args:
        probabilities: (N, C).
        labels: (N,).
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        ReliabilityBin(
            confidence=float(confidence[place == number].mean()),
            accuracy=float(right[place == number].mean()),
            clips=int((place == number).sum()),
        )
        for number in np.unique(place)
    ]


def expected_error(bins: Sequence[ReliabilityBin]) -> float:
    """The expected calibration error: the mean gap between confidence and accuracy, weighted by clips."""
    clips = sum(part.clips for part in bins)
    return sum(part.clips * abs(part.confidence - part.accuracy) for part in bins) / clips
