"""K heads of one kind, fitted together as one stack: K independent problems of one shape.

Their layers are stacked to (K, in + 1, out), the last row being the bias and every input ending in a 1. So a step is one
batched product a layer, and Adam acts on each number by itself: the stack learns what K separate runs would.
`tests/test_train.py` holds it to that, and to torch.optim.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.optim.adamw import adamw

from common.captured import CapturedSteps
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


def can_be_captured(recipe: Recipe) -> bool:
    """Whether a step needs no new number of the host, as schedules and dropout do."""
    return not (recipe.is_cosine or recipe.dropout or recipe.input_dropout)


def scaler_key(job: Job) -> tuple[bytes, float | None]:
    """Jobs of equal keys scale alike."""
    return job.split.train.tobytes(), job.shrinkage


class ScaledFeatures:
    """Scalers and scaled features (N, D + 1), a 1 after each row, by set of training rows, made once and shared until no stack needs them."""

    def __init__(
        self, features: FeatureSet, stacks: Sequence[Sequence[Job]], recipe: Recipe, device: torch.device
    ) -> None:
        self.raw, self.recipe, self.device, self.lock = features.features.numpy(), recipe, device, threading.Lock()
        self.needed = Counter(key for jobs in stacks for key in {scaler_key(job) for job in jobs})
        self.made: dict[tuple[bytes, float | None], tuple[Scaler, torch.Tensor]] = {}

    def get(self, job: Job) -> tuple[Scaler, torch.Tensor]:
        """The scaler fitted on the job's training rows, and all features scaled by it, each row with a 1 after it."""
        key = scaler_key(job)
        with self.lock:  # one at a time: float64 copies of a large set take gigabytes
            if key not in self.made:
                rows, recipe = self.raw[job.split.train], self.recipe
                shrinkage = shrinkage_for(recipe, job.shrinkage, *rows.shape)
                scaler = fit_scaler(recipe.scaler, rows, shrinkage, recipe.is_unit_length)
                self.made[key] = scaler, _with_ones(torch.from_numpy(scaler(self.raw))).to(self.device)
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
        own = {scaler_key(job): shared.get(job) for job in jobs}
        self.scalers = [own[scaler_key(job)][0] for job in jobs]
        sets = [scaled for _, scaled in own.values()]
        # (S * N, D + 1), one set of scaled rows after the other; one alone is not copied
        self.scaled = torch.cat(sets) if len(sets) > 1 else sets[0]
        places = {key: place * len(features) for place, key in enumerate(own)}
        self.first_row = torch.tensor([places[scaler_key(job)] for job in jobs], device=device)  # (K,)
        self.valid = [torch.from_numpy(job.split.valid).to(device) for job in jobs]
        self.test = [torch.from_numpy(job.split.test).to(device) for job in jobs]
        self.orders = [generator(job.seed, job.split.name) for job in jobs]
        self.noises = [generator(job.seed, f"{job.split.name}, noise", device) for job in jobs]
        self.layers = self._initial_layers(features.features.shape[1])
        self.gradients = [torch.zeros_like(layer) for layer in self.layers]
        shapes = [(len(jobs), recipe.batch_size, layer.shape[2] + 1) for layer in self.layers[:-1]]
        self.hidden = [torch.ones(shape, device=device) for shape in shapes]
        steps = [recipe.epochs * math.ceil(len(job.split.train) / recipe.batch_size) for job in jobs]
        self.optimizer = _Optimizer(self.layers, self.gradients, recipe, steps)
        self.total = torch.zeros(len(jobs), device=device)  # the epoch's summed cross-entropy
        self.captured = CapturedSteps() if device.type == "cuda" and can_be_captured(recipe) else None
        self.train_loss: list[list[float]] = [[] for _ in jobs]
        self.valid_accuracy: list[list[float]] = [[] for _ in jobs]
        self.test_accuracy: list[list[float]] = [[] for _ in jobs]
        self.kept: list[list[torch.Tensor]] = [[] for _ in jobs]  # layers of the epoch to keep, so far

    def _initial_layers(self, size: int) -> list[torch.Tensor]:
        """Per linear layer (K, in + 1, out), the weight and below it the bias; of each head as its seed draws them."""
        drawn: dict[int, list[torch.Tensor]] = {}
        for job in self.jobs:
            if job.seed not in drawn:
                with GLOBAL_RNG, torch.random.fork_rng(devices=[]):
                    torch.manual_seed(job.seed)
                    module = HEADS[self.kind](size, self.n_classes, self.recipe.hidden_dim)
                linear = [layer for layer in module if isinstance(layer, nn.Linear)]
                drawn[job.seed] = [torch.cat([layer.weight.t(), layer.bias[None]]).detach() for layer in linear]
        stacked = zip(*(drawn[job.seed] for job in self.jobs), strict=True)
        return [torch.stack(layers).to(self.device) for layers in stacked]

    @torch.no_grad()
    def epoch(self) -> None:
        """One pass over every head's training rows, and a look at its validation and test rows."""
        batch_size, sizes = self.recipe.batch_size, [len(job.split.train) for job in self.jobs]
        n_batches = [math.ceil(size / batch_size) for size in sizes]
        # Padded with a training row, though what is beyond a head's own rows counts nothing.
        rows = torch.tensor([[job.split.train[0]] for job in self.jobs]).repeat(1, n_batches[0] * batch_size)
        for head, (job, generator) in enumerate(zip(self.jobs, self.orders, strict=True)):
            shuffled = torch.randperm(sizes[head], generator=generator)
            rows[head, : sizes[head]] = torch.from_numpy(job.split.train)[shuffled]
        rows = rows.to(self.device)
        ends = torch.tensor(sizes, device=self.device)[:, None]
        places = torch.arange(rows.shape[1], device=self.device)
        starts = places // batch_size * batch_size
        own = places < ends
        shares = own / (ends - starts).clamp(min=1, max=batch_size)
        labels, rows = self.labels[rows], rows + self.first_row[:, None]
        batches = [
            each.view(len(sizes), n_batches[0], batch_size).transpose(0, 1).contiguous()  # (S, K, B)
            for each in (rows, labels, shares, own)
        ]
        self.total.zero_()
        first = 0
        if self.captured is not None:
            first = min(n_batches)  # after which not all heads have batches left
            self.captured.run(self._step, [each[:first] for each in batches])
        for number in range(first, n_batches[0]):
            self._step(*(each[number, : sum(n > number for n in n_batches)] for each in batches))
        for head, loss in enumerate((self.total / ends[:, 0]).tolist()):
            self.train_loss[head].append(loss)
        self._look()

    def _step(self, rows: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor, own: torch.Tensor) -> None:
        """One step of the first A heads down the gradients of the mean cross-entropy of each one's own rows, written out:
        autograd would allocate all of them anew at every step.

        Args:
            rows: (A, B) of the scaled features.
            labels: (A, B).
            shares: (A, B), of the rows in the mean; 0 where a row does not count.
            own: (A, B), whether it counts.
        """
        active, batch = rows.shape
        labels = labels[..., None]
        smoothing, n_layers = self.recipe.label_smoothing, len(self.layers)
        x = self.scaled.index_select(0, rows.flatten()).view(active, batch, -1)
        inputs, masks = [x], [self._drop(x, self.recipe.input_dropout)]
        for layer, hidden in zip(self.layers[:-1], self.hidden, strict=True):
            x = hidden[:active]
            torch.clamp_min(torch.bmm(inputs[-1], layer[:active]), 0, out=x[..., :-1])
            inputs.append(x)
            masks.append(self._drop(x, self.recipe.dropout))
        error = torch.bmm(inputs[-1], self.layers[-1][:active]).log_softmax(dim=2)  # (A, B, C)
        loss = error.gather(2, labels)[..., 0] * (smoothing - 1)
        if smoothing:
            loss -= error.mean(dim=2) * smoothing
        self.total[:active] += (loss * own).sum(dim=1)
        error = error.exp_()
        if smoothing:
            error -= smoothing / self.n_classes
        error.scatter_add_(2, labels, torch.full_like(error[..., :1], smoothing - 1))
        error *= shares[..., None]
        for number in reversed(range(n_layers)):
            torch.bmm(inputs[number].transpose(1, 2), error, out=self.gradients[number][:active])
            if number:
                error = torch.bmm(error, self.layers[number][:active, :-1].transpose(1, 2))
                if masks[number] is not None:
                    error *= masks[number]
                # What was not dropped and not rectified.
                error = torch.ops.aten.threshold_backward(error, inputs[number][..., :-1], 0)
        self.optimizer.step(active)

    def _drop(self, x: torch.Tensor, probability: float) -> torch.Tensor | None:
        """Dropout of all but the 1 at each row's end, in place, with each head's own random numbers: the factors."""
        if not probability:
            return None
        values = x[..., :-1]
        drawn = torch.zeros_like(values)
        for head in range(len(x)):
            # Always for a whole batch, so that a head's numbers do not depend on how long its neighbours' last one is.
            size = (min(self.recipe.batch_size, len(self.jobs[head].split.train)), values.shape[2])
            own = torch.rand(size, generator=self.noises[head], device=x.device)
            drawn[head, : len(own)] = own
        factors = (drawn >= probability) / (1 - probability)
        values *= factors
        return factors

    def _look(self) -> None:
        """Note the accuracies after an epoch, and the layers where they are those to keep so far.

        What is kept depends on the job and the validation rows alone; the test accuracy is only written down.
        """
        for head, accuracy in self._accuracies(self.test).items():
            self.test_accuracy[head].append(accuracy)
        valid = self._accuracies(self.valid)
        for head, job in enumerate(self.jobs):
            before = max(self.valid_accuracy[head], default=-1.0)
            if head in valid:
                self.valid_accuracy[head].append(valid[head])
            is_best = head in valid and valid[head] > before
            if is_best if job.keep is None else len(self.train_loss[head]) == job.keep:
                self.kept[head] = [layer[head].clone() for layer in self.layers]

    def _accuracies(self, part: Sequence[torch.Tensor]) -> dict[int, float]:
        """Head -> its accuracy on its rows, where it has any."""
        accuracies = {}
        for head, rows in enumerate(part):
            if not len(rows):
                continue
            x = self.scaled[self.first_row[head] + rows][:, :-1]
            for number, layer in enumerate(self.layers):
                x = torch.addmm(layer[head, -1:], x.relu_() if number else x, layer[head, :-1])
            accuracies[head] = (x.argmax(dim=1) == self.labels[rows]).float().mean()
        fetched = torch.stack(list(accuracies.values())).tolist() if accuracies else []
        return dict(zip(accuracies, fetched, strict=True))

    def finish(self) -> list[FittedHead]:
        return [self._fitted(head) for head in range(len(self.jobs))]

    @torch.no_grad()
    def _fitted(self, head: int) -> FittedHead:
        job, accuracies = self.jobs[head], self.valid_accuracy[head]
        layers = self.kept[head] or [layer[head] for layer in self.layers]
        epoch = len(self.train_loss[head])
        if self.kept[head]:
            epoch = job.keep or 1 + accuracies.index(max(accuracies))
        with GLOBAL_RNG:
            module = HEADS[self.kind](len(self.scalers[head].mean), self.n_classes, self.recipe.hidden_dim)
        linear = [each for each in module if isinstance(each, nn.Linear)]
        for each, layer in zip(linear, layers, strict=True):
            each.weight.copy_(layer[:-1].t())
            each.bias.copy_(layer[-1])
        test = self.scaled[self.first_row[head] + self.test[head], :-1]
        logits = module.eval()(test.cpu())
        if not torch.isfinite(logits).all() or not math.isfinite(self.train_loss[head][-1]):
            raise FitError(
                f"the {self.kind.replace('_', '-')} head diverged ({job.split.name}, seed {job.seed}): lower "
                "--learning-rate, or scale the features (--scaler standard)"
            )
        module.requires_grad_(False)
        curves = (self.train_loss[head], accuracies, self.test_accuracy[head])
        return FittedHead(job, module, self.scalers[head], logits, *curves, epoch)


