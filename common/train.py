"""Scaler + head -> predictions. All divisions of the data are fitted together, as one stack of heads.

The heads of K divisions are K independent problems of one shape: their weights are stacked to (K, in, out),
every step is one batched matrix product, and Adam acts on each number by itself. So the stack learns what K
separate runs would; `tests/test_train.py` holds it to that, and to torch.optim.Adam.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.preprocessing import StandardScaler
from torch import nn

from common.features import FeatureSet
from common.heads import HEADS
from common.progress import progress_bar
from common.splits import Split

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8


class FitError(ValueError):
    """The features cannot be fitted or scored; the message is one line."""


@dataclass(frozen=True)
class FittedHead:
    """A head fitted on one split's training rows.

    Attributes:
        split: the split.
        module: the head, on the CPU, in eval mode.
        mean, scale: (D,) float64 of the scaler, fitted on the training rows alone.
        test_logits: (len(split.test), C) float32.
        train_loss: mean cross-entropy of every epoch.
        valid_accuracy: of every epoch; empty where the split holds no validation rows.
        epoch: the epoch whose weights these are, from 1.
    """

    split: Split
    module: nn.Sequential
    mean: np.ndarray
    scale: np.ndarray
    test_logits: torch.Tensor
    train_loss: list[float]
    valid_accuracy: list[float]
    epoch: int


def check_fittable(features: FeatureSet, name: str) -> None:
    """Raise FitError, naming the file `name`, where no head can honestly be trained on these features."""
    bad = ~torch.isfinite(features.features).all(dim=1)
    if bad.any():
        first = features.clip_ids[int(bad.nonzero()[0])]
        raise FitError(f"{name}: {int(bad.sum())} rows hold NaN or infinite features (first: {first}); extract again")
    if int(features.labels.min()) < 0:
        raise FitError(f"{name} holds no labels, only keys; extract the features again with this project's scripts")
    present = features.labels.unique()
    if len(present) < 2:
        raise FitError(
            f"{name}: all {len(features):,} labels are {features.class_names[int(present[0])]!r}; there is nothing to "
            "classify. The labels were read wrongly or the data are of one class: extract the features again"
        )
    if len(features.features.unique(dim=0)) == 1:
        raise FitError(f"{name}: all {len(features):,} rows of features are the same; extract the features again")
    if len(features) < len(features.class_names):
        raise FitError(
            f"{name}: {len(features)} clips are fewer than its {len(features.class_names)} classes; "
            "extract the features of the whole data set"
        )


def fit_heads(
    kind: str,
    features: FeatureSet,
    splits: Sequence[Split],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    hidden_dim: int,
    seed: int,
    device: torch.device,
) -> list[FittedHead]:
    """Fit one head a split with Adam and cross-entropy.

    The epoch of the highest validation accuracy is kept (the first of equals), or the last one where a split has
    no validation rows. The scaler (StandardScaler) and the head see training rows only; test rows are touched
    once, at the end.
    Every head has the same initial weights and its own order of clips, drawn from the seed and its split's
    name, so it does not matter which other splits are fitted beside it.

    Args:
        kind: a key of HEADS.
        batch_size: the last batch of an epoch holds what is left.

    Returns:
        The fitted heads in the order of `splits`.
    """
    # Longest first, so that heads with batches left in an epoch are always the first rows of the stack.
    order = sorted(range(len(splits)), key=lambda index: -len(splits[index].train))
    stack = _Stack(kind, features, [splits[index] for index in order], hidden_dim, seed, device)
    bar = progress_bar(total=epochs, desc=f"fitting {kind}", unit="epoch", leave=False)
    with bar, _one_thread():
        for _ in range(epochs):
            stack.epoch(batch_size, learning_rate)
            bar.update()
    fitted = stack.finish()
    return [fitted[order.index(index)] for index in range(len(splits))]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Batches of 8 are too small to share: a second thread gains little alone, and on a busy machine each of the
    thousands of steps would wait for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Stack:
    """K heads of one kind and the data they learn from."""

    def __init__(
        self, kind: str, features: FeatureSet, splits: list[Split], hidden_dim: int, seed: int, device: torch.device
    ) -> None:
        self.kind, self.hidden_dim, self.splits, self.device = kind, hidden_dim, splits, device
        self.n_classes = len(features.class_names)
        self.labels = features.labels.to(device)
        raw = features.features.double().numpy()
        self.scalers = [StandardScaler().fit(raw[split.train]) for split in splits]
        scaled = [torch.from_numpy(scaler.transform(raw)).float() for scaler in self.scalers]
        self.scaled = torch.stack(scaled).to(device)  # (K, N, D)
        self.orders = [_generator(seed, split.name) for split in splits]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = HEADS[kind](raw.shape[1], self.n_classes, hidden_dim)
        # Per linear layer: weight (K, in, out) and bias (K, 1, out).
        self.parameters = [
            parameter.to(device).repeat(len(splits), 1, 1).requires_grad_()
            for layer in module
            if isinstance(layer, nn.Linear)
            for parameter in (layer.weight.detach().t(), layer.bias.detach())
        ]
        self.adam = _Adam(self.parameters, len(splits))
        self.train_loss: list[list[float]] = [[] for _ in splits]
        self.valid_accuracy: list[list[float]] = [[] for _ in splits]
        # Per head with validation rows: its weights and biases at the best epoch so far.
        self.best: list[list[torch.Tensor]] = [[] for _ in splits]

    def epoch(self, batch_size: int, learning_rate: float) -> None:
        """One pass over every head's training rows, and a look at its validation rows."""
        sizes = [len(split.train) for split in self.splits]
        rows = torch.zeros(len(sizes), sizes[0], dtype=torch.int64)
        for head, (split, generator) in enumerate(zip(self.splits, self.orders, strict=True)):
            shuffled = torch.randperm(sizes[head], generator=generator)
            rows[head, : sizes[head]] = torch.from_numpy(split.train)[shuffled]
        rows = rows.to(self.device)
        total = torch.zeros(len(sizes), device=self.device)
        heads = torch.arange(len(sizes), device=self.device)[:, None]
        remaining = torch.tensor(sizes, device=self.device)[:, None]
        places = torch.arange(batch_size, device=self.device)
        for start in range(0, sizes[0], batch_size):
            active = sum(size > start for size in sizes)
            batch = rows[:active, start : start + batch_size]
            logits = self._forward(self.scaled[heads[:active], batch], active)
            loss = F.cross_entropy(logits.flatten(0, 1), self.labels[batch].flatten(), reduction="none")
            # A head's last batch may be shorter than its neighbours': what is beyond its rows counts nothing.
            own = (places[: batch.shape[1]] < remaining[:active] - start).float()
            summed = (loss.view(active, -1) * own).sum(dim=1)
            gradients = torch.autograd.grad((summed / own.sum(dim=1)).sum(), self.parameters)
            self.adam.step(gradients, learning_rate, active)
            total[:active] += summed.detach()
        for head, loss in enumerate((total / remaining[:, 0]).tolist()):
            self.train_loss[head].append(loss)
            self._validate(head)

    @torch.no_grad()
    def _validate(self, head: int) -> None:
        """Note the accuracy on the head's validation rows, and its weights where none was as good before."""
        valid = self.splits[head].valid
        if not len(valid):
            return
        rows = torch.from_numpy(valid).to(self.device)
        x = self.scaled[head, rows]
        weights = [parameter[head] for parameter in self.parameters]
        for index in range(0, len(weights), 2):
            x = torch.addmm(weights[index + 1], x if index == 0 else F.relu(x), weights[index])
        accuracy = float((x.argmax(dim=1) == self.labels[rows]).float().mean())
        if accuracy > max(self.valid_accuracy[head], default=-1.0):
            self.best[head] = [weight.detach().clone() for weight in weights]
        self.valid_accuracy[head].append(accuracy)

    def _forward(self, x: torch.Tensor, active: int) -> torch.Tensor:
        """(active, B, D) -> (active, B, C)."""
        for index in range(0, len(self.parameters), 2):
            weight, bias = self.parameters[index][:active], self.parameters[index + 1][:active]
            x = torch.baddbmm(bias, x if index == 0 else F.relu(x), weight)
        return x

    def finish(self) -> list[FittedHead]:
        return [self._fitted(head, split) for head, split in enumerate(self.splits)]

    @torch.no_grad()
    def _fitted(self, head: int, split: Split) -> FittedHead:
        scaler, accuracies = self.scalers[head], self.valid_accuracy[head]
        weights = self.best[head] or [parameter[head] for parameter in self.parameters]
        epoch = 1 + accuracies.index(max(accuracies)) if accuracies else len(self.train_loss[head])
        module = HEADS[self.kind](len(scaler.mean_), self.n_classes, self.hidden_dim)
        layers = [layer for layer in module if isinstance(layer, nn.Linear)]
        for layer, weight, bias in zip(layers, weights[::2], weights[1::2], strict=True):
            layer.weight.copy_(weight.t())
            layer.bias.copy_(bias[0])
        test = self.scaled[head, torch.from_numpy(split.test).to(self.device)].cpu()
        logits = module.eval()(test)
        module.requires_grad_(False)
        return FittedHead(split, module, scaler.mean_, scaler.scale_, logits, self.train_loss[head], accuracies, epoch)


