"""Logistic regression by L-BFGS on a well-conditioned form of scikit-learn's problem.

The problem is that of scikit-learn's LogisticRegression with C = 1: the sum of the cross-entropies, and half the squared
weights without the biases. Embeddings are correlated, which makes it slow to solve as it stands: on 1,600 clips of ESC-50,
scikit-learn takes 500 steps to its default tolerance. In the directions of the principal components, each divided by about
the curvature there, it takes half of that to a tolerance a hundred times smaller. The solution is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize

from common.arrays import Array

MOST_STEPS = 1000
TOLERANCE = 1e-6  # largest component of the gradient of the mean cross-entropy
# The cross-entropy's curvature at the solution is about this divided by the number of classes, since most training clips
# are decided there. It changes the number of steps, not the solution.
CURVATURE = 0.05


@dataclass(frozen=True)
class LogisticRegression:
    """A fitted logistic regression.

    Attributes:
        classes: (K,) labels that it knows.
        weights, biases: (D, K) and (K,) float64.
        converged: whether the tolerance was reached.
    """

    classes: Array
    weights: Array
    biases: Array
    converged: bool

    @classmethod
    def fit(cls, rows: Array, labels: Array) -> LogisticRegression:
        """Fit on (N, D) scaled embeddings and (N,) labels."""
        classes, targets = np.unique(labels, return_inverse=True)
        rows = rows.astype(np.float64)
        count, size = rows.shape
        # The weights of a solution are sums of rows, so directions without rows can be left out.
        rotation = np.linalg.eigh(rows.T @ rows)[1] if count > size else np.linalg.svd(rows, full_matrices=False)[2].T
        rotated = rows @ rotation
        scale = 1 / np.sqrt(1 + CURVATURE / len(classes) * np.square(rotated).sum(axis=0))
        # scikit-learn gives two classes one row of weights, their difference; half of it each has half the squares.
        penalty = (2.0 if len(classes) == 2 else 1.0) * scale**2
        problem = _Problem(torch.from_numpy(rotated * scale), torch.from_numpy(targets), torch.from_numpy(penalty))
        solved = minimize(
            problem.value_and_gradient,
            np.zeros((len(scale) + 1) * len(classes)),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": MOST_STEPS, "maxfun": 2 * MOST_STEPS, "gtol": TOLERANCE, "ftol": 0.0},
        )
        solution = solved.x.reshape(-1, len(classes))
        weights = rotation @ (scale[:, None] * solution[:-1])
        return cls(classes, weights, solution[-1], bool(np.abs(solved.jac).max() <= TOLERANCE))

    def predict(self, rows: Array) -> Array:
        """(M, D) -> (M,) labels."""
        predicted: Array = self.classes[(rows @ self.weights + self.biases).argmax(axis=1)]
        return predicted


@dataclass(frozen=True)
class _Problem:
    """What is minimised: the mean over rows.

    Attributes:
        rows: (N, R) float64.
        targets: (N,) places of the classes.
        penalty: (R,) factors of the squared weights.
    """

    rows: torch.Tensor
    targets: torch.Tensor
    penalty: torch.Tensor

    def value_and_gradient(self, parameters: Array) -> tuple[float, Array]:
        """Of (R + 1) x K weights and, in the last row, biases."""
        own = torch.from_numpy(parameters).view(len(self.penalty) + 1, -1)
        weights, biases = own[:-1], own[-1]
        log_probabilities = torch.addmm(biases, self.rows, weights).log_softmax(dim=1)
        chosen = log_probabilities.gather(1, self.targets[:, None])
        shrunk = self.penalty[:, None] * weights
        value = 0.5 * (weights * shrunk).sum() - chosen.sum()
        error = log_probabilities.exp_()
        error.scatter_add_(1, self.targets[:, None], torch.full_like(chosen, -1.0))
        gradient = torch.cat([self.rows.T @ error + shrunk, error.sum(dim=0, keepdim=True)])
        return float(value) / len(self.rows), (gradient / len(self.rows)).numpy().ravel()