class _Optimizer:
    """torch's fused AdamW (Adam without decay) on stacked layers, of which only the first `active` heads step.

    Heads with as many batches in an epoch are one run, whose slice of a layer is one parameter: a shorter run must stand
    still in the last batches of its neighbours, and its moments and step counts with it. Where weights decay, biases do
    not, and every head's are parameters of their own.
    """

    def __init__(
        self,
        layers: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        recipe: Recipe,
        steps: Sequence[int],
    ) -> None:
        self.recipe, self.steps = recipe, steps
        bounds = [0, *(head for head in range(1, len(steps)) if steps[head] != steps[head - 1]), len(steps)]
        self.runs = list(itertools.pairwise(bounds))
        self.done = [0] * len(self.runs)
        whole = (layers, gradients, *([torch.zeros_like(layer) for layer in layers] for _ in range(2)))
        # decay -> per run: parameters, gradients, both moments, step counts
        self.state: dict[float, list[list[list[torch.Tensor]]]] = {}
        if recipe.weight_decay:
            for decay, part in ((recipe.weight_decay, slice(None, -1)), (0.0, slice(-1, None))):  # weights, biases
                self.state[decay] = [
                    [[each[head, part] for head in range(*run) for each in tensors] for tensors in whole]
                    for run in self.runs
                ]
        else:
            self.state[0.0] = [[[each[slice(*run)] for each in tensors] for tensors in whole] for run in self.runs]
        for runs in self.state.values():
            for parts in runs:
                parts.append([torch.zeros((), device=layers[0].device) for _ in parts[0]])

    def step(self, active: int) -> None:
        """One step of the first `active` heads, which are whole runs."""
        for number, (first, _) in enumerate(self.runs):
            if first >= active:
                return
            rate = self.recipe.learning_rate
            if self.recipe.is_cosine:
                rate *= 0.5 * (1 + math.cos(math.pi * self.done[number] / self.steps[first]))
            for decay, runs in self.state.items():
                parameters, gradients, mean, square, counts = runs[number]
                adamw(
                    parameters,
                    gradients,
                    mean,
                    square,
                    [],
                    counts,
                    fused=True,
                    amsgrad=False,
                    beta1=ADAM_BETAS[0],
                    beta2=ADAM_BETAS[1],
                    lr=rate,
                    weight_decay=decay,
                    eps=ADAM_EPS,
                    maximize=False,
                )
            self.done[number] += 1


def generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A stream of random numbers of its own for every seed and name."""
    entropy = np.random.SeedSequence([seed, *name.encode()]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(entropy) >> 1)


def _with_ones(rows: torch.Tensor) -> torch.Tensor:
    """(N, D) -> (N, D + 1)."""
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
