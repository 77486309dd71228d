"""What tests of heads, evaluation and analyses need: small features, configurations, the classification script."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from common.cli import classify_main
from common.config import FitConfig, load_config
from common.datasets import Prepared
from common.evaluation import plots
from common.evaluation.protocol import ProtocolRun, run_protocol
from common.features import FeatureSet
from esc50_feature_fc.esc50 import TASK
from tests.support.samples import made_up_features
from tests.support.scripts import Result, call

CPU = torch.device("cpu")
SIZE = 24  # numbers per clip: enough to tell four classes apart, and fitted in no time


@contextlib.contextmanager
def on_one_thread() -> Iterator[None]:
    """Compute on one thread. Threads that wait for each other use their cores all the time, and on a busy machine most
    of that time is waiting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):  # of scikit-learn and of linear algebra
            yield
    finally:
        torch.set_num_threads(threads)


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Let figures be empty files: drawing them takes longer than all the rest of a small run."""

    def write(plot: Callable[..., None], *arguments: Any) -> None:
        inspect.signature(plot).bind(*arguments)
        Path(arguments[-1]).touch()

    for name in (
        "plot_confusion",
        "plot_curves",
        "plot_learning_curves",
        "plot_per_class",
        "plot_reliability",
        "plot_label_sets",
    ):
        plot = getattr(plots, name)
        patch.setattr(f"common.evaluation.plots.{name}", partial(write, plot))


def small_features(n_classes: int = 4, per_fold: int = 6, folds: int = 3) -> FeatureSet:
    """Overlapping classes: every fold holds `per_fold` clips of each class."""
    return made_up_features(n_classes, per_fold, folds, SIZE)


def grouped_features(folds: int = 5, per_fold: int = 6) -> FeatureSet:
    """Clips in pairs that are nearly the same; a pair is a group and is in one fold."""
    features = small_features(folds=folds, per_fold=per_fold)
    twins = torch.arange(len(features)) // 2 * 2
    return replace(
        features,
        features=features.features[twins] + 0.05 * features.features,
        groups=[f"source{twin}" for twin in twins.tolist()],
    )


def several_labels(features: FeatureSet) -> FeatureSet:
    """The same clips with one to three labels, which their features tell, and the first with none; six clips a group."""
    size = len(features)
    labels = torch.nn.functional.one_hot(features.labels, len(features.class_names)).bool()
    values, rng = features.features.clone(), np.random.default_rng(5)
    for row, other in enumerate(rng.permutation(size).tolist()):
        if row % 2:  # mixed with another clip of its fold
            same = features.folds is None or features.folds[row] == features.folds[other]
            other = other if same else row
            labels[row] |= labels[other]
            values[row] += features.features[other]
    labels[0] = False
    return replace(features, features=values, labels=labels, groups=[f"g{row // 6}" for row in range(size)])


def noise_like(features: FeatureSet, seed: int, size: int = SIZE) -> FeatureSet:
    """The same clips with features that say nothing of their classes."""
    values = np.random.default_rng(seed).standard_normal((len(features), size))
    return replace(features, features=torch.from_numpy(values).float())


def fit_config(**changes: Any) -> FitConfig:
    """A configuration that fits quickly."""
    flags = {"epochs": 4, "device": "cpu", "hidden_dim": 16, "feature_dim": SIZE}
    return load_config(FitConfig, TASK.config_file, None, flags).model_copy(update=changes)


def run(
    features: FeatureSet, name: Any = "official", others: dict[str, FeatureSet] | None = None, **changes: Any
) -> ProtocolRun:
    """One protocol with a quick configuration; `changes` are of the configuration."""
    return run_protocol(name, Prepared(features), fit_config(**changes), CPU, controls=others)


def saved(features: FeatureSet, path: Path) -> Path:
    """Write features as an extraction of ESC-50 would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(features, meta={"dataset": "esc50", **features.meta}).save(path)
    return path


def classify(*flags: object) -> Result:
    """What the classification script of ESC-50 does with these flags."""
    return call(partial(classify_main, TASK), "--feature-dim", SIZE, "--device", "cpu", *flags)
