"""Cheap reference classifiers, in addition to the heads: scikit-learn's, with its defaults, on the same rows, scaled alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from common.arrays import Array
from common.evaluation.logistic_regression import LogisticRegression
from common.evaluation.outcomes import Outcome
from common.features import FeatureSet
from common.heads import Job, Recipe, fit_own_scaler
from common.progress import progress_bar

PROBES: dict[str, Callable[[int], Any]] = {  # of the number of training rows
    "logistic_regression": lambda _: LogisticRegression,
    "nearest_neighbours": lambda n_train: KNeighborsClassifier(min(5, n_train)),
    "nearest_centroid": lambda _: NearestCentroid(),
}


def fit_probe(name: str, features: FeatureSet, jobs: Sequence[Job], recipe: Recipe) -> list[Outcome]:
    """Fit a probe on each job's training and validation rows, and predict its test rows.

    Args:
        name: a key of PROBES.
        recipe: whose scaler is used.
    """
    raw, labels = features.features.numpy(), features.labels.numpy()
    predicted: dict[tuple[bytes, bytes], tuple[Array, bool | None]] = {}
    outcomes = []
    for job in progress_bar(iterable=jobs, desc=f"fitting {name}", unit="fit", leave=False):
        train = job.split.learnable
        key = (train.tobytes(), job.split.test.tobytes())
        if key not in predicted:  # nothing in a probe is random: another seed gives the same for the same rows
            scaler = fit_own_scaler(recipe, raw[train])
            probe = PROBES[name](len(train)).fit(scaler(raw[train]), labels[train])
            converged = getattr(probe, "converged", None)
            predicted[key] = probe.predict(scaler(raw[job.split.test])), converged
        predictions, converged = predicted[key]
        outcomes.append(Outcome(job.seed, job.split.name, len(train), job.split.test, predictions, converged=converged))
    return outcomes
