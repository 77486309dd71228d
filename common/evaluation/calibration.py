"""The heads to keep, with their calibration and false alarms measured on clips that they were not fitted on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.metrics import f1_score, pairwise_distances_chunked

from common.arrays import Array
from common.evaluation.outcomes import HeadFitter
from common.evaluation.record import CalibrationRecord, LabelSets, NoneOfTheseRecord, Record, ReliabilityBin
from common.evaluation.scores import per_class
from common.features import FeatureSet
from common.heads import (
    ChosenHead,
    FittedHead,
    HeadKind,
    Job,
    KnownSounds,
    PlattScaling,
    Split,
    TrainedHead,
    conformal_threshold,
    draw_known,
    fit_heads,
    one_blas_thread,
    recipe_for,
)

T = TypeVar("T")
RATE = 0.05  # the false-alarm rate at which every run measures
BINS = 15
TEMPERATURES = (1e-3, 1e3)  # among which one is looked for


@dataclass(frozen=True)
class HeldOut(Generic[T]):
    """Something measured on rows that one seed's heads were not fitted on."""

    tested: Sequence[T]  # on the test rows of every split
    validated: T | None = None  # with a single split, on its validation rows, if it has any

    @property
    def for_kept_head(self) -> list[T]:
        """What sets a parameter of the head to keep, which with folds is fitted on all rows; empty if nothing can."""
        if len(self.tested) > 1:
            return list(self.tested)
        return [] if self.validated is None else [self.validated]

    @property
    def pairs(self) -> Iterator[tuple[T, list[T]]]:
        """For every split, what is tested, and what sets its parameter: the other splits (folds), or the validation rows."""
        for place, tested in enumerate(self.tested):
            others = [*self.tested[:place], *self.tested[place + 1 :]]
            yield tested, others or self.for_kept_head

    @property
    def source_name(self) -> str:
        return "the other folds" if len(self.tested) > 1 else "validation clips"


@dataclass(frozen=True)
class Unseen:
    """A head's logits (M, C) for rows that it was not fitted on, and their labels: (M,), or (M, C) with several a clip."""

    logits: Array
    labels: Array

    @classmethod
    def join(cls, parts: Sequence[Unseen]) -> Unseen:
        return cls(np.concatenate([part.logits for part in parts]), np.concatenate([part.labels for part in parts]))

    def probabilities(self, scale: Scale) -> Array:
        """(M, C) float64, of calibrated logits."""
        scaled = self.logits.astype(np.float64) * scale.slopes + scale.biases
        probabilities: Array = softmax(scaled, axis=1) if self.labels.ndim == 1 else expit(scaled)
        return probabilities


@dataclass(frozen=True)
class Scale:
    """What calibrates logits: ``slopes * logits + biases``."""

    slopes: Array | float = 1.0  # (C,), or the inverse of a temperature for all classes
    biases: Array | float = 0.0  # (C,), or 0

    @classmethod
    def fitted(cls, parts: Sequence[Unseen]) -> Scale:
        """A temperature if it lowers the calibration error of these rows; of several labels, a slope and a bias a class."""
        unseen = Unseen.join(parts)
        if unseen.labels.ndim == 1:
            scales = (cls(), cls(1 / fit_temperature(unseen.logits, unseen.labels)))  # of equal errors, the first
            return min(scales, key=lambda how: expected_error(reliability(unseen.probabilities(how), unseen.labels)))
        slopes, biases = zip(*map(_fit_line, unseen.logits.T, unseen.labels.T), strict=True)
        return cls(np.array(slopes), np.array(biases))


