"""The measurements of `fitting.py`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from measuring import timed
from torch.utils.data import DataLoader, TensorDataset

from common.features import FeatureSet
from common.heads import HEADS, HeadKind, Job, Recipe, Split, fit_heads

EPOCHS, CLIPS, CLASSES, FOLDS = 20, 2000, 50, 5  # of ESC-50's size
RECIPE = Recipe(EPOCHS, 8, 1e-3)


@dataclass(frozen=True)
class Comparison:
    """Median seconds per head and epoch of a kind of head, fitted the plain way and together."""

    head: HeadKind
    heads: int
    plain_s: float
    together_s: float


def random_features() -> FeatureSet:
    """Features (N, 384) of overlapping classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(CLIPS) % CLASSES
    values = rng.standard_normal((CLASSES, 384))[labels] + 3 * rng.standard_normal((CLIPS, 384))
    names, clip_ids = [str(label) for label in range(CLASSES)], [str(row) for row in range(CLIPS)]
    return FeatureSet(torch.from_numpy(values).float(), torch.from_numpy(labels), names, clip_ids)


def fit_plainly(kind: HeadKind, features: FeatureSet, split: Split, device: torch.device) -> None:
    """Fit a head the plain way, with predictions for the test rows after every epoch, as `fit_heads` makes them."""
    train = TensorDataset(features.features[split.train], features.labels[split.train])
    test = TensorDataset(features.features[split.test], features.labels[split.test])
    module = HEADS[kind](features.features.shape[1], len(features.class_names)).to(device)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        total = 0.0
        for batch, labels in DataLoader(train, batch_size=8, shuffle=True):
            optimizer.zero_grad()
            loss = F.cross_entropy(module(batch.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        with torch.no_grad():
            for batch, _ in DataLoader(test, batch_size=8):
                module(batch.to(device)).argmax(dim=1).cpu()


def compare(device: torch.device, rounds: int, seeds: int) -> list[Comparison]:
    """Fit both ways in turns; print a line per kind and number of heads."""
    features, rows = random_features(), np.arange(CLIPS)
    of_fold = rows // (CLIPS // FOLDS)
    splits = [Split(f"fold {fold}", rows[of_fold != fold], rows[of_fold == fold]) for fold in range(FOLDS)]
    comparisons = []
    for kind, n_seeds in itertools.product(HEADS, sorted({1, seeds})):
        jobs = [Job(split, seed) for seed in range(n_seeds) for split in splits]
        ways = (partial(fit_plainly, kind, features, splits[0]), partial(fit_heads, kind, features, jobs, RECIPE))
        seconds = [[timed(partial(way, device), device) for way in ways] for _ in range(rounds + 1)]
        # The first round warms up.
        plain_s, together_s = (np.median(seconds[1:], axis=0) / EPOCHS / (1, len(jobs))).tolist()
        print(
            f"{kind:<12} {len(jobs):>3} heads together: {1000 * together_s:7.1f} ms per head and epoch, "
            f"plain {1000 * plain_s:7.1f} ms: {plain_s / together_s:5.1f} times as fast",
            flush=True,
        )
        comparisons.append(Comparison(kind, len(jobs), plain_s, together_s))
    return comparisons
