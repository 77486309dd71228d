"""Fitting heads: compiled steps with a head per core, or plain torch on a GPU; validation rows choose the epoch."""

from __future__ import annotations

import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from common.arrays import Array
from common.average_precision import average_precisions
from common.features import FeatureSet
from common.heads.jobs import Curves, FitError, FittedHead, Job, Split, draw_batches, new_rows
from common.heads.plain import PlainHead
from common.heads.recipes import HEADS, HeadKind, Recipe, fit_recipe_scaler, head_title, new_head
from common.heads.scalers import DEFAULT_SHRINKAGE, SHRINKAGES, Scaler, one_blas_thread
from common.heads.steps import CompiledHead
from common.progress import progress_bar

BLOCK = 1 << 14  # rows whose logits are computed at a time
GLOBAL_RNG = threading.Lock()  # torch initialises layers from a global generator


@dataclass(frozen=True)
class ChosenHead:
    """What `fit_chosen` gives for a job."""

    choosing: FittedHead  # the head that chose the epoch on validation rows
    final: FittedHead  # the head to score; the same, unless it was fitted again


def fit_chosen(
    kind: HeadKind, features: FeatureSet, jobs: Sequence[Job], recipe: Recipe, device: torch.device, refit: bool = True
) -> list[ChosenHead]:
    """Fit every job with its epoch chosen on validation rows; then, with `refit`, head and scaler again on training and
    validation rows, up to that epoch. The epoch (and the shrinkage of whitening, if the recipe leaves it open) has the highest
    validation score: accuracy, or mean average precision. Without validation rows, or if the learning rate falls to 0, it is the
    last; if then nothing else is left to choose, validation rows are used for training from the start."""
    if recipe.is_cosine:
        jobs = [replace(job, keep=recipe.epochs) for job in jobs]
        if refit and not recipe.leaves_shrinkage_open:
            whole = [replace(job, split=_all_train(job.split), shrinkage=recipe.shrinkage) for job in jobs]
            return [ChosenHead(head, head) for head in fit_heads(kind, features, whole, recipe, device)]
    choosing = _choose(kind, features, jobs, recipe, device)
    again = {
        index: replace(head.job, split=_all_train(head.job.split), keep=head.epoch)
        for index, head in enumerate(choosing)
        if refit and len(head.job.split.valid)
    }
    fitted = dict(zip(again, fit_heads(kind, features, list(again.values()), recipe, device), strict=True))
    return [ChosenHead(head, fitted.get(index, head)) for index, head in enumerate(choosing)]


def _choose(
    kind: HeadKind, features: FeatureSet, jobs: Sequence[Job], recipe: Recipe, device: torch.device
) -> list[FittedHead]:
    """The heads of the epoch and, if left open, the shrinkage of whitening that are best on validation rows."""
    if not recipe.leaves_shrinkage_open:
        return fit_heads(kind, features, [replace(job, shrinkage=recipe.shrinkage) for job in jobs], recipe, device)
    best: list[FittedHead] = []
    for shrinkage in SHRINKAGES:
        tried = [replace(job, shrinkage=shrinkage if len(job.split.valid) else DEFAULT_SHRINKAGE) for job in jobs]
        heads = fit_heads(kind, features, tried, recipe, device)
        # Ties keep the first.
        best = [max(pair, key=lambda head: head.valid_score) for pair in zip(best or heads, heads, strict=True)]
    return best


def _all_train(split: Split) -> Split:
    return replace(split, train=split.learnable, valid=np.arange(0))


def fit_heads(
    kind: HeadKind, features: FeatureSet, jobs: Sequence[Job], recipe: Recipe, device: torch.device
) -> list[FittedHead]:
    """Fit a head per job by the recipe: on the CPU by compiled steps, a head per core; on a GPU by plain torch, in turn. The
    kept epoch is the job's `keep`, or the first of the highest validation score, or the last. Scaler and head see training rows
    only. A head is the same whatever else is fitted."""
    scaled = _ScaledRows(features.features.numpy(), jobs, recipe, device)
    stop = threading.Event()
    bar = progress_bar(total=recipe.epochs * len(jobs), desc=f"fitting {len(jobs)} x {kind}", unit="epoch", leave=False)

    def fit(job: Job) -> FittedHead:
        torch.set_num_threads(1)  # the cores have other heads
        fitting = _Fitting(kind, job, features, scaled, recipe)
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
    with bar, one_blas_thread(), ThreadPoolExecutor((os.cpu_count() or 1) if device.type == "cpu" else 1) as pool:
        # Jobs with the same scaled rows are adjacent, so that few copies of the rows exist at once.
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
    """Scalers and scaled embeddings, made once per set of training rows, and freed after its last job."""

    def __init__(self, raw: Array, jobs: Sequence[Job], recipe: Recipe, device: torch.device) -> None:
        self.device = device
        self._raw, self._recipe, self._lock = raw, recipe, threading.Lock()
        self._needed = Counter(job.scaler_key for job in jobs)
        self._made: dict[tuple[bytes, float | None], tuple[Scaler, torch.Tensor]] = {}

    def take(self, job: Job) -> tuple[Scaler, torch.Tensor]:
        """The scaler fitted on the job's training rows, and all rows scaled by it, as in `new_rows`."""
        with self._lock:  # not in parallel: float64 copies of a large set take gigabytes
            if job.scaler_key not in self._made:
                scaler = fit_recipe_scaler(self._recipe, self._raw, job.split.train, job.shrinkage)
                rows = new_rows(len(self._raw), scaler.width)
                scaler(self._raw, out=rows[:, : scaler.width])
                self._made[job.scaler_key] = scaler, torch.from_numpy(rows).to(self.device)
            return self._made[job.scaler_key]

    def release(self, job: Job) -> None:
        with self._lock:
            self._needed[job.scaler_key] -= 1
            if not self._needed[job.scaler_key]:
                self._made.pop(job.scaler_key, None)