def heads_to_keep(
    features: FeatureSet, jobs: Sequence[Job], chosen: Mapping[HeadKind, Sequence[ChosenHead]], fitter: HeadFitter
) -> dict[HeadKind, tuple[TrainedHead, dict[str, Record | None]]]:
    """The first seed's heads, and the fields of `HeadRecord` that are measured of them; `chosen` are the heads of `jobs`."""
    first = jobs[0]
    n_splits = sum(job.seed == first.seed for job in jobs)  # the first seed's jobs come first
    splits = [head.final.job.split for head in chosen["linear"][:n_splits]]  # the same for both kinds
    distances = _held_out_distances(features, first, splits)
    none_of_these = _measure_none_of_these(distances)
    known = None
    if distances.for_kept_head:
        train = splits[0].train if n_splits == 1 else np.arange(len(features))
        held_out = Distances.join(distances.for_kept_head)
        known = replace(
            KnownSounds.of(features.features.numpy()[draw_known(train, first.seed)]),
            held_out=held_out.known,
            groups=held_out.groups,
            found=None if none_of_these is None else none_of_these.found,
        )
    kept = {}
    for kind, heads in chosen.items():
        unseen = _unseen_by(kind, heads[:n_splits], features, first, fitter)
        final, n_classes = _final_head(kind, features, heads[:n_splits], fitter), len(features.class_names)
        head = TrainedHead(kind, final.module, final.scaler, features.class_names, features.provenance, known=known)
        measured: dict[str, Record | None] = {"calibration": None, "none_of_these": none_of_these}
        scale = Scale()
        if unseen.for_kept_head:
            scale = Scale.fitted(unseen.for_kept_head)
            measured["calibration"] = calibration = calibrate(unseen, scale)
            # Of folds, it was measured on clips that did not set it; of a single split, on the test clips, which decide nothing.
            if (
                len(unseen.tested) > 1
                and not features.is_multilabel
                and calibration.error_after > calibration.error_before
            ):
                as_trained = {"temperature": 1.0, "error_after": calibration.error_before, "after": calibration.before}
                scale, measured["calibration"] = Scale(), calibration.model_copy(update=as_trained)
            if features.is_multilabel:
                measured["label_sets"] = label_sets = measure_label_sets(unseen, scale)
                head = replace(head, thresholds=label_sets.thresholds)
            else:
                head = replace(head, thresholds=class_thresholds(Unseen.join(unseen.for_kept_head), scale))
        if features.is_multilabel:
            slopes, biases = (np.broadcast_to(part, n_classes).tolist() for part in (scale.slopes, scale.biases))
            head = replace(head, scaling=PlattScaling(slopes, biases))
        else:
            head = replace(head, temperature=1 / float(scale.slopes))
        kept[kind] = head, measured
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


@dataclass(frozen=True)
class Distances:
    """Distances of M held-out rows to the nearest training row."""

    known: Array  # (M,) float32
    unheard: Array  # (M,) the same to rows of other classes; empty with several labels a clip
    groups: Array | None  # (M,) int64; None: unknown, or some have training rows

    @classmethod
    def join(cls, parts: Sequence[Distances]) -> Distances:
        known, unheard = (np.concatenate([getattr(part, name) for part in parts]) for name in ("known", "unheard"))
        groups = [part.groups for part in parts if part.groups is not None]
        return cls(known, unheard, np.concatenate(groups) if len(groups) == len(parts) else None)


def _held_out_distances(features: FeatureSet, job: Job, splits: Sequence[Split]) -> HeldOut[Distances]:
    """Distances of a seed's held-out rows; its first `job` still has the validation rows that its split may train on."""
    values = features.features.numpy()
    labels = np.arange(len(features)) if features.is_multilabel else features.labels.numpy()
    groups = None if features.groups is None else np.unique(np.array(features.groups), return_inverse=True)[1]

    def distances(rows: Array, train: Array) -> Distances:
        kept = draw_known(train, job.seed)

        def nearest(block: Array, start: int) -> Array:
            """(M, K) distances to the kept rows -> (M, 2): the least, and the least to another class."""
            is_of_class = labels[rows[start : start + len(block)], None] == labels[kept]
            return np.stack([block.min(axis=1), np.where(is_of_class, np.inf, block).min(axis=1)], axis=1)

        sounds = KnownSounds.of(values[kept])
        with one_blas_thread():
            scaled = sounds.scaler(values[rows])
            blocks = pairwise_distances_chunked(scaled, sounds.embeddings, reduce_func=nearest, working_memory=64)
            known, unheard = np.concatenate(list(blocks)).astype(np.float32).T
        is_apart = groups is not None and not np.isin(groups[rows], groups[train]).any()
        of_groups = groups[rows] if groups is not None and is_apart else None
        return Distances(known, unheard[:0] if features.is_multilabel else unheard, of_groups)

    tested = [distances(split.test, split.train) for split in splits]
    has_validation = len(splits) == 1 and len(job.split.valid)
    return HeldOut(tested, distances(job.split.valid, job.split.train) if has_validation else None)


def _measure_none_of_these(held_out: HeldOut[Distances]) -> NoneOfTheseRecord | None:
    """How often clips of known classes, and of classes left out, are "none of these" at a rate of RATE; None with too few."""
    alarms, found = [], []
    for tested, sources in held_out.pairs:
        source = Distances.join(sources) if sources else None
        if source is None or (len(source.known) + 1) * RATE < 1:
            return None
        threshold = conformal_threshold(source.known, source.groups, RATE)
        alarms.append(tested.known > threshold.distance)
        found.append(tested.unheard > threshold.distance)
    measured, unheard = np.concatenate(alarms), np.concatenate(found)
    return NoneOfTheseRecord(
        asked=RATE,
        measured=float(measured.mean()),
        found=float(unheard.mean()) if len(unheard) else None,
        clips=len(measured),
        groups=threshold.n_groups,
        is_promised=threshold.is_promised,
        fitted_on=held_out.source_name,
    )


