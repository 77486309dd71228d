"""What one task's features lose when they are scaled, or reduced, by what was fitted on another task's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from analysis.similarity import principal_subspace
from common.features import FeatureSet
from common.protocols import make_jobs, outcome_of
from common.recipes import Recipe, fit_own_scaler, recipe_for
from common.results import Outcome, comparison_record
from common.scalers import fit_scaler
from common.stack import Job
from common.train import fit_chosen

KIND = "linear"  # the head that judges


def transfer_costs(
    target: FeatureSet, others: Mapping[str, FeatureSet], config: Mapping[str, Any]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Accuracy of the linear head on `target` with the scaler, and the principal subspace, of each other task.

    Args:
        target: divided by its task.
        others: name -> features of other data, all of whose rows may be fitted on.
        config: an effective configuration; its recipe and first seed are used.

    Returns:
        ``scaler`` and ``subspace`` -> name of the other task, or ``own`` -> ``accuracy``, and but for ``own`` the
        ``difference`` to it with its 95 % ``interval``. The own ones are fitted on each split's training rows.
    """
    recipe = recipe_for(KIND, config)
    jobs, *_ = make_jobs("official", target, config["train_test_split"], [config["random_seed"]])
    raw = target.features.numpy()
    costs: dict[str, dict[str, dict[str, Any]]] = {}
    for what, reduce in (("scaler", False), ("subspace", True)):
        own: list[Outcome] = []
        for job in jobs:
            transformed = _transformed(raw, raw[job.split.train], recipe, reduce)
            own += _fit(target, transformed, [job], recipe, config)
        costs[what] = {"own": {"accuracy": _accuracy(own, target)}}
        for name, other in others.items():
            transformed = _transformed(raw, other.features.numpy(), recipe, reduce)
            outcomes = _fit(target, transformed, jobs, recipe, config)
            compared = comparison_record(own, outcomes, target)
            costs[what][name] = {
                "accuracy": _accuracy(outcomes, target),
                "difference": compared["difference"],
                "interval": compared["interval"],
            }
    return costs


def _transformed(raw: np.ndarray, fitted_on: np.ndarray, recipe: Recipe, reduce: bool) -> np.ndarray:
    """Rows scaled, or standardised and reduced to the first principal directions, as fitted on other rows."""
    if not reduce:
        return fit_own_scaler(recipe, fitted_on)(raw)
    # Directions of standardised rows: whitened ones have no principal directions.
    standard = fit_scaler("standard", fitted_on)
    return standard(raw) @ principal_subspace(standard(fitted_on).astype(np.float64)).astype(np.float32)


def _fit(
    target: FeatureSet, transformed: np.ndarray, jobs: Sequence[Job], recipe: Recipe, config: Mapping[str, Any]
) -> list[Outcome]:
    features = replace(target, features=torch.from_numpy(np.ascontiguousarray(transformed, np.float32)))
    as_they_are = replace(recipe, scaler="none", shrinkage=None, relative_shrinkage=None, is_unit_length=False)
    pairs = fit_chosen(KIND, features, jobs, as_they_are, torch.device(config["device"]), config["refit"])
    return [outcome_of(*pair) for pair in pairs]


def _accuracy(outcomes: Sequence[Outcome], target: FeatureSet) -> float:
    labels = target.labels.numpy()
    return float(np.mean([(labels[each.rows] == each.predictions).mean() for each in outcomes]))
