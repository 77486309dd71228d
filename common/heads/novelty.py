"""What a head has learned from, kept so that a sound unlike all of it can be told: "none of these"."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from common.arrays import Array
from common.errors import UserError
from common.heads.scalers import Scaler, fit_scaler, one_blas_thread

MOST_ROWS = 4096  # training rows that are kept: about 6 MB of 384 numbers each


class NoneOfTheseError(UserError):
    """No threshold of the wanted false-alarm rate can be given."""


@dataclass(frozen=True, eq=False)
class KnownSounds:
    """A head's training rows, and how far from such rows clips of the known classes lie that were not among them.

    A clip's distance is the Euclidean one, of standardised embeddings, to the nearest row kept here (the nearest-neighbour
    detector: Ramaswamy et al. 2000; for embeddings: Sun et al. 2022, https://arxiv.org/abs/2204.06507). The head's own scaler
    is not used: if it whitens, its strength differs between folds, and distances with it.

    Attributes:
        scaler: standardises embeddings, fitted on the training rows.
        embeddings: (N, D) float32, standardised; of more than MOST_ROWS training rows, that many drawn at random.
        held_out: (M,) float32, the distances of clips that were not among the training rows they were measured against.
    """

    scaler: Scaler
    embeddings: Array
    held_out: Array

    @classmethod
    def of(cls, train: Array, held_out: Array, seed: int) -> KnownSounds:
        """Of (N, D) training rows; `seed` draws those that are kept."""
        scaler = fit_scaler("standard", train)
        return cls(scaler, scaler(_sample(train, seed)), held_out)

    def distances(self, embeddings: Array) -> Array:
        """(N, D) embeddings -> (N,) float32."""
        from sklearn.metrics import pairwise_distances_argmin_min

        with one_blas_thread():
            _, distances = pairwise_distances_argmin_min(self.scaler(embeddings), self.embeddings)
        kept: Array = distances.astype(np.float32)
        return kept

    def threshold(self, rate: float) -> float:
        """The distance beyond which a share of at most `rate` of new clips of the known classes lies, as far as these are
        like the held-out clips: a conformal quantile (Bates et al. 2023, https://arxiv.org/abs/2104.08279).

        Raises:
            NoneOfTheseError: there are too few held-out clips for so small a rate.
        """
        return conformal_threshold(self.held_out, rate)


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


def _sample(rows: Array, seed: int) -> Array:
    """The rows that are kept of the training rows."""
    if len(rows) <= MOST_ROWS:
        return rows
    drawn: Array = rows[np.sort(np.random.default_rng(seed).choice(len(rows), MOST_ROWS, replace=False))]
    return drawn