class _Fitting:
    """The fit of a job, epoch by epoch."""

    def __init__(self, kind: HeadKind, job: Job, features: FeatureSet, scaled: _ScaledRows, recipe: Recipe) -> None:
        self.kind, self.job = kind, job
        self.scaler, self.rows = scaled.take(job)
        self.class_names = features.class_names
        with GLOBAL_RNG, torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            self.module = new_head(kind, self.scaler.width, len(features.class_names), recipe.hidden_dim)
        self.batches = draw_batches(job, features.labels, recipe, self.scaler.width, HEADS[kind])
        n_steps = recipe.epochs * math.ceil(len(job.split.train) / recipe.batch_size)
        on_cpu, arguments = scaled.device.type == "cpu", (self.module, recipe, n_steps)
        self.head = CompiledHead(*arguments) if on_cpu else PlainHead(*arguments, scaled.device)
        self.labels = features.labels.to(scaled.device)
        self.curves = Curves([], [], [])
        self.kept: tuple[int, dict[str, torch.Tensor]] | None = None  # the epoch to keep so far, and its state

    @property
    def n_epochs(self) -> int:
        return len(self.curves.train_loss)

    def epoch(self) -> None:
        """A pass over the training rows, then the scores; the state is kept if its epoch is the best or required one. Test
        scores are recorded, and decide nothing."""
        loss = self.head.epoch(self.rows, next(self.batches)) / len(self.job.split.train)
        self.curves.train_loss.append(loss)
        is_kept = self.n_epochs == self.job.keep
        if len(self.job.split.valid):
            score = self._score(self.job.split.valid)
            if self.job.keep is None:
                is_kept = score > max(self.curves.valid, default=-1.0)
            self.curves.valid.append(score)
        # What the original project chose by; with several labels a clip nobody did.
        if len(self.job.split.test) and self.labels.ndim == 1:
            self.curves.test.append(self._score(self.job.split.test))
        if is_kept:
            self.kept = self.n_epochs, self.head.state()

    def _logits(self, head: Callable[[torch.Tensor], torch.Tensor], numbers: Array) -> torch.Tensor:
        """(M, C) on the CPU, written in place: small results between large blocks would leave holes in memory."""
        logits = torch.empty(len(numbers), len(self.class_names))
        blocks = torch.from_numpy(numbers).to(self.rows.device).split(BLOCK)
        for rows, into in zip(blocks, logits.split(BLOCK), strict=True):
            into.copy_(head(self.rows[rows, : self.scaler.width]))
        return logits

    def _score(self, numbers: Array) -> float:
        """The accuracy, or with several labels a clip the mean average precision."""
        labels, logits = self.labels.cpu()[torch.from_numpy(numbers)], self._logits(self.head.logits, numbers)
        if labels.ndim == 1:
            return int((logits.argmax(dim=1) == labels).sum()) / len(numbers)
        return float(np.nanmean(average_precisions(labels.numpy(), logits.numpy())))

    @torch.no_grad()
    def finish(self) -> FittedHead:
        """The head at its kept epoch; FitError if it diverged."""
        job, module = self.job, self.module.cpu()
        epoch, state = self.kept or (self.n_epochs, self.head.state())
        module.load_state_dict(state)
        module.eval().requires_grad_(False)
        logits, valid_logits = (
            self._logits(lambda rows: module(rows.cpu()), numbers) for numbers in (job.split.test, job.split.valid)
        )
        if not torch.isfinite(logits).all() or not math.isfinite(self.curves.train_loss[-1]):
            raise FitError(
                f"the {head_title(self.kind)} head diverged ({job.split.name}, seed {job.seed}): lower "
                "--learning-rate, or scale the features (--scaler standard)"
            )
        return FittedHead(job, module, self.scaler, logits, valid_logits, self.curves, epoch)
