"""Jobs with fewer labelled clips: a fraction of them, or a number of every class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from common.arrays import Array
from common.features import FeatureSet
from common.heads import Job


def with_fraction(features: FeatureSet, job: Job, fraction: float) -> Job:
    """The job with a fraction of its training and validation clips of every class, at least one of each; with several labels a
    clip, of every rarest label."""
    rng, strata = np.random.default_rng([job.seed, round(1e6 * fraction)]), features.strata

    def fewer(rows: Array) -> Array:
        kept = []
        for stratum in np.unique(strata[rows]):
            of_class = rows[strata[rows] == stratum]
            kept.append(rng.choice(of_class, max(1, round(fraction * len(of_class))), replace=False))
        return np.sort(np.concatenate(kept)) if kept else rows

    return replace(job, split=replace(job.split, train=fewer(job.split.train), valid=fewer(job.split.valid)))


def with_shots(features: FeatureSet, job: Job, shots: int, draw: int) -> Job:
    """The job with `shots` clips of every class to train on, drawn at random from its training and validation clips, and
    none to validate on; a class with fewer gives all.

    With several labels a clip, classes are filled in the order of their frequency, rarest first, and a clip counts for all its
    labels, so that frequent labels may have more.
    """
    rng, labels = np.random.default_rng([job.seed, shots, draw]), features.labels.numpy()
    rows = rng.permutation(job.split.learnable)
    if not features.is_multilabel:
        chosen = np.concatenate([rows[labels[rows] == label][:shots] for label in np.unique(labels[rows])])
    else:
        has = labels[rows]
        taken = np.zeros(len(rows), bool)
        for label in np.argsort(has.sum(axis=0), kind="stable"):
            wanted = shots - int(has[taken, label].sum())
            taken[np.flatnonzero(has[:, label] & ~taken)[: max(0, wanted)]] = True
        chosen = rows[taken]
    few = replace(job.split, train=np.sort(chosen), valid=np.arange(0))
    return replace(job, split=few, seed=job.seed + draw)
