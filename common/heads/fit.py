"""Fitting heads: one head a core by compiled steps, or by plain torch on a GPU; the epoch chosen on validation rows."""

from __future__ import annotations

import math
import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import nn

from common.arrays import Array
from common.features import FeatureSet
from common.heads.batches import Batches, Shuffle, append_one, padded
from common.heads.classifiers import HEADS, HeadKind, head_title
from common.heads.jobs import Curves, FitError, FittedHead, Job, Split
from common.heads.plain import PlainHead
from common.heads.recipes import Recipe, shrinkage_for
from common.heads.scalers import DEFAULT_SHRINKAGE, SHRINKAGES, Scaler, fit_scaler, one_blas_thread
from common.progress import progress_bar

GLOBAL_RNG = threading.Lock()  # torch initialises layers from its one global generator


@dataclass(frozen=True)
class ChosenHead:
    """What `fit_chosen` gives for one job.

    Attributes:
        choosing: the head that chose the epoch on validation rows.
        final: the head to score; `choosing` itself if it was not fitted again.
    """

    choosing: FittedHead
    final: FittedHead


def fit_chosen(
    kind: HeadKind,
    features: FeatureSet,
    jobs: Sequence[Job],
    recipe: Recipe,
    device: torch.device,
    refit: bool = True,
) -> list[ChosenHead]:
    """Fit every job with its epoch chosen on validation rows, then again on training and validation rows.

    - The epoch with the highest accuracy on the job's validation rows is chosen, and so is the shrinkage of whitening
      if the recipe leaves it open. A job without validation rows keeps its last epoch.
    - Then the head is fitted again on training and validation rows, with its scaler, up to that epoch, unless `refit`
      is False.
    - A recipe whose learning rate falls to 0 keeps its last epoch. If nothing else is left to choose, the validation
      rows are used for training from the start.
    """
    if recipe.is_cosine:
        jobs = [replace(job, keep=recipe.epochs) for job in jobs]
        if refit and not recipe.leaves_shrinkage_open:
            whole = [replace(job, split=_all_train(job.split), shrinkage=recipe.shrinkage) for job in jobs]
            return [ChosenHead(head, head) for head in fit_heads(kind, features, whole, recipe, device)]
    choosing = _choose(kind, features, jobs, recipe, device)
    if not refit:
        return [ChosenHead(head, head) for head in choosing]
    again = {
        index: replace(head.job, split=_all_train(head.job.split), keep=head.epoch)
        for index, head in enumerate(choosing)
        if len(head.job.split.valid)
    }
    fitted = dict(zip(again, fit_heads(kind, features, list(again.values()), recipe, device), strict=True))
    return [ChosenHead(head, fitted.get(index, head)) for index, head in enumerate(choosing)]


def _choose(
    kind: HeadKind, features: FeatureSet, jobs: Sequence[Job], recipe: Recipe, device: torch.device
) -> list[FittedHead]:
    """Each job's head of the epoch and, if it is open, the shrinkage of whitening that are best on validation rows."""
    if not recipe.leaves_shrinkage_open:
        return fit_heads(kind, features, [replace(job, shrinkage=recipe.shrinkage) for job in jobs], recipe, device)
    best: list[FittedHead] = []
    for shrinkage in SHRINKAGES:
        tried = [replace(job, shrinkage=shrinkage if len(job.split.valid) else DEFAULT_SHRINKAGE) for job in jobs]
        heads = fit_heads(kind, features, tried, recipe, device)
        if best:  # ties keep the first
            heads = [
                head if head.valid_accuracy > before.valid_accuracy else before
                for before, head in zip(best, heads, strict=True)
            ]
        best = heads
    return best


def _all_train(split: Split) -> Split:
    """The split with its validation rows among the training rows."""
    return replace(split, train=split.learnable, valid=np.arange(0))