class _Adam:
    """Adam (Kingma & Ba 2015) on stacked parameters, of which only the first `active` heads may step.

    torch.optim.Adam keeps one step count for a whole tensor and moves every part of it by momentum; heads
    whose epoch has fewer batches must stand still.
    """

    def __init__(self, parameters: list[torch.Tensor], heads: int) -> None:
        self.parameters = parameters
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
        self.steps = torch.zeros(heads, 1, 1, device=parameters[0].device, dtype=torch.float64)

    @torch.no_grad()
    def step(self, gradients: Sequence[torch.Tensor], learning_rate: float, active: int) -> None:
        beta1, beta2 = ADAM_BETAS
        self.steps[:active] += 1
        step_size = (learning_rate / (1 - beta1 ** self.steps[:active])).float()
        correction = (1 - beta2 ** self.steps[:active]).sqrt().float()
        for parameter, gradient, (first, second) in zip(self.parameters, gradients, self.moments, strict=True):
            g, m, v = gradient[:active], first[:active], second[:active]
            m.lerp_(g, 1 - beta1)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            parameter[:active].sub_(m / (v.sqrt() / correction).add_(ADAM_EPS) * step_size)


def _generator(seed: int, name: str) -> torch.Generator:
    """A stream of random numbers of its own for every seed and split name."""
    entropy = np.random.SeedSequence([seed, *name.encode()]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy) >> 1)
