"""Scaling of embeddings before a head, fitted on training rows only: standardised, whitened, or unchanged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import get_args

import numpy as np
from threadpoolctl import ThreadpoolController

from common.arrays import Array
from common.config import ScalerName

SCALERS = get_args(ScalerName)
SHRINKAGES = (0.3, 0.1, 0.03, 0.01, 0.003)  # validation rows choose; the first if tied
DEFAULT_SHRINKAGE = 0.1  # without validation rows
MOST_COMPONENTS = 1024  # kept by whitening: wider embeddings have about as many directions as clips, mostly noise
BLOCK = 1 << 13  # rows scaled at a time: float64 copies of large sets are large
MOST_AT_ONCE = 300_000  # rows; no task has more for training


@dataclass(frozen=True)
class Scaler:
    """``((embedding - mean) / scale) @ rotation``, then to a common length if `is_unit_length`."""

    # mean, scale: (D,) float64
    mean: Array
    scale: Array
    rotation: Array | None = None  # (D, K) float64, K = min(D, MOST_COMPONENTS); None: no rotation
    # Every row is brought to the length sqrt(K), the average of whitened rows; in speaker recognition, "length
    # normalization" (Garcia-Romero & Espy-Wilson 2011).
    is_unit_length: bool = False

    def __call__(self, embeddings: Array, out: Array | None = None) -> Array:
        """(N, D) embeddings -> (N, `width`) float32, written into `out` if there is one."""
        scaled = np.empty((len(embeddings), self.width), np.float32) if out is None else out
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


def fit_scaler(
    kind: ScalerName,
    train: Array,
    shrinkage: float = DEFAULT_SHRINKAGE,
    is_unit_length: bool = False,
    rows: Array | None = None,
) -> Scaler:
    """Fit a scaler on (N, D) training rows; more than MOST_AT_ONCE are read in blocks.

    Args:
        kind: ``"standard"``: zero mean and unit variance. ``"whiten"``: then also the principal components to unit variance,
            of which at most the MOST_COMPONENTS largest are kept. ``"none"``.
        shrinkage: for ``"whiten"``, in (0, 1]: the correlation matrix C becomes ``(1 - shrinkage) * C + shrinkage * I``, as
            by Ledoit and Wolf (2004); otherwise directions of least variance, which are noise, would be amplified.
        rows: (K,) the rows of `train` to fit on; None: all.
    """
    size = train.shape[1]
    if kind == "none":
        return Scaler(np.zeros(size), np.ones(size), None, is_unit_length)
    from sklearn.preprocessing import StandardScaler  # takes a second to import, and many commands fit nothing

    rows = np.arange(len(train)) if rows is None else rows
    step = BLOCK if len(rows) > MOST_AT_ONCE else max(1, len(rows))
    blocks = [rows[start : start + step] for start in range(0, len(rows), step)]
    standard = StandardScaler()
    for block in blocks:
        standard.partial_fit(train[block].astype(np.float64))
    if kind == "standard":
        return Scaler(standard.mean_, standard.scale_, None, is_unit_length)
    with one_blas_thread():
        scaled = (standard.transform(train[block].astype(np.float64)) for block in blocks)
        variances, directions = _principal_components(scaled, len(rows), size, shrinkage)
    return Scaler(standard.mean_, standard.scale_, directions / np.sqrt(variances), is_unit_length)


def _principal_components(blocks: Iterator[Array], count: int, size: int, shrinkage: float) -> tuple[Array, Array]:
    """Variances (K,) after shrinkage, in increasing order, and directions (D, K) of the largest principal components of (N, D)
    rows, which come in blocks; missing directions are 0."""
    # The Gram matrix of the rows has the same eigenvalues as the correlation matrix, and may be smaller.
    by_row = size > MOST_COMPONENTS and count < size
    if by_row:
        rows = np.concatenate(list(blocks))
        products = rows @ rows.T / count
    else:
        products = sum((block.T @ block for block in blocks), start=np.zeros((size, size))) / count
    if size <= MOST_COMPONENTS:
        return np.linalg.eigh((1 - shrinkage) * products + shrinkage * np.eye(size))
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
    """Linear algebra on a single thread: the number of threads would change rounding, and so the heads."""
    limit: contextlib.AbstractContextManager[object] = _controller().limit(limits=1, user_api="blas")
    return limit
