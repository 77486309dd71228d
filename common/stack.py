"""K heads of one kind, fitted together as one stack: K independent problems of one shape.

Their weights are stacked to (K, in, out), every step is one batched matrix product, and Adam acts on each number by
itself. So the stack learns what K separate runs would; `tests/test_train.py` holds it to that, and to torch.optim.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.adamw import adamw

from common.features import FeatureSet
from common.heads import HEADS
from common.recipes import Recipe, shrinkage_for
from common.scalers import Scaler, fit_scaler
from common.splits import Split

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
GLOBAL_RNG = threading.Lock()  # torch initialises layers from its one global generator


class FitError(ValueError):
    """The features cannot be fitted or scored; the message is one line."""


@dataclass(frozen=True)
class Job:
    """One head to fit.

    Attributes:
        split: its rows.
        seed: of its initial weights and of the order of clips.
        keep: the epoch, from 1, whose weights are kept; None: the best on validation rows, or the last without any.
        shrinkage: of whitening.
    """

    split: Split
    seed: int
    keep: int | None = None
    shrinkage: float | None = None


@dataclass(frozen=True)
class FittedHead:
    """A head fitted on its job's training rows.

    Attributes:
        job: the job.
        module: the head, on the CPU, in eval mode.
        scaler: fitted on the training rows alone.
        test_logits: (len(split.test), C) float32, of the kept epoch.
        train_loss: mean cross-entropy of every epoch.
        valid_accuracy: of every epoch; empty where the split holds no validation rows.
        test_accuracy: of every epoch; written down for the record, and read by nothing here.
        epoch: the epoch whose weights these are, from 1.
    """

    job: Job
    module: nn.Sequential
    scaler: Scaler
    test_logits: torch.Tensor
    train_loss: list[float]
    valid_accuracy: list[float]
    test_accuracy: list[float]
    epoch: int


def scaler_key(job: Job) -> tuple[bytes, float | None]:
    """Jobs of equal keys scale alike."""
    return job.split.train.tobytes(), job.shrinkage


class ScaledFeatures:
    """Scalers and scaled features (N, D) by set of training rows, made once and shared until no stack needs them."""

    def __init__(
        self, features: FeatureSet, stacks: Sequence[Sequence[Job]], recipe: Recipe, device: torch.device
    ) -> None:
        self.raw, self.recipe, self.device, self.lock = features.features.numpy(), recipe, device, threading.Lock()
        self.needed = Counter(key for jobs in stacks for key in {scaler_key(job) for job in jobs})
        self.made: dict[tuple[bytes, float | None], tuple[Scaler, torch.Tensor]] = {}

    def get(self, job: Job) -> tuple[Scaler, torch.Tensor]:
        """The scaler fitted on the job's training rows, and all features scaled by it."""
        key = scaler_key(job)
        with self.lock:  # one at a time: float64 copies of a large set take gigabytes
            if key not in self.made:
                rows, recipe = self.raw[job.split.train], self.recipe
                shrinkage = shrinkage_for(recipe, job.shrinkage, *rows.shape)
                scaler = fit_scaler(recipe.scaler, rows, shrinkage, recipe.is_unit_length)
                self.made[key] = scaler, torch.from_numpy(scaler(self.raw)).to(self.device)
            return self.made[key]

    def let_go(self, jobs: Sequence[Job]) -> None:
        """A stack has ended; what no other needs is freed."""
        with self.lock:
            for key in {scaler_key(job) for job in jobs}:
                self.needed[key] -= 1
                if not self.needed[key]:
                    self.made.pop(key, None)


