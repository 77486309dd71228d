"""Heads and probes are fitted, and predict their test clips."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestCentroid

from common.arrays import Array
from common.config import FitConfig
from common.features import FeatureSet
from common.heads import ChosenHead, HeadKind, Job, Recipe, fit_chosen, fit_recipe_scaler, recipe_for
from common.progress import progress_bar


@dataclass(frozen=True)
class Outcome:
    """What a fitted head, probe or baseline predicts for its split's test clips."""

    seed: int
    split: str
    n_train: int  # the number of rows it was fitted on
    rows: Array  # (M,) int64, the test rows
    predictions: Array  # (M,) int64, indices of classes; or (M, C) bool with several labels a clip
    # (M, C) float32; None for probes and baselines, but with several labels a clip what ranks the clips.
    logits: Array | None = None
    facts: Mapping[str, object] = field(default_factory=dict)  # more fields of `FitRecord`

    @classmethod
    def of(cls, head: ChosenHead, is_multilabel: bool) -> Outcome:
        job, logits, curves = head.final.job, head.final.test_logits.numpy(), head.choosing.curves
        facts = {"epoch": head.final.epoch, "shrinkage": job.shrinkage, "train_loss": curves.train_loss}
        if is_multilabel:
            predictions, facts["valid_macro_map"] = logits > 0, curves.valid
        else:
            predictions, test_accuracy = logits.argmax(axis=1), head.final.curves.test
            best = max(test_accuracy, default=float("nan"))
            facts |= {
                # What the original project reported: the epoch chosen by the test clips. It is not a score.
                "best_test_accuracy_over_epochs": best,
                "best_test_epoch": 1 + test_accuracy.index(best) if test_accuracy else None,
                "valid_accuracy": curves.valid,
                "test_accuracy_over_epochs": test_accuracy,
            }
        return cls(job.seed, job.split.name, len(job.split.train), job.split.test, predictions, logits, facts)


@dataclass(frozen=True)
class HeadFitter:
    """Fits heads by the recipe of a configuration, and on the device."""

    config: FitConfig
    device: torch.device

    def fit(self, kind: HeadKind, features: FeatureSet, jobs: Sequence[Job]) -> list[ChosenHead]:
        return fit_chosen(kind, features, jobs, recipe_for(kind, self.config), self.device, self.config.refit)

    def outcomes(self, kind: HeadKind, features: FeatureSet, jobs: Sequence[Job]) -> list[Outcome]:
        return [Outcome.of(head, features.is_multilabel) for head in self.fit(kind, features, jobs)]


def probes_of(features: FeatureSet) -> dict[str, Callable[[int], Any]]:
    """Name -> a scikit-learn classifier for a number of training rows; of several labels, what ranks the clips of a class."""
    if features.is_multilabel:  # a nearest centroid is defined for one label
        return {
            "logistic_regression": lambda _: OneVsRestClassifier(LogisticRegression(max_iter=1000)),
            "nearest_neighbours": lambda n_train: KNeighborsRegressor(min(5, n_train)),
        }
    return {
        "logistic_regression": lambda _: LogisticRegression(max_iter=1000),
        "nearest_neighbours": lambda n_train: KNeighborsClassifier(min(5, n_train)),
        "nearest_centroid": lambda _: NearestCentroid(),
    }


def fit_probe(name: str, features: FeatureSet, jobs: Sequence[Job], recipe: Recipe) -> list[Outcome]:
    """Fit a classifier of `probes_of` on each job's training and validation rows, scaled as by `recipe`."""
    raw, labels = features.features.numpy(), features.labels.numpy()
    fitted: dict[tuple[bytes, bytes], tuple[Array, Array | None, Mapping[str, object]]] = {}
    outcomes = []
    for job in progress_bar(iterable=jobs, desc=f"fitting {name}", unit="fit", leave=False):
        train = job.split.learnable
        key = (train.tobytes(), job.split.test.tobytes())
        if key not in fitted:  # probes are deterministic: seeds differ only by their rows
            scaler = fit_recipe_scaler(recipe, raw[train])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # recorded instead
                probe = probes_of(features)[name](len(train)).fit(scaler(raw[train]), labels[train])
            test = scaler(raw[job.split.test])
            parts = [part for part in getattr(probe, "estimators_", [probe]) if isinstance(part, LogisticRegression)]
            facts = {"converged": all(part.n_iter_.max() < part.max_iter for part in parts)} if parts else {}
            if features.is_multilabel:
                ranks = probe.predict_proba(test) if hasattr(probe, "predict_proba") else probe.predict(test)
                fitted[key] = ranks > 0.5, ranks.astype(np.float32), facts
            else:
                fitted[key] = probe.predict(test), None, facts
        outcomes.append(Outcome(job.seed, job.split.name, len(train), job.split.test, *fitted[key]))
    return outcomes


def baseline(features: FeatureSet, job: Job) -> Outcome:
    """What needs no features: the most frequent class of the training side, or how frequent every label is there."""
    train, test = job.split.learnable, job.split.test
    labels = features.labels.numpy()[train]
    if not features.is_multilabel:
        return Outcome(job.seed, job.split.name, len(train), test, np.full(len(test), np.bincount(labels).argmax()))
    shares = np.tile(labels.mean(axis=0, dtype=np.float32), (len(test), 1))
    return Outcome(job.seed, job.split.name, len(train), test, shares > 0.5, shares)
