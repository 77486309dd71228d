"""Clips that a head has not learned from: what its temperature and its "none of these" are measured on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.arrays import Array
from common.evaluation.record import NoneOfTheseRecord
from common.features import FeatureSet
from common.heads import FittedHead, KnownSounds, conformal_threshold

RATE = 0.05  # the false-alarm rate at which every run measures


@dataclass(frozen=True)
class Unseen:
    """A fitted head's logits (M, C) for rows that it has not learned from, and their labels (M,)."""

    logits: Array
    labels: Array

    @classmethod
    def test_rows(cls, head: FittedHead, labels: Array) -> Unseen:
        """Of the head's test rows; `labels` are those of all rows."""
        return cls(head.test_logits.numpy(), labels[head.job.split.test])

    @classmethod
    def validation_rows(cls, head: FittedHead, labels: Array) -> Unseen:
        """Of the head's validation rows; `labels` are those of all rows."""
        return cls(head.valid_logits.numpy(), labels[head.job.split.valid])


@dataclass(frozen=True)
class Distances:
    """How far held-out rows lie from the nearest training row. They depend on the split alone, not on the head.

    Attributes:
        tested: of the test rows of each split, (M,) each.
        validated: with one split, of its validation rows; None if there are none, or several splits.
    """

    tested: list[Array]
    validated: Array | None

    @property
    def held_out(self) -> Array | None:
        """What sets the threshold of the kept head; None if nothing can."""
        return np.concatenate(self.tested) if len(self.tested) > 1 else self.validated


def held_out_distances(features: FeatureSet, rows: Array, train: Array, seed: int) -> Array:
    """(M,) distances of `rows` to the nearest of the `train` rows."""
    known = KnownSounds.of(features.features[train].numpy(), np.empty(0), seed)
    return known.distances(features.features[rows].numpy())


def measure_none_of_these(distances: Distances) -> NoneOfTheseRecord | None:
    """How often clips of the known classes are called "none of these" when a share of RATE was asked for.

    With several splits (folds), the threshold of each is set by the distances of the others; with one, by its validation
    rows. None if nothing can set a threshold.
    """
    several = len(distances.tested) > 1
    alarms = []
    for place, own in enumerate(distances.tested):
        others = [each for other, each in enumerate(distances.tested) if other != place]
        held_out = np.concatenate(others) if several else distances.validated
        if held_out is None or (len(held_out) + 1) * RATE < 1:
            return None
        alarms.append(own > conformal_threshold(held_out, RATE))
    together = np.concatenate(alarms)
    return NoneOfTheseRecord(
        asked=RATE,
        measured=float(together.mean()),
        clips=len(together),
        fitted_on="the other folds" if several else "validation clips",
    )
