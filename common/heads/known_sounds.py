"""What a head has learned from, kept so that a sound unlike all of it can be told: "none of these"."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import pairwise_distances_argmin_min

from common.arrays import Array
from common.errors import UserError
from common.heads.scalers import one_blas_thread

MOST_ROWS = 4096  # training rows that are kept: about 6 MB of 384 numbers each


class NoneOfTheseError(UserError):
    """No threshold of the wanted false-alarm rate can be given."""


@dataclass(frozen=True, eq=False)
class KnownSounds:
    """A head's training rows, and how far from such rows clips of the known classes lie that were not among them.

    A clip's distance is the Euclidean one, after the head's scaler, to the nearest row kept here (the nearest-neighbour
    detector: Ramaswamy et al. 2000; for embeddings: Sun et al. 2022, https://arxiv.org/abs/2204.06507).

    Attributes:
        embeddings: (N, K) float32, scaled; of more than MOST_ROWS training rows, that many drawn at random.
        held_out: (M,) float32, the distances of clips that the head they were measured with had not learned from.
    """

    embeddings: Array
    held_out: Array

    def distances(self, scaled: Array) -> Array:
        """(N, K) scaled embeddings -> (N,) distances."""
        return nearest_distances(scaled, self.embeddings)

    def threshold(self, rate: float) -> float:
        """The distance beyond which a share of at most `rate` of new clips of the known classes lies, as far as these are
        like the held-out clips: a conformal quantile (Bates et al. 2023, https://arxiv.org/abs/2104.08279).

        Raises:
            NoneOfTheseError: there are too few held-out clips for so small a rate.
        """
        return conformal_threshold(self.held_out, rate)


def nearest_distances(scaled: Array, known: Array) -> Array:
    """(N, K) and (M, K) -> (N,) float32, the distance of each row of the first to the nearest of the second."""
    with one_blas_thread():
        _, distances = pairwise_distances_argmin_min(scaled, known)
    kept: Array = distances.astype(np.float32)
    return kept


def conformal_threshold(held_out: Array, rate: float) -> float:
    """See `KnownSounds.threshold`."""
    place = math.ceil((len(held_out) + 1) * (1 - rate))
    if place > len(held_out):
        least = math.ceil(1 / rate) - 1
        raise NoneOfTheseError(
            f"a false-alarm rate of {rate:g} needs at least {least} held-out clips, and the head has {len(held_out)}; "
            "ask for a higher rate, or train the head on data with more folds or validation clips"
        )
    return float(np.sort(held_out)[place - 1])


def sample_rows(rows: Array, seed: int) -> Array:
    """The rows that are kept of a head's training rows."""
    if len(rows) <= MOST_ROWS:
        return rows
    drawn: Array = np.sort(np.random.default_rng(seed).choice(rows, MOST_ROWS, replace=False))
    return drawn
