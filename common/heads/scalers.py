"""Scaling of embeddings before a head, fitted on only the training rows: standardised, whitened, or unchanged."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cache
from typing import get_args

import numpy as np
from threadpoolctl import ThreadpoolController

from common.arrays import Array
from common.config import ScalerName

SCALERS = get_args(ScalerName)
SHRINKAGES = (0.3, 0.1, 0.03, 0.01, 0.003)  # validation data choose one of them; the first if tied
DEFAULT_SHRINKAGE = 0.1  # if there are no validation data
# Whitening keeps at most this many principal components. Wider embeddings have as many directions as training clips, or
# more, most of them noise.
MOST_COMPONENTS = 1024
BLOCK = 1 << 16  # rows that are scaled at a time, so that float64 copies of large sets stay small


@dataclass(frozen=True)
class Scaler:
    """``((embedding - mean) / scale) @ rotation``, then to a common length if `is_unit_length`.

    Attributes:
        mean, scale: (D,) float64.
        rotation: (D, K) float64, K = min(D, MOST_COMPONENTS); None: no rotation.
        is_unit_length: every row is brought to the length sqrt(D), the average length of whitened rows. In speaker
            recognition: "length normalization" (Garcia-Romero & Espy-Wilson 2011).
    """

    mean: Array
    scale: Array
    rotation: Array | None = None
    is_unit_length: bool = False

    def __call__(self, embeddings: Array) -> Array:
        """(N, D) embeddings -> (N, `width`) float32."""
        scaled = np.empty((len(embeddings), self.width), np.float32)
        with one_blas_thread():
            for start in range(0, len(embeddings), BLOCK):
                rows = (embeddings[start : start + BLOCK].astype(np.float64) - self.mean) / self.scale
                if self.rotation is not None:
                    rows = rows @ self.rotation
                if self.is_unit_length:
                    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
                    rows *= np.sqrt(rows.shape[1]) / np.maximum(lengths, 1e-12)
                scaled[start : start + BLOCK] = rows
        return scaled

    @property
    def width(self) -> int:
        """Numbers per scaled row."""
        return len(self.mean) if self.rotation is None else self.rotation.shape[1]


def fit_scaler(kind: ScalerName, train: Array, shrinkage: float | None = None, is_unit_length: bool = False) -> Scaler:
    """Fit a scaler on training rows.

    Args:
        kind: ``"standard"``: zero mean and unit variance, scikit-learn's StandardScaler. ``"whiten"``: after that,
            the principal components are scaled to unit variance too; of embeddings wider than MOST_COMPONENTS, only that
            many of the largest are kept. ``"none"``: unchanged.
        train: (N, D) embeddings.
        shrinkage: for ``"whiten"``: how far the correlation matrix C is shrunk towards the identity, in (0, 1]:
            ``(1 - shrinkage) * C + shrinkage * I``, as Ledoit and Wolf (2004) do; 1: no whitening. Without it, the
            directions of least variance, which are noise, would be amplified.
    """
    size = train.shape[1]
    if kind == "none":
        return Scaler(np.zeros(size), np.ones(size), None, is_unit_length)
    from sklearn.preprocessing import StandardScaler  # takes a second to import, and many commands fit nothing

    standard = StandardScaler().fit(train.astype(np.float64))
    if kind == "standard":
        return Scaler(standard.mean_, standard.scale_, None, is_unit_length)
    if kind != "whiten" or shrinkage is None or not 0 < shrinkage <= 1:
        raise ValueError(f"no such scaler: {kind}, shrinkage {shrinkage}; choose one of {', '.join(SCALERS)}")
    with one_blas_thread():
        variances, directions = _principal_components(standard.transform(train.astype(np.float64)), shrinkage)
    return Scaler(standard.mean_, standard.scale_, directions / np.sqrt(variances), is_unit_length)


def _principal_components(rows: Array, shrinkage: float) -> tuple[Array, Array]:
    """The variances (K,) after shrinkage and the directions (D, K) of the largest principal components of (N, D) rows,
    in increasing order. If there are fewer than K, the missing directions are 0."""
    count, size = rows.shape
    if size <= MOST_COMPONENTS:
        return np.linalg.eigh((1 - shrinkage) * (rows.T @ rows / count) + shrinkage * np.eye(size))
    # The products of the rows have the same eigenvalues as the correlation matrix, and may be fewer.
    by_row = count < size
    products = (rows @ rows.T if by_row else rows.T @ rows) / count
    kept = min(MOST_COMPONENTS, count - 1)
    from scipy.linalg import eigh

    variances, vectors = eigh(products, subset_by_index=(len(products) - kept, len(products) - 1))
    if by_row:
        vectors = rows.T @ vectors
        vectors /= np.maximum(np.linalg.norm(vectors, axis=0), 1e-12)
    missing = MOST_COMPONENTS - kept
    shrunk = (1 - shrinkage) * np.pad(np.maximum(variances, 0), (missing, 0)) + shrinkage
    return shrunk, np.pad(vectors, ((0, 0), (missing, 0)))


@cache
def _controller() -> ThreadpoolController:
    import scipy.linalg.cython_blas  # noqa: F401  # which compiled steps call: only libraries that are loaded are known

    return ThreadpoolController()


def one_blas_thread() -> contextlib.AbstractContextManager[object]:
    """Linear algebra on one thread: several would round differently, and so give other heads on another machine."""
    limit: contextlib.AbstractContextManager[object] = _controller().limit(limits=1, user_api="blas")
    return limit
