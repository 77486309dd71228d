"""How similar two sets of features are: of different clips (distributions, subspaces), or of the same clips (CKA)."""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh

from common.arrays import Array

PRINCIPAL = 32  # components of a principal subspace


def frechet_distance(first: Array, second: Array) -> float:
    """Squared Frechet distance between two normal distributions fitted to (N, D) and (M, D) rows.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``: Dowson and Landau (1982); between audio embeddings: Kilgour et al.,
    "Frechet Audio Distance" (2019), https://arxiv.org/abs/1812.08466. With fewer rows than dimensions it is biased upward.
    """
    difference = first.mean(axis=0) - second.mean(axis=0)
    covariance, other_covariance = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    variances, directions = eigh(covariance)
    root = (directions * np.sqrt(variances.clip(0))) @ directions.T
    # The trace of (C1 C2)^(1/2), from the symmetric C1^(1/2) C2 C1^(1/2), whose eigenvalues are real.
    cross = np.sqrt(eigh(root @ other_covariance @ root, eigvals_only=True).clip(0)).sum()
    return float(difference @ difference + np.trace(covariance) + np.trace(other_covariance) - 2 * cross)


def mmd(first: Array, second: Array) -> float:
    """Squared maximum mean discrepancy, unbiased, with a Gaussian kernel as wide as the median distance of all rows.

    Gretton et al., "A Kernel Two-Sample Test" (2012), eq. 3. About 0 for samples of one distribution, where it may be
    a little below 0.
    """
    both = np.concatenate([first, second])
    squares = np.square(both).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * both @ both.T, 0)
    kernel = np.exp(-distances / max(np.median(distances[np.triu_indices_from(distances, 1)]), 1e-12))
    n, m = len(first), len(second)
    within_first = (kernel[:n, :n].sum() - n) / (n * (n - 1))
    within_second = (kernel[n:, n:].sum() - m) / (m * (m - 1))
    return float(within_first + within_second - 2 * kernel[:n, n:].mean())


def principal_subspace(rows: Array, size: int = PRINCIPAL) -> Array:
    """(D, k) orthonormal directions of the largest variance; k is `size`, or fewer if there are fewer rows."""
    centred = rows - rows.mean(axis=0)
    size = min(size, len(rows) - 1, rows.shape[1])
    directions: Array = eigh(centred.T @ centred)[1]  # by increasing variance
    return directions[:, ::-1][:, :size]


def subspace_overlap(first: Array, second: Array) -> float:
    """The mean squared cosine of the principal angles (Bjorck & Golub 1973) of two (D, k) orthonormal bases: 1 if one
    contains the other, k / D by chance."""
    return float(np.square(first.T @ second).sum() / min(first.shape[1], second.shape[1]))


def linear_cka(first: Array, second: Array) -> float:
    """Linear centred kernel alignment of (N, D) and (N, E) features of the same N clips, in [0, 1].

    Kornblith et al., "Similarity of Neural Network Representations Revisited" (2019), https://arxiv.org/abs/1905.00414,
    in its form for features: ``|Y'X|^2 / (|X'X| |Y'Y|)``. It pairs clips, so it cannot compare different ones.
    """
    centred, other_centred = first - first.mean(axis=0), second - second.mean(axis=0)
    scale = np.linalg.norm(centred.T @ centred) * np.linalg.norm(other_centred.T @ other_centred)
    return float(np.square(np.linalg.norm(other_centred.T @ centred)) / scale) if scale > 0 else float("nan")
