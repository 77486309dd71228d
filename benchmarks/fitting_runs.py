"""The measurements of `fitting.py`."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from common.features import FeatureSet
from common.heads import HEADS, HeadKind, Job, Recipe, Split, fit_heads


@dataclass(frozen=True)
class Seconds:
    """Of a head and epoch, the medians: fitted the plain way, and with the others."""

    plain: float
    together: float


@dataclass(frozen=True)
class Comparison:
    """Both ways, for one kind of head and number of heads; `ratio` is how many times as fast they are together."""

    head: HeadKind
    heads: int
    seconds_per_head_and_epoch: Seconds
    ratio: float


def made_up(n_clips: int, n_classes: int) -> FeatureSet:
    """Features (N, 384) of overlapping classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(n_clips) % n_classes
    values = rng.standard_normal((n_classes, 384))[labels] + 3 * rng.standard_normal((n_clips, 384))
    clip_ids = [str(row) for row in range(n_clips)]
    return FeatureSet(
        torch.from_numpy(values).float(), torch.from_numpy(labels), list(map(str, range(n_classes))), clip_ids
    )


def plain_epochs(kind: HeadKind, features: FeatureSet, split: Split, epochs: int, device: torch.device) -> None:
    """Fit one head the plain way, predicting test rows after every epoch as the stack does."""
    train = TensorDataset(features.features[split.train], features.labels[split.train])
    test = TensorDataset(features.features[split.test], features.labels[split.test])
    module = HEADS[kind](features.features.shape[1], len(features.class_names)).to(device)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(epochs):
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
    """Fit both ways in turns; print a line for each head and number of heads."""
    epochs = 20
    features = made_up(2000, 50)
    rows = np.arange(2000)
    folds = [Split(f"fold {fold}", rows[rows // 400 != fold], rows[rows // 400 == fold]) for fold in range(5)]
    comparisons = []
    for kind in HEADS:
        for n_seeds in sorted({1, seeds}):
            jobs = [Job(split, seed) for seed in range(n_seeds) for split in folds]
            times: dict[str, list[float]] = {"plain": [], "together": []}
            for round_ in range(rounds + 1):  # the first one warms up
                for way in times:
                    started = time.perf_counter()
                    if way == "plain":
                        plain_epochs(kind, features, folds[0], epochs, device)
                    else:
                        fit_heads(kind, features, jobs, Recipe(epochs, 8, 1e-3), device)
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    heads = 1 if way == "plain" else len(jobs)
                    times[way] += [(time.perf_counter() - started) / heads / epochs] * (round_ > 0)
            seconds = Seconds(**{way: float(np.median(each)) for way, each in times.items()})
            ratio = seconds.plain / seconds.together
            comparisons.append(Comparison(kind, len(jobs), seconds, ratio))
            print(
                f"{kind:<12} {len(jobs):>3} heads together: {1000 * seconds.together:7.1f} ms per head and epoch, "
                f"plain {1000 * seconds.plain:7.1f} ms: {ratio:5.1f} times as fast",
                flush=True,
            )
    return comparisons
