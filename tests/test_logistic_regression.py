"""Logistic regression: the solution is scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression as Reference

from common.arrays import Array
from common.evaluation import logistic_regression
from common.evaluation.logistic_regression import LogisticRegression


def correlated(n_clips: int, size: int, n_classes: int) -> tuple[Array, Array]:
    """Overlapping classes in directions of very different spreads."""
    rng = np.random.default_rng(n_clips)
    labels = np.arange(n_clips) % n_classes
    rows = rng.standard_normal((n_classes, size))[labels] + 2 * rng.standard_normal((n_clips, size))
    mixed = rows @ np.linalg.qr(rng.standard_normal((size, size)))[0] * np.geomspace(0.05, 3, size)
    return (mixed @ np.linalg.qr(rng.standard_normal((size, size)))[0]).astype(np.float32), labels


@pytest.mark.parametrize(
    ("n_clips", "size", "n_classes"), [(300, 24, 5), (200, 24, 2), (30, 100, 3)], ids=["usual", "two classes", "wide"]
)
def test_the_solution_is_that_of_scikit_learn(n_clips: int, size: int, n_classes: int) -> None:
    rows, labels = correlated(n_clips, size, n_classes)
    fitted = LogisticRegression.fit(rows, labels)
    reference = Reference(max_iter=100_000, tol=1e-10).fit(rows.astype(np.float64), labels)
    assert fitted.converged
    weights, biases = fitted.weights, fitted.biases
    if n_classes == 2:  # scikit-learn keeps the difference
        weights, biases = weights[:, 1:] - weights[:, :1], biases[1:] - biases[:1]
    # Only differences between the biases of classes matter; a constant is left over.
    np.testing.assert_allclose(weights.T, reference.coef_, atol=2e-4 * np.abs(reference.coef_).max())
    centred = biases - (biases.mean() if n_classes > 2 else 0)
    np.testing.assert_allclose(centred, reference.intercept_, atol=1e-3)
    assert np.array_equal(fitted.predict(rows), reference.predict(rows))


def test_labels_need_not_be_all_classes() -> None:
    rows, labels = correlated(60, 10, 3)
    fitted = LogisticRegression.fit(rows, np.array([2, 5, 9])[labels])
    assert set(fitted.predict(rows)) <= {2, 5, 9}


def test_a_fit_that_stops_too_early_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic_regression, "MOST_STEPS", 2)
    assert not LogisticRegression.fit(*correlated(300, 24, 5)).converged