def calibrate(held_out: HeldOut[Unseen], scale: Scale) -> CalibrationRecord:
    """A head's calibration before and after scaling of its logits, and the temperature in the kept head's `scale`."""
    tested = Unseen.join(held_out.tested)
    calibrated = np.concatenate([part.probabilities(Scale.fitted(source)) for part, source in held_out.pairs])
    before, after = (reliability(values, tested.labels) for values in (tested.probabilities(Scale()), calibrated))
    class_errors = []
    if tested.labels.ndim == 2:
        columns = zip(calibrated.T, tested.labels.T, strict=True)
        class_errors = [expected_error(reliability(column[:, None], labels[:, None])) for column, labels in columns]
    return CalibrationRecord(
        temperature=1 / float(scale.slopes) if tested.labels.ndim == 1 else None,
        fitted_on=held_out.source_name,
        error_before=expected_error(before),
        error_after=expected_error(after),
        before=before,
        after=after,
        class_errors=class_errors,
    )


def fit_temperature(logits: Array, labels: Array) -> float:
    """The temperature that minimises the cross-entropy of ``logits / temperature``, (N, C), with labels (N,).

    Guo et al., "On Calibration of Modern Neural Networks" (2017), https://arxiv.org/abs/1706.04599.
    """

    def cross_entropy(exponent: float) -> float:
        log_probabilities = log_softmax(logits.astype(np.float64) / 10**exponent, axis=1)
        return -float(log_probabilities[np.arange(len(labels)), labels].mean())

    return float(10 ** minimize_scalar(cross_entropy, bounds=np.log10(TEMPERATURES), method="bounded").x)


def _fit_line(logits: Array, labels: Array) -> tuple[float, float]:
    """The slope (positive, so that ranks stay) and bias that minimise the binary cross-entropy of a class.

    With Platt's targets, which keep few clips from being certain: "Probabilistic outputs for support vector machines" (1999).
    """
    values, positives = logits.astype(np.float64), int(labels.sum())
    targets = np.where(labels, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))

    def cross_entropy(line: Array) -> tuple[float, Array]:
        scaled = line[0] * values + line[1]
        loss = -(targets * log_expit(scaled) + (1 - targets) * log_expit(-scaled)).sum()
        errors = expit(scaled) - targets
        return float(loss), np.array([errors @ values, errors.sum()])

    start = np.array([1.0, 0.0])
    slope, bias = minimize(cross_entropy, start, jac=True, method="L-BFGS-B", bounds=[(1e-3, 1e3), (None, None)]).x
    return float(slope), float(bias)


def reliability(probabilities: Array, labels: Array) -> list[ReliabilityBin]:
    """Mean confidence and accuracy of predictions in BINS bins of equal width by confidence, without empty bins. With labels
    (N, C) every pair of clip and class is a prediction that the label is there."""
    if labels.ndim == 2:
        confidence, right = probabilities.ravel(), labels.ravel()
    else:
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


def measure_label_sets(held_out: HeldOut[Unseen], scale: Scale) -> LabelSets:
    """What is predicted by thresholds that held-out rows set; those of the kept head are for logits calibrated by `scale`."""
    tested = Unseen.join(held_out.tested)
    predicted = np.concatenate([part.logits >= thresholds_of(Unseen.join(source)) for part, source in held_out.pairs])
    classes = per_class(tested.labels, predicted, predicted.shape[1])
    truth = tested.labels.astype(int)
    return LabelSets(
        thresholds=expit(scale.slopes * thresholds_of(Unseen.join(held_out.for_kept_head)) + scale.biases).tolist(),
        fitted_on=held_out.source_name,
        micro_f1=float(f1_score(tested.labels, predicted, average="micro", zero_division=0)),
        macro_f1=float(np.mean([value for value, count in zip(classes.f1, classes.clips, strict=True) if count])),
        per_class=classes,
        confusion=(truth.T @ predicted.astype(int)).tolist(),
        false_alarms=(truth.T @ (predicted & ~tested.labels).astype(int)).tolist(),
        co_occurrence=(truth.T @ truth).tolist(),
    )


def class_thresholds(unseen: Unseen, scale: Scale) -> list[float]:
    """The probabilities from which as many of the rows are of a class as truly are; 1 for a class without rows."""
    probabilities = unseen.probabilities(scale)
    is_of_class = unseen.labels[:, None] == np.arange(probabilities.shape[1])
    thresholds: list[float] = np.minimum(thresholds_of(Unseen(probabilities, is_of_class)), 1).tolist()
    return thresholds


def thresholds_of(unseen: Unseen) -> Array:
    """(C,) the logits above which as many of these rows are as have the label, so that precision equals recall; infinite
    without positives.

    The highest F1 would predict a label that a head can hardly tell for nearly every row.
    """
    ranked = -np.sort(-unseen.logits.astype(np.float64), axis=0)
    counts, classes = unseen.labels.sum(axis=0), np.arange(ranked.shape[1])
    last, after = (ranked[np.minimum(place, len(ranked) - 1), classes] for place in (counts - 1, counts))
    return np.where(counts > 0, (last + after) / 2, np.inf)
