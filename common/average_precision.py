"""Average precision of many classes at once, and without every group of clips in turn."""

from __future__ import annotations

import numpy as np

from common.arrays import Array

BLOCK = 1 << 22  # numbers in memory at a time


def average_precisions(labels: Array, scores: Array) -> Array:
    """The average precision of every class, as scikit-learn's ``average_precision_score`` defines it: (M, C) bool labels and
    (M, C) scores, higher for a more probable label, -> (C,) float64; NaN for a class without positives."""
    return np.array([_average_precision(*pair) for pair in zip(labels.T, scores.T, strict=True)])


def _average_precision(labels: Array, scores: Array) -> float:
    """The mean over positives of the precision among all clips of at least their score."""
    positives = np.sort(scores[labels])
    if not len(positives):
        return float("nan")
    hits = len(positives) - np.searchsorted(positives, positives)
    clips = len(scores) - np.searchsorted(np.sort(scores), positives)
    return float((hits / clips).mean())


def without_each_group(labels: Array, scores: Array, groups: Array, n_groups: int) -> Array:
    """`average_precisions` of the clips that are left without a group, for every group: (n_groups, C) float64; NaN where no
    positives are left. The (M,) groups are numbered from 0."""
    columns = [_class_without_each_group(*pair, groups, n_groups) for pair in zip(labels.T, scores.T, strict=True)]
    return np.stack(columns, axis=1)


def _class_without_each_group(labels: Array, scores: Array, groups: Array, n_groups: int) -> Array:
    """(n_groups,) of one class's labels and scores, (M,) each."""
    thresholds = np.unique(scores[labels])
    if not len(thresholds):
        return np.full(n_groups, np.nan)
    passed = np.searchsorted(thresholds, scores, side="right")  # how many thresholds a clip reaches
    result = np.empty(n_groups)
    step = max(1, BLOCK // len(thresholds))
    everything = _counts(passed, labels, np.zeros_like(groups), 1, len(thresholds))
    for start in range(0, n_groups, step):
        stop = min(start + step, n_groups)
        rows = (groups >= start) & (groups < stop)
        of_groups = _counts(passed[rows], labels[rows], groups[rows] - start, stop - start, len(thresholds))
        # Of the clips that are left: positives at a threshold; positives, and all clips, at it or above.
        at, positives, clips = (whole - part for whole, part in zip(everything, of_groups, strict=True))
        with np.errstate(invalid="ignore"):
            precisions = np.divide(positives, clips, out=np.zeros(clips.shape), where=clips > 0)
            result[start:stop] = (at * precisions).sum(axis=1) / at.sum(axis=1)
    return result


def _counts(
    passed: Array, labels: Array, groups: Array, n_groups: int, n_thresholds: int
) -> tuple[Array, Array, Array]:
    """By group and threshold, (n_groups, n_thresholds) each: positives at it; positives, and all clips, at it or above."""
    cells = groups * (n_thresholds + 1) + passed
    size = n_groups * (n_thresholds + 1)
    at, clips = (
        np.bincount(cells[chosen], minlength=size).reshape(n_groups, -1)[:, 1:] for chosen in (labels, slice(None))
    )
    positives, reached = (np.cumsum(counts[:, ::-1], axis=1)[:, ::-1] for counts in (at, clips))
    return at, positives, reached
