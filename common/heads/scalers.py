"""Scaling of embeddings before a head, fitted on only the training rows: standardised, whitened, or unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from sklearn.preprocessing import StandardScaler

from common.arrays import Array
from common.config import ScalerName

SCALERS = get_args(ScalerName)
SHRINKAGES = (0.3, 0.1, 0.03, 0.01, 0.003)  # validation data choose one of them; the first if tied
DEFAULT_SHRINKAGE = 0.1  # if there are no validation data
BLOCK = 1 << 16  # rows that are scaled at a time, so that float64 copies of large sets stay small


@dataclass(frozen=True)
class Scaler:
    """``((embedding - mean) / scale) @ rotation``, then to a common length if `is_unit_length`.

    Attributes:
        mean, scale: (D,) float64.
        rotation: (D, D) float64; None: no rotation.
        is_unit_length: every row is brought to the length sqrt(D), the average length of whitened rows. In speaker
            recognition: "length normalization" (Garcia-Romero & Espy-Wilson 2011).
    """

    mean: Array
    scale: Array
    rotation: Array | None = None
    is_unit_length: bool = False

    def __call__(self, embeddings: Array) -> Array:
        """(N, D) embeddings -> (N, D) float32."""
        scaled = np.empty(embeddings.shape, np.float32)
        for start in range(0, len(embeddings), BLOCK):
            rows = (embeddings[start : start + BLOCK].astype(np.float64) - self.mean) / self.scale
            if self.rotation is not None:
                rows = rows @ self.rotation
            if self.is_unit_length:
                lengths = np.linalg.norm(rows, axis=1, keepdims=True)
                rows *= np.sqrt(rows.shape[1]) / np.maximum(lengths, 1e-12)
            scaled[start : start + BLOCK] = rows
        return scaled


def fit_scaler(kind: ScalerName, train: Array, shrinkage: float | None = None, is_unit_length: bool = False) -> Scaler:
    """Fit a scaler on training rows.

    Args:
        kind: ``"standard"``: zero mean and unit variance, scikit-learn's StandardScaler. ``"whiten"``: after that,
            the principal components are scaled to unit variance too. ``"none"``: unchanged.
        train: (N, D) embeddings.
        shrinkage: for ``"whiten"``: how far the correlation matrix C is shrunk towards the identity, in (0, 1]:
            ``(1 - shrinkage) * C + shrinkage * I``, as Ledoit and Wolf (2004) do; 1: no whitening. Without it, the
            directions of least variance, which are noise, would be amplified.
    """
    size = train.shape[1]
    if kind == "none":
        return Scaler(np.zeros(size), np.ones(size), None, is_unit_length)
    standard = StandardScaler().fit(train.astype(np.float64))
    if kind == "standard":
        return Scaler(standard.mean_, standard.scale_, None, is_unit_length)
    if kind != "whiten" or shrinkage is None or not 0 < shrinkage <= 1:
        raise ValueError(f"no such scaler: {kind}, shrinkage {shrinkage}; choose one of {', '.join(SCALERS)}")
    rows = standard.transform(train.astype(np.float64))
    correlation = rows.T @ rows / len(rows)
    variances, directions = np.linalg.eigh((1 - shrinkage) * correlation + shrinkage * np.eye(size))
    return Scaler(standard.mean_, standard.scale_, directions / np.sqrt(variances), is_unit_length)
