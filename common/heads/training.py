"""Fitting heads: the epoch chosen on validation rows, and all heads of a kind fitted in stacks.

Whatever their splits and seeds, heads are put into stacks (`common.heads.batched_fit`) that fit into a CPU's cache, one
stack per core.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from common.features import FeatureSet
from common.heads.batched_fit import BatchedFit
from common.heads.classifiers import HeadKind
from common.heads.compiled_fit import is_compiled
from common.heads.jobs import FittedHead, Job, Split
from common.heads.recipes import Recipe
from common.heads.scaled_rows import ScaledFeatures
from common.heads.scalers import DEFAULT_SHRINKAGE, SHRINKAGES
from common.progress import progress_bar

SCALED_BYTES = 4e9  # of scaled copies of the features that are kept at once
CACHED_BYTES = 12_000_000  # of weights, gradients and moments of a stack that a CPU's cache holds


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
    - Then the head is fitted again on training and validation rows, with a scaler of its own, up to that epoch, unless
      `refit` is False.
    - A recipe whose learning rate falls to 0 keeps its last epoch. If nothing else is left to choose, the validation
      rows are used for training from the start.
    """
    if recipe.is_cosine:
        jobs = [replace(job, keep=recipe.epochs) for job in jobs]
        if refit and not _leaves_shrinkage_open(recipe):
            whole = [replace(job, split=_all_train(job.split), shrinkage=recipe.shrinkage) for job in jobs]
            return [ChosenHead(head, head) for head in fit_heads(kind, features, whole, recipe, device)]
    choosing = _choose(kind, features, jobs, recipe, device)
    if not refit:
        return [ChosenHead(head, head) for head in choosing]
    return _fit_again(kind, features, choosing, recipe, device)


def _leaves_shrinkage_open(recipe: Recipe) -> bool:
    return recipe.scaler == "whiten" and recipe.shrinkage is None and recipe.relative_shrinkage is None


def _choose(
    kind: HeadKind, features: FeatureSet, jobs: Sequence[Job], recipe: Recipe, device: torch.device
) -> list[FittedHead]:
    """Each job's head of the epoch and, if it is open, the shrinkage of whitening that are best on validation rows."""
    if not _leaves_shrinkage_open(recipe):
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


def _fit_again(
    kind: HeadKind, features: FeatureSet, choosing: Sequence[FittedHead], recipe: Recipe, device: torch.device
) -> list[ChosenHead]:
    """Fit again, on training and validation rows up to the chosen epoch, every job that has validation rows."""
    again = {
        index: replace(head.job, split=_all_train(head.job.split), keep=head.epoch)
        for index, head in enumerate(choosing)
        if len(head.job.split.valid)
    }
    fitted = dict(zip(again, fit_heads(kind, features, list(again.values()), recipe, device), strict=True))
    return [ChosenHead(head, fitted.get(index, head)) for index, head in enumerate(choosing)]


def _all_train(split: Split) -> Split:
    """The split with its validation rows among the training rows."""
    return replace(split, train=split.learnable, valid=np.arange(0))


def fit_heads(
    kind: HeadKind, features: FeatureSet, jobs: Sequence[Job], recipe: Recipe, device: torch.device
) -> list[FittedHead]:
    """Fit one head per job by the recipe.

    The kept epoch is the one of the highest validation accuracy (the first if tied), or the job's own, or the last one.
    The scaler and the head see training rows only. Every head's random numbers come from its own seed and its split's
    name, so it does not matter which others are fitted with it.

    Args:
        kind: a key of HEADS.

    Returns:
        The fitted heads in the order of `jobs`.
    """
    # Longest first, so that heads with batches left in an epoch are always the first of a stack.
    order = sorted(range(len(jobs)), key=lambda index: -len(jobs[index].split.train))
    workers = (os.cpu_count() or 1) if device.type == "cpu" else 1
    stacks = _stacks(kind, features, [jobs[index] for index in order], recipe, device, workers)
    if is_compiled(recipe, device):
        import common.heads.compiled_steps  # noqa: F401  # here, and not by several threads at once
    total, stop = recipe.epochs * len(jobs), threading.Event()
    scaled = ScaledFeatures(features, stacks, recipe, device)
    bar = progress_bar(total=total, desc=f"fitting {len(jobs)} x {kind}", unit="epoch", leave=False)

    def fit(stack_jobs: Sequence[Job]) -> list[FittedHead]:
        # A step's products are too small to split between cores: each stack has its own core.
        torch.set_num_threads(1)
        batched = BatchedFit(kind, features, stack_jobs, recipe, device, scaled)
        # Moments of weights that are not used any more shrink for ever; below 1e-38 a CPU needs 100 times as long for each.
        # This holds for the calling thread. Scaling is done before: NumPy warns where there are no such numbers.
        torch.set_flush_denormal(True)
        for _ in range(recipe.epochs):
            if stop.is_set():
                break
            batched.epoch()
            bar.update(len(stack_jobs))
        scaled.release(stack_jobs)
        fitted = batched.finish()
        torch.set_flush_denormal(False)
        return fitted

    with bar, _threads_restored(), ThreadPoolExecutor(min(workers, len(stacks)) or 1) as pool:
        try:
            fitted = [head for part in pool.map(fit, stacks) for head in part]
        except BaseException:
            stop.set()  # Ctrl-C must not wait for the other threads' last epoch
            raise
    return [fitted[order.index(index)] for index in range(len(jobs))]


def _stacks(
    kind: HeadKind, features: FeatureSet, jobs: Sequence[Job], recipe: Recipe, device: torch.device, workers: int
) -> list[list[Job]]:
    """The jobs in stacks, each fitted together.

    On a CPU, weights, gradients and moments of a stack should fit into its cache; otherwise a step waits for memory. The
    scaled copies of the features, one for every set of training rows, must fit into memory.
    """
    if is_compiled(recipe, device):
        n_stacks = len(jobs)  # nothing is gained by fitting heads together
    else:
        size, n_classes, hidden = features.features.shape[1], len(features.class_names), recipe.hidden_dim
        parameters = size * n_classes if kind == "linear" else (size + hidden + n_classes) * hidden
        cached = max(1, CACHED_BYTES // (16 * parameters)) if device.type == "cpu" else len(jobs)
        # The same number of stacks for every core, of nearly equal size.
        n_stacks = max(1, min(len(jobs), workers * math.ceil(len(jobs) / workers / max(1, cached))))
    most_scaled = max(1, int(SCALED_BYTES / workers // max(1, 4 * features.features.numel())))
    stacks: list[list[Job]] = []
    for number in range(n_stacks):
        stacks.append([])
        for job in jobs[number * len(jobs) // n_stacks : (number + 1) * len(jobs) // n_stacks]:
            if len({other.scaler_key for other in stacks[-1]} | {job.scaler_key}) > most_scaled:
                stacks.append([])
            stacks[-1].append(job)
    return [stack for stack in stacks if stack]


@contextlib.contextmanager
def _threads_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