class Stack:
    """K heads of one kind and the data they learn from; `jobs` come longest first."""

    def __init__(
        self,
        kind: str,
        features: FeatureSet,
        jobs: Sequence[Job],
        recipe: Recipe,
        device: torch.device,
        shared: ScaledFeatures,
    ) -> None:
        self.kind, self.jobs, self.recipe, self.device = kind, jobs, recipe, device
        self.n_classes = len(features.class_names)
        self.labels = features.labels.to(device)
        self.scalers = [shared.get(job)[0] for job in jobs]
        distinct = {scaler_key(job): shared.get(job)[1] for job in jobs}
        # (S, N, D); one alone is not copied
        self.scaled = torch.stack(list(distinct.values())) if len(distinct) > 1 else next(iter(distinct.values()))[None]
        places = {key: place for place, key in enumerate(distinct)}
        self.which = torch.tensor([places[scaler_key(job)] for job in jobs], device=device)  # (K,)
        self.orders = [generator(job.seed, job.split.name) for job in jobs]
        self.noises = [generator(job.seed, f"{job.split.name}, noise", device) for job in jobs]
        self.parameters = self._initial_parameters(features.features.shape[1])
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        steps = [recipe.epochs * math.ceil(len(job.split.train) / recipe.batch_size) for job in jobs]
        self.optimizer = _Optimizer(self.parameters, self.gradients, recipe, steps)
        self.train_loss: list[list[float]] = [[] for _ in jobs]
        self.valid_accuracy: list[list[float]] = [[] for _ in jobs]
        self.test_accuracy: list[list[float]] = [[] for _ in jobs]
        self.kept: list[list[torch.Tensor]] = [[] for _ in jobs]  # weights and biases of the epoch to keep, so far

    def _initial_parameters(self, size: int) -> list[torch.Tensor]:
        """Per linear layer: weight (K, in, out) and bias (K, 1, out); of each head as its seed draws them."""
        drawn: dict[int, list[torch.Tensor]] = {}
        for job in self.jobs:
            if job.seed not in drawn:
                with GLOBAL_RNG, torch.random.fork_rng(devices=[]):
                    torch.manual_seed(job.seed)
                    module = HEADS[self.kind](size, self.n_classes, self.recipe.hidden_dim)
                linear = [layer for layer in module if isinstance(layer, nn.Linear)]
                pairs = [(layer.weight.detach().t(), layer.bias.detach()[None]) for layer in linear]
                drawn[job.seed] = [parameter for pair in pairs for parameter in pair]
        stacked = zip(*(drawn[job.seed] for job in self.jobs), strict=True)
        return [torch.stack(parameters).to(self.device) for parameters in stacked]

    @torch.no_grad()
    def epoch(self) -> None:
        """One pass over every head's training rows, and a look at its validation and test rows."""
        batch_size, sizes = self.recipe.batch_size, [len(job.split.train) for job in self.jobs]
        rows = torch.zeros(len(sizes), sizes[0], dtype=torch.int64)
        for head, (job, generator) in enumerate(zip(self.jobs, self.orders, strict=True)):
            shuffled = torch.randperm(sizes[head], generator=generator)
            rows[head, : sizes[head]] = torch.from_numpy(job.split.train)[shuffled]
        rows = rows.to(self.device)
        total = torch.zeros(len(sizes), device=self.device)
        remaining = torch.tensor(sizes, device=self.device)[:, None]
        places = torch.arange(batch_size, device=self.device)
        for start in range(0, sizes[0], batch_size):
            active = sum(size > start for size in sizes)
            batch = rows[:active, start : start + batch_size]
            # A head's last batch may be shorter than its neighbours': what is beyond its rows counts nothing.
            own = (places[: batch.shape[1]] < remaining[:active] - start).float()
            total[:active] += self._backward(self.scaled[self.which[:active, None], batch], self.labels[batch], own)
            self.optimizer.step(active)
        for head, loss in enumerate((total / remaining[:, 0]).tolist()):
            self.train_loss[head].append(loss)
            self._look(head)

    def _backward(self, x: torch.Tensor, labels: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Fill the gradients of the mean cross-entropy of each head's own rows, written out: autograd would allocate
        all of them anew at every step.

        Args:
            x: (A, B, D) scaled rows.
            labels: (A, B).
            own: (A, B), 1 for the rows that count.

        Returns:
            (A,) the summed cross-entropy.
        """
        active, n_layers = len(x), len(self.parameters) // 2
        inputs, masks = [], []
        for layer in range(n_layers):
            x = x.relu_() if layer else x
            x, mask = self._dropped(x, self.recipe.dropout if layer else self.recipe.input_dropout)
            inputs.append(x)
            masks.append(mask)
            x = torch.baddbmm(self.parameters[2 * layer + 1][:active], x, self.parameters[2 * layer][:active])
        log_likelihood = x.log_softmax(dim=2)
        smoothing = self.recipe.label_smoothing
        target = torch.full_like(x, smoothing / self.n_classes)
        target.scatter_add_(2, labels[..., None], torch.full_like(x[..., :1], 1 - smoothing))
        loss = -((target * log_likelihood).sum(dim=2) * own).sum(dim=1)
        error = (log_likelihood.exp_() - target) * (own / own.sum(dim=1, keepdim=True))[..., None]  # (A, B, C)
        for layer in reversed(range(n_layers)):
            weight, bias = self.gradients[2 * layer][:active], self.gradients[2 * layer + 1][:active]
            torch.bmm(inputs[layer].transpose(1, 2), error, out=weight)
            torch.sum(error, dim=1, keepdim=True, out=bias)
            if layer:
                error = torch.bmm(error, self.parameters[2 * layer][:active].transpose(1, 2))
                error *= inputs[layer] > 0 if masks[layer] is None else (inputs[layer] > 0) * masks[layer]
        return loss

    def _dropped(self, x: torch.Tensor, probability: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Dropout with each head's own random numbers: what is left, and the factors."""
        if not probability:
            return x, None
        drawn = x.new_zeros(x.shape)
        for head in range(len(x)):
            # Always for a whole batch, so that a head's numbers do not depend on how long its neighbours' last one is.
            size = (min(self.recipe.batch_size, len(self.jobs[head].split.train)), x.shape[2])
            own = torch.rand(size, generator=self.noises[head], device=x.device)[: x.shape[1]]
            drawn[head, : len(own)] = own
        factors = (drawn >= probability) / (1 - probability)
        return x * factors, factors

    @torch.no_grad()
    def _look(self, head: int) -> None:
        """Note the accuracies after an epoch, and the weights where they are those to keep so far.

        What is kept depends on the job and the validation rows alone; the test accuracy is only written down.
        """
        job, epoch = self.jobs[head], len(self.train_loss[head])
        weights = [parameter[head] for parameter in self.parameters]
        before = max(self.valid_accuracy[head], default=-1.0)
        if len(job.split.valid):
            self.valid_accuracy[head].append(self._accuracy(head, weights, job.split.valid))
        is_best = len(job.split.valid) and self.valid_accuracy[head][-1] > before
        is_wanted = is_best if job.keep is None else epoch == job.keep
        if is_wanted:
            self.kept[head] = [weight.detach().clone() for weight in weights]
        if len(job.split.test):
            self.test_accuracy[head].append(self._accuracy(head, weights, job.split.test))

    def _accuracy(self, head: int, weights: list[torch.Tensor], rows: np.ndarray) -> float:
        index = torch.from_numpy(rows).to(self.device)
        x = self.scaled[self.which[head], index]
        for layer in range(0, len(weights), 2):
            x = torch.addmm(weights[layer + 1], F.relu(x) if layer else x, weights[layer])
        return float((x.argmax(dim=1) == self.labels[index]).float().mean())

    def finish(self) -> list[FittedHead]:
        return [self._fitted(head) for head in range(len(self.jobs))]

    @torch.no_grad()
    def _fitted(self, head: int) -> FittedHead:
        job, accuracies = self.jobs[head], self.valid_accuracy[head]
        weights = self.kept[head] or [parameter[head] for parameter in self.parameters]
        epoch = len(self.train_loss[head])
        if self.kept[head]:
            epoch = job.keep or 1 + accuracies.index(max(accuracies))
        with GLOBAL_RNG:
            module = HEADS[self.kind](len(self.scalers[head].mean), self.n_classes, self.recipe.hidden_dim)
        layers = [layer for layer in module if isinstance(layer, nn.Linear)]
        for layer, weight, bias in zip(layers, weights[::2], weights[1::2], strict=True):
            layer.weight.copy_(weight.t())
            layer.bias.copy_(bias[0])
        test = self.scaled[self.which[head], torch.from_numpy(job.split.test).to(self.device)].cpu()
        logits = module.eval()(test)
        if not torch.isfinite(logits).all() or not math.isfinite(self.train_loss[head][-1]):
            raise FitError(
                f"the {self.kind.replace('_', '-')} head diverged ({job.split.name}, seed {job.seed}): lower "
                "--learning-rate, or scale the features (--scaler standard)"
            )
        module.requires_grad_(False)
        curves = (self.train_loss[head], accuracies, self.test_accuracy[head])
        return FittedHead(job, module, self.scalers[head], logits, *curves, epoch)


class _Optimizer:
    """torch's fused AdamW (Adam without decay) on stacked parameters, of which only the first `active` heads step.

    Every head's slice is a parameter of its own, since heads whose epoch has fewer batches must stand still while the
    others' moments and step counts go on.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        recipe: Recipe,
        total_steps: Sequence[int],
    ) -> None:
        self.recipe, self.total_steps, self.done = recipe, total_steps, [0] * len(total_steps)
        self.n_parameters = len(parameters)

        def slices(stacked: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            """Weights and biases in turn, head after head, each sharing the memory of the stack."""
            return [each[head] for head in range(len(total_steps)) for each in stacked]

        self.state = [
            slices(parameters),
            slices(gradients),
            slices([torch.zeros_like(parameter) for parameter in parameters]),
            slices([torch.zeros_like(parameter) for parameter in parameters]),
            [torch.zeros((), device=parameters[0].device) for _ in slices(parameters)],
        ]

    def step(self, active: int) -> None:
        """One step of the first `active` heads."""
        recipe, n = self.recipe, self.n_parameters
        if not recipe.is_cosine and not recipe.weight_decay:
            self._adamw(slice(0, active * n), recipe.learning_rate, 0.0)
        else:
            for head in range(active):
                progress = self.done[head] / self.total_steps[head]
                fall = 0.5 * (1 + math.cos(math.pi * progress)) if recipe.is_cosine else 1.0
                for first, decay in ((0, recipe.weight_decay), (1, 0.0)):  # weights, biases
                    self._adamw(slice(head * n + first, (head + 1) * n, 2), fall * recipe.learning_rate, decay)
        for head in range(active):
            self.done[head] += 1

    def _adamw(self, which: slice, learning_rate: float, weight_decay: float) -> None:
        parameters, gradients, first, second, steps = (tensors[which] for tensors in self.state)
        adamw(
            parameters,
            gradients,
            first,
            second,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=ADAM_BETAS[0],
            beta2=ADAM_BETAS[1],
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=ADAM_EPS,
            maximize=False,
        )


def generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A stream of random numbers of its own for every seed and name."""
    entropy = np.random.SeedSequence([seed, *name.encode()]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(entropy) >> 1)
