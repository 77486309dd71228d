"""Heads and probes are fitted, and predict their test clips."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from common.arrays import Array
from common.config import FitConfig
from common.features import FeatureSet
from common.heads import ChosenHead, HeadKind, Job, Recipe, fit_chosen, fit_recipe_scaler, recipe_for
from common.progress import progress_bar

# name -> a scikit-learn classifier for a number of training rows
PROBES: dict[str, Callable[[int], Any]] = {
    "logistic_regression": lambda _: LogisticRegression(max_iter=1000),
    "nearest_neighbours": lambda n_train: KNeighborsClassifier(min(5, n_train)),
    "nearest_centroid": lambda _: NearestCentroid(),
}


@dataclass(frozen=True)
class Outcome:
    """What a fitted head, probe or baseline predicts for its split's test clips.

    Attributes:
        n_train: the number of rows it was fitted on.
        rows: (M,) int64, the test rows.
        predictions: (M,) int64, indices of classes.
        logits: (M, C) float32; None for probes and baselines.
        facts: more fields of `FitRecord`.
    """

    seed: int
    split: str
    n_train: int
    rows: Array
    predictions: Array
    logits: Array | None = None
    facts: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, head: ChosenHead) -> Outcome:
        job, logits = head.final.job, head.final.test_logits.numpy()
        test_accuracy = head.final.curves.test_accuracy
        best = max(test_accuracy, default=float("nan"))
        facts = {
            "epoch": head.final.epoch,
            "shrinkage": job.shrinkage,
            # What the original project reported: the epoch chosen by the test clips. It is not a score.
            "best_test_accuracy_over_epochs": best,
            "best_test_epoch": 1 + test_accuracy.index(best) if test_accuracy else None,
            "train_loss": head.choosing.curves.train_loss,
            "valid_accuracy": head.choosing.curves.valid_accuracy,
            "test_accuracy_over_epochs": test_accuracy,
        }
        predictions, n_train = logits.argmax(axis=1), len(job.split.train)
        return cls(job.seed, job.split.name, n_train, job.split.test, predictions, logits, facts)


@dataclass(frozen=True)
class HeadFitter:
    """Fits heads by the recipe of a configuration, and on the device."""

    config: FitConfig
    device: torch.device

    def fit(self, kind: HeadKind, features: FeatureSet, jobs: Sequence[Job]) -> list[ChosenHead]:
        """Fit one head per job."""
        return fit_chosen(kind, features, jobs, recipe_for(kind, self.config), self.device, self.config.refit)

    def outcomes(self, kind: HeadKind, features: FeatureSet, jobs: Sequence[Job]) -> list[Outcome]:
        """Fit one head per job; their outcomes."""
        return [Outcome.of(head) for head in self.fit(kind, features, jobs)]


def fit_probe(name: str, features: FeatureSet, jobs: Sequence[Job], recipe: Recipe) -> list[Outcome]:
    """Fit the classifier ``PROBES[name]`` on each job's training and validation rows, scaled as by `recipe`."""
    raw, labels = features.features.numpy(), features.labels.numpy()
    predicted: dict[tuple[bytes, bytes], tuple[Array, Mapping[str, object]]] = {}
    outcomes = []
    for job in progress_bar(iterable=jobs, desc=f"fitting {name}", unit="fit", leave=False):
        train = job.split.learnable
        key = (train.tobytes(), job.split.test.tobytes())
        if key not in predicted:  # probes are deterministic: seeds differ only by their rows
            scaler = fit_recipe_scaler(recipe, raw[train])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # recorded instead
                probe = PROBES[name](len(train)).fit(scaler(raw[train]), labels[train])
            is_iterative = isinstance(probe, LogisticRegression)
            noted = {"converged": bool(probe.n_iter_.max() < probe.max_iter)} if is_iterative else {}
            predicted[key] = probe.predict(scaler(raw[job.split.test])), noted
        predictions, facts = predicted[key]
        outcomes.append(Outcome(job.seed, job.split.name, len(train), job.split.test, predictions, facts=facts))
    return outcomes
