"""Detecting sounds unlike all training sounds of a head: "none of these"."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from common.arrays import Array
from common.errors import UserError
from common.heads.scalers import Scaler, fit_scaler, one_blas_thread

MOST_ROWS = 4096  # training rows that are kept: about 6 MB at 384 numbers


class NoneOfTheseError(UserError):
    """Too few held-out clips for the threshold of a false-alarm rate."""


@dataclass(frozen=True, eq=False)
class KnownSounds:
    """A head's training rows, and the distances of held-out clips of the known classes to such rows.

    A clip's distance is Euclidean, of standardised embeddings, to the nearest kept row (Ramaswamy et al. 2000; for
    embeddings: Sun et al. 2022, https://arxiv.org/abs/2204.06507). The head's scaler is not used: the strength of its
    whitening differs between folds, and distances with it."""

    scaler: Scaler  # standardises embeddings; fitted on the training rows
    embeddings: Array  # (N, D) float32, standardised; at most MOST_ROWS training rows, drawn at random
    held_out: Array  # (M,) float32, distances of clips to training rows that they are not among

    @classmethod
    def of(cls, train: Array, held_out: Array, seed: int) -> KnownSounds:
        """Of (N, D) training rows; `seed` draws those that are kept."""
        scaler = fit_scaler("standard", train)
        if len(train) > MOST_ROWS:
            train = train[np.sort(np.random.default_rng(seed).choice(len(train), MOST_ROWS, replace=False))]
        return cls(scaler, scaler(train), held_out)

    def distances(self, embeddings: Array) -> Array:
        """(N, D) embeddings -> (N,) float32."""
        from sklearn.metrics import pairwise_distances_argmin_min

        with one_blas_thread():
            _, distances = pairwise_distances_argmin_min(self.scaler(embeddings), self.embeddings)
        kept: Array = distances.astype(np.float32)
        return kept

    def threshold(self, rate: float) -> float:
        """`conformal_threshold` by the held-out clips."""
        return conformal_threshold(self.held_out, rate)


def conformal_threshold(held_out: Array, rate: float) -> float:
    """The distance that a share of at most `rate` of new clips exceeds, if they are like the held-out clips: a conformal
    quantile (Bates et al. 2023, https://arxiv.org/abs/2104.08279).

    Raises:
        NoneOfTheseError: there are too few held-out clips for so small a rate.
    """
    place = math.ceil((len(held_out) + 1) * (1 - rate))
    if place > len(held_out):
        least = math.ceil(1 / rate) - 1
        raise NoneOfTheseError(
            f"a false-alarm rate of {rate:g} needs at least {least} held-out clips, and the head has {len(held_out)}; "
            "ask for a higher rate, or train the head on data with more folds or validation clips"
        )
    return float(np.sort(held_out)[place - 1])
