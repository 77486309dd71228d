"""The protocols of `analysis/suite_protocols.py`: the classifiers, divisions and choices of epoch of MTEB and X-ARES."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler
from torch import nn

from common.arrays import Array
from common.config import FitConfig
from common.datasets import Prepared
from common.evaluation.protocol import run_protocol
from common.features import FeatureSet
from common.heads import head_title
from common.progress import progress_bar

SEED = 42
MTEB_CLIPS, MTEB_FOLDS, MTEB_ITERATIONS = 8, 5, 100  # mteb 2.26, abstasks/classification.py
XARES_EPOCHS, XARES_BATCH, XARES_RATE, XARES_FALL = 10, 32, 1e-3, 0.1  # xares 0.1.3, task.py and trainer.py


@dataclass(frozen=True)
class Row:
    """One protocol's score.

    Attributes:
        suite, protocol: for readers.
        accuracy: the mean over folds (and seeds).
    """

    suite: str
    protocol: str
    accuracy: float


def official_folds(features: FeatureSet) -> list[tuple[Array, Array]]:
    """(train, test) rows of each of the data set's folds."""
    assert features.folds is not None
    folds = features.folds.numpy()
    return [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in np.unique(folds)]


def random_folds(features: FeatureSet) -> list[tuple[Array, Array]]:
    """MTEB's folds: clips at random, whatever is related."""
    return list(KFold(MTEB_FOLDS, shuffle=True, random_state=SEED).split(np.arange(len(features))))


def few_clips(labels: Array, order: list[int]) -> Array:
    """MTEB's training clips: the first MTEB_CLIPS of each class in `order`, which is shuffled in place, as MTEB does it."""
    np.random.RandomState(SEED).shuffle(order)  # MTEB's own generator
    counts = dict.fromkeys(np.unique(labels).tolist(), 0)
    kept = []
    for place in order:
        if counts[int(labels[place])] < MTEB_CLIPS:
            kept.append(place)
            counts[int(labels[place])] += 1
    return np.array(kept)


def logistic_regression(
    features: FeatureSet, folds: Sequence[tuple[Array, Array]], is_scaled: bool, is_few: bool
) -> float:
    """The mean accuracy of scikit-learn's logistic regression, with MTEB's number of iterations."""
    values, labels = features.features.numpy(), features.labels.numpy()
    order: list[int] | None = None
    accuracies = []
    for train, test in progress_bar(iterable=folds, desc="logistic regression", unit="fold", leave=False):
        if is_few:
            order = order if order is not None else list(range(len(train)))
            order = [place for place in order if place < len(train)]
            train = train[few_clips(labels[train], order)]
        scale = StandardScaler().fit(values[train]).transform if is_scaled else np.asarray
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is the protocol
            fitted = LogisticRegression(max_iter=MTEB_ITERATIONS, random_state=SEED).fit(
                scale(values[train]), labels[train]
            )
        accuracies.append(fitted.score(scale(values[test]), labels[test]))
    return float(np.mean(accuracies))


def xares_accuracies(features: FeatureSet, seeds: int) -> tuple[float, float]:
    """X-ARES' classifier on the official folds: mean accuracy of the epoch that is best on the test fold, and of the last."""
    best, last = [], []
    jobs = [(seed, fold) for seed in range(seeds) for fold in official_folds(features)]
    for seed, (train, test) in progress_bar(iterable=jobs, desc="X-ARES", unit="fit", leave=False):
        accuracies = _fit_xares(features, train, test, seed)
        best.append(max(accuracies))
        last.append(accuracies[-1])
    return float(np.mean(best)), float(np.mean(last))


def _fit_xares(features: FeatureSet, train: Array, test: Array, seed: int) -> list[float]:
    """The accuracy on the test rows after every epoch: layer normalisation and one linear layer, Adam, cosine."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.LayerNorm(features.features.shape[1]), nn.Linear(features.features.shape[1], len(features.class_names))
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=XARES_RATE)
    values, labels = features.features[train], features.labels[train]
    steps = -(-len(train) // XARES_BATCH)
    accuracies = []
    for epoch in range(XARES_EPOCHS):
        fallen = (1 + np.cos(np.pi * epoch / XARES_EPOCHS)) / 2  # set at the beginning of every epoch
        optimizer.param_groups[0]["lr"] = XARES_RATE * (XARES_FALL + (1 - XARES_FALL) * fallen)
        order = torch.randperm(len(train), generator=generator)
        for step in range(steps):
            rows = order[step * XARES_BATCH : (step + 1) * XARES_BATCH]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(values[rows]), labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            said = model(features.features[test]).argmax(dim=1)
        accuracies.append(float((said == features.labels[test]).float().mean()))
    return accuracies


def protocol_rows(prepared: Prepared, config: FitConfig, seeds: int) -> list[Row]:
    """Every protocol's score; the heads' by `config`."""
    features = prepared.features
    record = run_protocol("official", prepared, config, torch.device("cpu")).record
    rows = [
        Row("this project", f"{head_title(kind)} head, official folds, epoch by validation clips", scored.accuracy)
        for kind, scored in record.heads.items()
    ]

    official, mixed = official_folds(features), random_folds(features)
    variants = (  # suite, protocol, folds, standardised, few clips
        ("", "logistic regression, official folds, standardised", official, True, False),
        ("", "the same, random folds (related clips on both sides)", mixed, True, False),
        ("", "the same, not standardised", mixed, False, False),
        ("MTEB", "random folds, not standardised, 8 clips a class", mixed, False, True),
        ("", "8 clips a class, but official folds and standardised", official, True, True),
    )
    rows += [
        Row(suite, words, logistic_regression(features, folds, scaled, few))
        for suite, words, folds, scaled, few in variants
    ]
    best, last = xares_accuracies(features, seeds)
    rows += [
        Row("X-ARES", "layer norm and linear, official folds, epoch by the test fold", best),
        Row("", "the same, last epoch", last),
    ]
    return rows
