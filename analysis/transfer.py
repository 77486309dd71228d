"""What a task loses when its features are scaled, or reduced, with statistics fitted on another task's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.linalg import eigh

from common.arrays import Array
from common.config import FitConfig
from common.datasets import Prepared
from common.evaluation.outcomes import HeadFitter, Outcome
from common.evaluation.protocol import plan_fits
from common.evaluation.scores import compare_heads
from common.features import FeatureSet
from common.heads import HeadKind, Job, Recipe, fit_recipe_scaler, fit_scaler, recipe_for

PRINCIPAL = 32  # components of a principal subspace
KIND: HeadKind = "linear"  # the head that is scored


@dataclass(frozen=True)
class TransferCost:
    """Accuracy with another task's scaler or subspace, and the difference from the task's own with 95 % interval."""

    accuracy: float
    difference: float
    interval: tuple[float, float] | None

    @property
    def is_uncertain(self) -> bool:
        """Whether the interval covers 0, or is unknown."""
        return self.interval is None or self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class TransferCosts:
    """Accuracy with the task's own scaler or subspace, and with that of each other task."""

    own: float
    others: dict[str, TransferCost]


def transfer_costs(
    target: FeatureSet, others: Mapping[str, FeatureSet], config: FitConfig, device: torch.device
) -> dict[str, TransferCosts]:
    """Accuracy of the linear head on `target` with the scaler, and the principal subspace, of each other task.

    Args:
        target: divided by its task.
        others: name -> features of other data, all of whose rows may be fitted on.
        config: its recipe and first seed are used.

    Returns:
        The costs of ``"scaler"`` and ``"subspace"``. The task's own ones are fitted on each split's training rows.
    """
    recipe = recipe_for(KIND, config)
    jobs = plan_fits("official", Prepared(target), config.train_test_split, [config.random_seed]).jobs
    # Rows are already scaled, so the recipe must not scale them.
    unscaled = config.model_copy(update={"scaler": "none", "whiten_eps": None})
    fitter = HeadFitter(unscaled, device)
    raw = target.features.numpy()

    def fit(transformed: Array, its_jobs: Sequence[Job]) -> list[Outcome]:
        rows = torch.from_numpy(np.ascontiguousarray(transformed, np.float32))
        return fitter.outcomes(KIND, replace(target, features=rows), its_jobs)

    costs = {}
    for what, is_reduced in (("scaler", False), ("subspace", True)):
        baseline: list[Outcome] = []
        for job in jobs:
            baseline += fit(_transformed(raw, raw[job.split.train], recipe, is_reduced), [job])
        by_task = {}
        for name, other in others.items():
            outcomes = fit(_transformed(raw, other.features.numpy(), recipe, is_reduced), jobs)
            compared = compare_heads(baseline, outcomes, target)
            by_task[name] = TransferCost(_accuracy(outcomes, target), compared.difference, compared.interval)
        costs[what] = TransferCosts(_accuracy(baseline, target), by_task)
    return costs


def _transformed(raw: Array, fitted_on: Array, recipe: Recipe, is_reduced: bool) -> Array:
    """Rows scaled, or standardised and reduced to the first principal directions, as fitted on other rows."""
    if not is_reduced:
        return fit_recipe_scaler(recipe, fitted_on)(raw)
    # Directions of standardised rows: whitened ones have no principal directions.
    standard = fit_scaler("standard", fitted_on)
    reduced: Array = standard(raw) @ principal_subspace(standard(fitted_on).astype(np.float64)).astype(np.float32)
    return reduced


def principal_subspace(rows: Array, size: int = PRINCIPAL) -> Array:
    """(D, k) orthonormal directions of the largest variance; k is `size`, or fewer if there are fewer rows."""
    centred = rows - rows.mean(axis=0)
    size = min(size, len(rows) - 1, rows.shape[1])
    directions: Array = eigh(centred.T @ centred)[1]  # by increasing variance
    return directions[:, ::-1][:, :size]


def _accuracy(outcomes: Sequence[Outcome], target: FeatureSet) -> float:
    labels = target.labels.numpy()
    return float(np.mean([(labels[outcome.rows] == outcome.predictions).mean() for outcome in outcomes]))