def fit_heads(
    kind: HeadKind, features: FeatureSet, jobs: Sequence[Job], recipe: Recipe, device: torch.device
) -> list[FittedHead]:
    """Fit one head per job by the recipe.

    The kept epoch is the one of the highest validation accuracy (the first if tied), or the job's `keep`, or the last
    one. The scaler and the head see training rows only. A head's random numbers come from its seed and its split's
    name, and every head is fitted by itself, so it is the same beside any others.

    Args:
        kind: a key of HEADS.
        device: the CPU: compiled steps, one head a core. A GPU: plain torch, one head after the other.

    Returns:
        The fitted heads in the order of `jobs`.
    """
    is_cpu = device.type == "cpu"
    if is_cpu:
        import common.heads.steps  # noqa: F401  # here, and not by several threads at once
    scaled = _ScaledRows(features.features.numpy(), jobs, recipe, device)
    labels, n_classes, stop = features.labels.numpy(), len(features.class_names), threading.Event()
    bar = progress_bar(total=recipe.epochs * len(jobs), desc=f"fitting {len(jobs)} x {kind}", unit="epoch", leave=False)

    def fit(job: Job) -> FittedHead:
        torch.set_num_threads(1)  # each core has a head of its own
        scaler, rows = scaled.take(job)
        fitting = _Fitting(kind, job, labels, n_classes, scaler, rows, recipe, device)
        # Moments of dead weights decay to denormals, about 100x slower. This holds for the calling thread. Scaling is
        # done before: NumPy warns where there are no denormals.
        torch.set_flush_denormal(True)
        try:
            while fitting.n_epochs < recipe.epochs and not stop.is_set():
                fitting.epoch()
                bar.update()
            return fitting.finish()
        finally:
            torch.set_flush_denormal(False)
            scaled.release(job)

    threads = torch.get_num_threads()
    with bar, one_blas_thread(), ThreadPoolExecutor((os.cpu_count() or 1) if is_cpu else 1) as pool:
        # Jobs with the same scaled rows follow one another, so that few copies of the rows are kept at once.
        places = {key: place for place, key in enumerate(dict.fromkeys(job.scaler_key for job in jobs))}
        order = sorted(range(len(jobs)), key=lambda index: places[jobs[index].scaler_key])
        try:
            fitted = dict(zip(order, pool.map(fit, [jobs[index] for index in order]), strict=True))
        except BaseException:
            stop.set()  # Ctrl-C must not wait for the other threads' last epoch
            raise
        finally:
            torch.set_num_threads(threads)
    return [fitted[index] for index in range(len(jobs))]


class _ScaledRows:
    """Scalers and scaled embeddings, made once for each set of training rows, and freed after the last job."""

    def __init__(self, raw: Array, jobs: Sequence[Job], recipe: Recipe, device: torch.device) -> None:
        self._raw, self._recipe, self._device, self._lock = raw, recipe, device, threading.Lock()
        self._needed = Counter(job.scaler_key for job in jobs)
        self._made: dict[tuple[bytes, float | None], tuple[Scaler, torch.Tensor]] = {}

    def take(self, job: Job) -> tuple[Scaler, torch.Tensor]:
        """The scaler fitted on the job's training rows, and all rows scaled by it, as `append_one` gives them."""
        with self._lock:  # one at a time: float64 copies of a large set take gigabytes
            if job.scaler_key not in self._made:
                train, recipe = self._raw[job.split.train], self._recipe
                shrinkage = shrinkage_for(recipe, job.shrinkage, *train.shape)
                scaler = fit_scaler(recipe.scaler, train, shrinkage, recipe.is_unit_length)
                rows = append_one(torch.from_numpy(scaler(self._raw))).to(self._device)
                self._made[job.scaler_key] = scaler, rows
            return self._made[job.scaler_key]

    def release(self, job: Job) -> None:
        """Free the rows if no other job needs them."""
        with self._lock:
            self._needed[job.scaler_key] -= 1
            if not self._needed[job.scaler_key]:
                self._made.pop(job.scaler_key, None)


class _Head(Protocol):
    """A head that is being fitted."""

    def epoch(self, rows: torch.Tensor, batches: Batches) -> float: ...

    def logits(self, x: torch.Tensor) -> torch.Tensor: ...

    def state(self) -> dict[str, torch.Tensor]: ...


class CompiledHead:
    """A head that is fitted by compiled steps on a CPU."""

    def __init__(self, module: nn.Sequential, recipe: Recipe, n_steps: int) -> None:
        """Start from the weights of `module`; `n_steps` is the length of the whole fit."""
        from common.heads.steps import Layer, Regularisation  # takes half a second

        self.recipe, self.n_steps, self.done = recipe, n_steps, 0
        linear = {name: layer for name, layer in module.named_children() if isinstance(layer, nn.Linear)}
        self.names, weights = list(linear), [_as_rows(layer) for layer in linear.values()]
        self.layers = tuple(
            Layer(rows, _zeros(*rows.shape), _zeros(*rows.shape), layer.in_features + 1)
            for layer, rows in zip(linear.values(), weights, strict=True)
        )
        dropouts = np.array([recipe.label_smoothing, recipe.input_dropout, recipe.dropout], np.float32)
        self.regularisation = Regularisation(recipe.weight_decay, *dropouts)

    def epoch(self, rows: torch.Tensor, batches: Batches) -> float:
        """Take a step for each batch of the (N, P) `rows`; returns the sum of the cross-entropies."""
        from common.compiled import call
        from common.heads.steps import make_room, take_steps

        rates = np.array([self.recipe.rate(self.done + step, self.n_steps) for step in range(len(batches.order))])
        arrays = tuple(part.numpy() for part in batches)
        rooms = make_room(self.layers, batches.order.shape[1])
        total = call(take_steps, rows.numpy(), arrays, self.layers, rooms, self.regularisation, self.done, rates)
        self.done += len(rates)
        return float(total)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(M, D) scaled embeddings -> (M, C), without dropout."""
        for number, layer in enumerate(self.layers):
            weights, width = torch.from_numpy(layer.weights), layer.n_inputs - 1
            x = torch.addmm(weights[width], x.relu_() if number else x, weights[:width])
        return x

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of the layers as a module's state."""
        state: dict[str, torch.Tensor] = {}
        for name, layer in zip(self.names, self.layers, strict=True):
            weights, width = torch.from_numpy(layer.weights), layer.n_inputs - 1
            state |= {f"{name}.weight": weights[:width].t().contiguous(), f"{name}.bias": weights[width].clone()}
        return state


