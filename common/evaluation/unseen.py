"""Clips that a head has not learned from: what its temperature and its "none of these" are measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.arrays import Array
from common.evaluation.record import NoneOfTheseRecord
from common.features import FeatureSet
from common.heads import FittedHead, KnownSounds, conformal_threshold

RATE = 0.05  # the false-alarm rate at which every run measures


@dataclass(frozen=True)
class Unseen:
    """A fitted head's answers for rows that it has not learned from.

    Attributes:
        logits, labels: (M, C) and (M,).
        distances: (M,), of each row to the nearest one that the head has learned from.
    """

    logits: Array
    labels: Array
    distances: Array

    @classmethod
    def test_rows(cls, head: FittedHead, features: FeatureSet) -> Unseen:
        """Of the head's test rows."""
        return cls._of(head, features, head.job.split.test, head.test_logits.numpy())

    @classmethod
    def validation_rows(cls, head: FittedHead, features: FeatureSet) -> Unseen:
        """Of the head's validation rows."""
        return cls._of(head, features, head.job.split.valid, head.valid_logits.numpy())

    @classmethod
    def _of(cls, head: FittedHead, features: FeatureSet, rows: Array, logits: Array) -> Unseen:
        train = features.features[head.job.split.train].numpy()
        known = KnownSounds.of(train, np.empty(0), head.job.seed)
        return cls(logits, features.labels.numpy()[rows], known.distances(features.features[rows].numpy()))


def measure_none_of_these(tested: Sequence[Unseen], validated: Unseen | None) -> NoneOfTheseRecord | None:
    """How often clips of the known classes are called "none of these" when a share of RATE was asked for.

    Args:
        tested: of the test rows of each split. With several splits (folds), the threshold of each is set by the
            distances of the others.
        validated: with one split, of its validation rows, which set the threshold.

    Returns:
        None if nothing can set a threshold.
    """
    several = len(tested) > 1
    if not several and validated is None:
        return None
    alarms = []
    for place, own in enumerate(tested):
        others = [each.distances for other, each in enumerate(tested) if other != place]
        held_out = np.concatenate(others) if several or validated is None else validated.distances
        if (len(held_out) + 1) * RATE < 1:
            return None
        alarms.append(own.distances > conformal_threshold(held_out, RATE))
    together = np.concatenate(alarms)
    return NoneOfTheseRecord(
        asked=RATE,
        measured=float(together.mean()),
        clips=len(together),
        fitted_on="the other folds" if several else "validation clips",
    )
