"""Protocols of other suites on our features: classifiers, divisions and choice of epoch of MTEB and X-ARES."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, PredefinedSplit, cross_val_score
from sklearn.pipeline import make_pipeline
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
Fold = tuple[Array, Array]  # training and test rows


def protocol_rows(prepared: Prepared, config: FitConfig, seeds: int) -> list[tuple[str, str, float]]:
    """Suite, protocol and accuracy, the mean over folds and seeds, of features with official folds by every protocol; `config` is
    for this project's heads."""
    features = prepared.features
    record = run_protocol("official", prepared, config, torch.device("cpu")).record
    rows = [
        ("this project", f"{head_title(kind)} head, official folds, epoch by validation clips", scored.score)
        for kind, scored in record.heads.items()
    ]
    official, mixed = divisions(features)
    for suite, protocol, folds, is_scaled in (
        ("", "logistic regression, official folds, standardised", official, True),
        ("", "the same, random folds (related clips on both sides)", mixed, True),
        ("", "the same, not standardised", mixed, False),
        ("MTEB", "random folds, not standardised, 8 clips a class", with_few_clips(features, mixed), False),
        ("", "8 clips a class, but official folds and standardised", with_few_clips(features, official), True),
    ):
        rows.append((suite, protocol, logistic_regression(features, folds, is_scaled)))
    jobs = [(seed, fold) for seed in range(seeds) for fold in official]
    progress = progress_bar(iterable=jobs, desc="X-ARES", unit="fit", leave=False)
    accuracies = np.array([_fit_xares(features, train, test, seed) for seed, (train, test) in progress])
    best = float(accuracies.max(axis=1).mean())
    rows.append(("X-ARES", "layer norm and linear, official folds, epoch by the test fold", best))
    return [*rows, ("", "the same, last epoch", float(accuracies[:, -1].mean()))]


def divisions(features: FeatureSet) -> list[list[Fold]]:
    """(train, test) rows of the official folds, and of MTEB's random ones, which put related clips on both sides."""
    splitters = (PredefinedSplit(np.asarray(features.folds)), KFold(MTEB_FOLDS, shuffle=True, random_state=SEED))
    return [list(splitter.split(features.features)) for splitter in splitters]


def with_few_clips(features: FeatureSet, folds: Sequence[Fold]) -> list[Fold]:
    """The folds with MTEB's training clips: the first MTEB_CLIPS per class, of an order that every fold shuffles once more."""
    labels, order, few = features.labels.numpy(), np.arange(len(features)), []
    for train, test in folds:
        order = order[order < len(train)]
        np.random.RandomState(SEED).shuffle(order)  # MTEB's generator
        kept = pd.Series(order).groupby(labels[train][order]).head(MTEB_CLIPS)
        few.append((train[kept], test))
    return few


def logistic_regression(features: FeatureSet, folds: Sequence[Fold], is_scaled: bool) -> float:
    """The mean accuracy of scikit-learn's logistic regression, with MTEB's number of iterations."""
    classifier = LogisticRegression(max_iter=MTEB_ITERATIONS, random_state=SEED)
    model = make_pipeline(StandardScaler(), classifier) if is_scaled else classifier
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is the protocol
        return float(cross_val_score(model, features.features.numpy(), features.labels.numpy(), cv=folds).mean())


def _fit_xares(features: FeatureSet, train: Array, test: Array, seed: int) -> list[float]:
    """X-ARES' classifier: test accuracy after every epoch, of layer normalisation and a linear layer, by Adam with a cosine schedule."""
    generator = torch.Generator().manual_seed(seed)
    width = features.features.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(features.class_names)))
    optimizer = torch.optim.Adam(model.parameters(), lr=XARES_RATE)
    values, labels = features.features[train], features.labels[train]
    accuracies = []
    for epoch in range(XARES_EPOCHS):
        cosine = (1 + np.cos(np.pi * epoch / XARES_EPOCHS)) / 2  # set at the beginning of every epoch
        optimizer.param_groups[0]["lr"] = XARES_RATE * (XARES_FALL + (1 - XARES_FALL) * cosine)
        for rows in torch.randperm(len(train), generator=generator).split(XARES_BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(values[rows]), labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            predictions = model(features.features[test]).argmax(dim=1)
        accuracies.append(float((predictions == features.labels[test]).float().mean()))
    return accuracies