def _as_rows(layer: nn.Linear) -> Array:
    """A linear layer as (padded(in), out) float32: weights, bias, zeros."""
    rows = _zeros(padded(layer.in_features), layer.out_features)
    rows[: layer.in_features] = layer.weight.detach().t().numpy()
    rows[layer.in_features] = layer.bias.detach().numpy()
    return rows


def _zeros(n_rows: int, n_columns: int) -> Array:
    """float32 zeros that begin at a cache line, as torch allocates them and NumPy does not."""
    zeros: Array = torch.zeros(n_rows, n_columns).numpy()
    return zeros


class _Fitting:
    """The fit of one job, epoch by epoch."""

    def __init__(
        self,
        kind: HeadKind,
        job: Job,
        labels: Array,
        n_classes: int,
        scaler: Scaler,
        rows: torch.Tensor,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        self.kind, self.job, self.scaler, self.rows = kind, job, scaler, rows
        with GLOBAL_RNG, torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            module = HEADS[kind](scaler.width, n_classes, recipe.hidden_dim)
        n_hidden = sum(isinstance(layer, nn.ReLU) for layer in module)
        self.shuffle = Shuffle(job, labels, recipe, scaler.width, n_hidden)
        n_steps = recipe.epochs * self.shuffle.n_batches
        self.module = module
        self.head: _Head = (
            CompiledHead(module, recipe, n_steps)
            if device.type == "cpu"
            else PlainHead(module, recipe, n_steps, device)
        )
        self.labels = torch.from_numpy(labels).to(device)
        self.curves = Curves([], [], [])
        self.kept: dict[str, torch.Tensor] | None = None  # the state after the epoch to keep, so far

    @property
    def n_epochs(self) -> int:
        """The epochs done."""
        return len(self.curves.train_loss)

    def epoch(self) -> None:
        """One pass over the training rows, then the accuracies; the state is kept if it is the best or required one.

        What is kept depends only on the job and the validation rows; the test accuracy is only recorded.
        """
        loss = self.head.epoch(self.rows, self.shuffle.draw()) / len(self.job.split.train)
        self.curves.train_loss.append(loss)
        is_kept = self.n_epochs == self.job.keep
        if len(self.job.split.valid):
            accuracy = self._accuracy(self.job.split.valid)
            if self.job.keep is None:
                is_kept = accuracy > max(self.curves.valid_accuracy, default=-1.0)
            self.curves.valid_accuracy.append(accuracy)
        if len(self.job.split.test):
            self.curves.test_accuracy.append(self._accuracy(self.job.split.test))
        if is_kept:
            self.kept = self.head.state()

    def _accuracy(self, numbers: Array) -> float:
        rows = torch.from_numpy(numbers).to(self.rows.device)
        logits = self.head.logits(self.rows[rows, : self.scaler.width])
        return float((logits.argmax(dim=1) == self.labels[rows]).float().mean())

    @torch.no_grad()
    def finish(self) -> FittedHead:
        """The head at its kept epoch; FitError if it diverged."""
        job, curves = self.job, self.curves
        epoch = self.n_epochs
        if self.kept is not None:
            epoch = job.keep or 1 + curves.valid_accuracy.index(max(curves.valid_accuracy))
        module = self.module.cpu()
        module.load_state_dict(self.kept or self.head.state())
        module.eval().requires_grad_(False)
        logits, valid_logits = (
            module(self.rows[torch.from_numpy(numbers), : self.scaler.width].cpu())
            for numbers in (job.split.test, job.split.valid)
        )
        if not torch.isfinite(logits).all() or not math.isfinite(curves.train_loss[-1]):
            raise FitError(
                f"the {head_title(self.kind)} head diverged ({job.split.name}, seed {job.seed}): lower "
                "--learning-rate, or scale the features (--scaler standard)"
            )
        return FittedHead(job, module, self.scaler, logits, valid_logits, curves, epoch)
