"""What a head's epoch consists of: its batches in random order, with the random numbers of dropout."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from common.arrays import Array
from common.heads.jobs import Job
from common.heads.recipes import Recipe

ALIGNMENT = 16  # float32 numbers: 64 bytes, the widest vector and a cache line


class Batches(NamedTuple):
    """The batches of one epoch.

    Attributes:
        order: (S, B) int64 row numbers; the last batch is padded.
        labels: (S, B) int64.
        shares: (S, B) float32, the weight of each row in the mean of its batch; 0 for padding.
        drawn: (S, n) float32 random numbers for dropout, for each layer in turn; n is 0 without dropout.
    """

    order: torch.Tensor
    labels: torch.Tensor
    shares: torch.Tensor
    drawn: torch.Tensor


class Shuffle:
    """Draws the batches of a job, epoch by epoch. The random numbers come from the job's seed and its split's name."""

    def __init__(self, job: Job, labels: Array, recipe: Recipe, width: int, n_hidden: int) -> None:
        """For a head with `width` inputs and `n_hidden` hidden layers; `labels` are those of all rows."""
        self.train = torch.from_numpy(job.split.train)
        self.labels = torch.from_numpy(labels)
        self.size = min(recipe.batch_size, len(self.train))
        self.n_batches = -(-len(self.train) // self.size)
        n_drawn = width * (recipe.input_dropout > 0) + n_hidden * recipe.hidden_dim * (recipe.dropout > 0)
        self.n_drawn = self.size * n_drawn
        self.orders = generator(job.seed, job.split.name)
        self.noise = generator(job.seed, f"{job.split.name}, noise")

    def draw(self) -> Batches:
        """The next epoch's batches."""
        count, places = len(self.train), self.n_batches * self.size
        order = self.train[:1].repeat(places)
        order[:count] = self.train[torch.randperm(count, generator=self.orders)]
        shares = torch.full((places,), 1 / self.size)
        if count < places:
            shares[places - self.size :] = 1 / (count - places + self.size)
            shares[count:] = 0
        drawn = torch.rand(self.n_batches, self.n_drawn, generator=self.noise)
        order = order.view(self.n_batches, self.size)
        return Batches(order, self.labels[order], shares.view_as(order), drawn)


def generator(seed: int, name: str) -> torch.Generator:
    """A separate random number generator for every seed and name."""
    entropy = np.random.SeedSequence([seed, *name.encode()]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy) >> 1)


def padded(width: int) -> int:
    """`width` and a bias, rounded up to a multiple of ALIGNMENT."""
    return -(-(width + 1) // ALIGNMENT) * ALIGNMENT


def append_one(rows: torch.Tensor) -> torch.Tensor:
    """(N, D) -> (N, padded(D)): each row followed by a 1, for the bias, and zeros.

    Every row then begins at the same alignment in memory, and is rounded alike wherever it lies.
    """
    longer = rows.new_zeros(len(rows), padded(rows.shape[1]))
    longer[:, : rows.shape[1]] = rows
    longer[:, rows.shape[1]] = 1
    return longer
