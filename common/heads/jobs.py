"""What is fitted: splits, jobs and their batches, fitted heads."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from common.arrays import Array
from common.errors import UserError
from common.features import FeatureSet
from common.heads.recipes import Recipe
from common.heads.scalers import Scaler

MOST_IN_MEMORY = 1 << 32  # bytes
ALIGNMENT = 16  # float32 numbers: 64 bytes, the widest vector and a cache line


class FitError(UserError):
    """The features cannot be fitted or scored."""


@dataclass(frozen=True)
class Split:
    """A division of the rows, as int64 indices: heads are fitted on `train`, choose their epoch on `valid` (if empty, they
    keep the last epoch), and are scored on `test`."""

    name: str
    train: Array
    test: Array
    valid: Array = field(default_factory=lambda: np.arange(0))

    @property
    def learnable(self) -> Array:
        """Training and validation rows, in order."""
        return np.sort(np.concatenate([self.train, self.valid]))


@dataclass(frozen=True)
class Job:
    """A head to fit."""

    split: Split
    seed: int  # of the initial weights, the order of the rows and dropout
    # The epoch, from 1, whose weights are kept; None: the best on validation rows, or the last without any.
    keep: int | None = None
    shrinkage: float | None = None  # of whitening

    @property
    def scaler_key(self) -> tuple[bytes, float | None]:
        """Jobs with equal keys have the same scaler."""
        return hashlib.sha256(np.ascontiguousarray(self.split.train).data).digest(), self.shrinkage


class Batches(NamedTuple):
    """The S batches of an epoch, the last of which is padded."""

    order: torch.Tensor  # (S, B) int64 row numbers
    labels: torch.Tensor  # (S, B) int64, or (S, B, C) bool with several labels a clip
    shares: torch.Tensor  # (S, B) float32, weights of the rows in the mean of their batch; 0 for padding
    noise: torch.Tensor  # (S, n) float32 random numbers for dropout, layer by layer; n is 0 without dropout


def draw_batches(job: Job, labels: torch.Tensor, recipe: Recipe, width: int, n_hidden: int) -> Iterator[Batches]:
    """The batches of a job, epoch by epoch, with random numbers from its seed and its split's name; for a head with `width`
    inputs and `n_hidden` hidden layers. `labels` are of all rows."""
    train = torch.from_numpy(job.split.train)
    count, size = len(train), min(recipe.batch_size, len(train))
    n_batches = -(-count // size)
    n_noise = width * (recipe.input_dropout > 0) + n_hidden * recipe.hidden_dim * (recipe.dropout > 0)
    orders, noises = generator(job.seed, job.split.name), generator(job.seed, f"{job.split.name}, noise")
    shares = torch.full((n_batches, size), 1 / size)
    n_last = count - (n_batches - 1) * size
    shares[-1] = 1 / n_last
    shares[-1, n_last:] = 0
    while True:
        order = train[:1].repeat(n_batches * size)
        torch.index_select(train, 0, torch.randperm(count, generator=orders), out=order[:count])
        order = order.view(n_batches, size)
        yield Batches(order, labels[order], shares, torch.rand(n_batches, size * n_noise, generator=noises))


def generator(seed: int, name: str) -> torch.Generator:
    """An independent random number generator for every seed and name."""
    entropy = np.random.SeedSequence([seed, *name.encode()]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy) >> 1)


def padded(width: int) -> int:
    """`width` and a bias, rounded up to a multiple of ALIGNMENT."""
    return -(-(width + 1) // ALIGNMENT) * ALIGNMENT


def new_rows(count: int, width: int) -> Array:
    """Room for (count, width) scaled embeddings: (count, padded(width)) float32, where every row is followed by a 1, for the
    bias, and zeros; so rows are aligned alike, and rounding does not depend on a row's place. Many gigabytes are in a temporary
    file, which the system keeps in memory as far as there is room."""
    shape = count, padded(width)
    if 4 * math.prod(shape) <= MOST_IN_MEMORY:
        rows: Array = torch.zeros(shape).numpy()  # which begins at a cache line
    else:
        with tempfile.TemporaryFile(prefix="scaled.") as file:
            rows = np.memmap(file, np.float32, "w+", shape=shape)
    rows[:, width] = 1
    return rows


@dataclass(frozen=True)
class Curves:
    """Values after every epoch: mean cross-entropy; scores of validation and test rows, empty without such rows. The score
    is the accuracy, or with several labels a clip the mean average precision. Nothing is chosen by test rows."""

    train_loss: list[float]
    valid: list[float]
    test: list[float]


@dataclass(frozen=True)
class FittedHead:
    """A head fitted on its job's training rows, as is its scaler."""

    job: Job
    module: nn.Sequential  # on the CPU, in eval mode
    scaler: Scaler
    # test_logits, valid_logits: (len(split.test), C) and (len(split.valid), C) float32, of the kept epoch
    test_logits: torch.Tensor
    valid_logits: torch.Tensor
    curves: Curves
    epoch: int  # the kept epoch, from 1

    @property
    def valid_score(self) -> float:
        """The score of the validation rows at the kept epoch; 0 without any."""
        return self.curves.valid[self.epoch - 1] if self.curves.valid else 0.0


def check_fittable(features: FeatureSet, name: str) -> None:
    """Raise FitError, naming the file `name`, if no meaningful head can be trained on these features."""
    blocks = features.features.split(1 << 13)  # ten million rows may be on the disk
    bad = torch.cat([~torch.isfinite(block).all(dim=1) for block in blocks])
    if bad.any():
        first = features.clip_ids[int(bad.nonzero()[0])]
        raise FitError(f"{name}: {int(bad.sum())} rows hold NaN or infinite features (first: {first}); extract again")
    if all((block == blocks[0][:1]).all() for block in blocks):
        raise FitError(f"{name}: all {len(features):,} rows of features are the same; extract the features again")
    check_labels(features, name)


def check_labels(features: FeatureSet, name: str) -> None:
    """Raise FitError, naming the file or folder `name`, if the labels leave nothing to learn or to test."""
    if not features.is_multilabel and int(features.labels.min()) < 0:
        raise FitError(
            f"{name} holds no labels; extract the features again with this project's scripts, or call their column label"
        )
    clips_of = features.labels.sum(dim=0) if features.is_multilabel else features.labels.unique(return_counts=True)[1]
    if len(clips_of.nonzero()) < 2:
        raise FitError(
            f"{name} has clips of one class; there is nothing to classify: add others, unless the labels were read wrongly"
        )
    for label, count in enumerate(clips_of.tolist() if features.is_multilabel else ()):
        if count in (0, 1, len(features)):
            raise FitError(
                f"{name}: {count:,} of {len(features):,} clips have the label {features.class_names[label]!r}, so it cannot "
                "be learned and tested; leave it out or add clips"
            )
    if not features.is_multilabel and len(features) < len(features.class_names):
        raise FitError(
            f"{name}: {len(features)} clips are fewer than its {len(features.class_names)} classes; "
            "extract the features of the whole data set"
        )
