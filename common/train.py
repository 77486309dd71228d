"""Scaler + head -> predictions: epochs chosen on validation rows, and every head of a kind fitted in stacks.

Whatever their splits and seeds, heads are put into stacks (`common.stack`) that a CPU's cache holds, a core for each.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from common.features import FeatureSet
from common.progress import progress_bar
from common.recipes import Recipe
from common.scalers import DEFAULT_SHRINKAGE, SHRINKAGES
from common.splits import Split
from common.stack import FitError, FittedHead, Job, ScaledFeatures, Stack, scaler_key

SCALED_BYTES = 4e9  # of scaled copies of the features that are kept at once
CACHED_BYTES = 12_000_000  # of weights, gradients and moments of a stack that a CPU's cache holds


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


def fit_chosen(
    kind: str, features: FeatureSet, jobs: Sequence[Job], recipe: Recipe, device: torch.device, refit: bool = True
) -> list[tuple[FittedHead, FittedHead]]:
    """Fit every job as a careful researcher would: choose on validation rows, then fit on these too.

    The epoch (and the strength of whitening, where the recipe leaves it open) is the one of the highest accuracy on
    the job's validation rows. Then the head is fitted anew on training and validation rows, with a scaler of its own,
    and kept at that epoch. Where the recipe's schedule keeps the last epoch, it is what counts, and validation rows
    train at once if nothing else is to be chosen. A job without validation rows is fitted once, and kept at its last
    epoch.

    Returns:
        For each job: the head that chose, and the head to score; twice the same one where nothing is fitted anew.
    """
    is_open = recipe.scaler == "whiten" and recipe.shrinkage is None and recipe.relative_shrinkage is None
    if recipe.is_cosine:
        jobs = [replace(job, keep=recipe.epochs) for job in jobs]
        if not is_open and refit:
            whole = [replace(job, split=_all_train(job.split), shrinkage=recipe.shrinkage) for job in jobs]
            return [(head, head) for head in fit_heads(kind, features, whole, recipe, device)]
    choosing: list[FittedHead | None] = [None] * len(jobs)
    for shrinkage in SHRINKAGES if is_open else (recipe.shrinkage,):
        asked = [
            replace(job, shrinkage=shrinkage if len(job.split.valid) or not is_open else DEFAULT_SHRINKAGE)
            for job in jobs
        ]
        for index, head in enumerate(fit_heads(kind, features, asked, recipe, device)):
            if choosing[index] is None or _best(head) > _best(choosing[index]):
                choosing[index] = head
    again = [index for index, job in enumerate(jobs) if refit and len(job.split.valid)]
    whole = {
        index: replace(choosing[index].job, split=_all_train(jobs[index].split), keep=choosing[index].epoch)
        for index in again
    }
    refitted = dict(zip(again, fit_heads(kind, features, list(whole.values()), recipe, device), strict=True))
    return [(head, refitted.get(index, head)) for index, head in enumerate(choosing)]


def _all_train(split: Split) -> Split:
    """The split with its validation rows among those that train."""
    return replace(split, train=split.learnable, valid=np.arange(0))


def _best(head: FittedHead) -> float:
    """The validation accuracy of the epoch that is kept."""
    return head.valid_accuracy[head.epoch - 1] if head.valid_accuracy else 0.0


def fit_heads(
    kind: str, features: FeatureSet, jobs: Sequence[Job], recipe: Recipe, device: torch.device
) -> list[FittedHead]:
    """Fit one head a job by the recipe.

    The epoch of the highest validation accuracy is kept (the first of equals), or the job's own, or the last one.
    The scaler and the head see training rows only. Every head's numbers are drawn from its own seed and its split's
    name, so it does not matter which others are fitted beside it.

    Args:
        kind: a key of HEADS.

    Returns:
        The fitted heads in the order of `jobs`.
    """
    # Longest first, so that heads with batches left in an epoch are always the first rows of a stack.
    order = sorted(range(len(jobs)), key=lambda index: -len(jobs[index].split.train))
    workers = (os.cpu_count() or 1) if device.type == "cpu" else 1
    stacks = _stacks(kind, features, [jobs[index] for index in order], recipe, device, workers)
    total, stop = recipe.epochs * len(jobs), threading.Event()
    scaled = ScaledFeatures(features, stacks, recipe, device)
    bar = progress_bar(total=total, desc=f"fitting {len(jobs)} x {kind}", unit="epoch", leave=False)

    def fit(stack_jobs: Sequence[Job]) -> list[FittedHead]:
        # A step's products are too small to share: each stack has a core of its own instead.
        torch.set_num_threads(1)
        stack = Stack(kind, features, stack_jobs, recipe, device, scaled)
        for _ in range(recipe.epochs):
            if stop.is_set():
                break
            stack.epoch()
            bar.update(len(stack_jobs))
        scaled.let_go(stack_jobs)
        return stack.finish()

    with bar, _threads_restored(), ThreadPoolExecutor(min(workers, len(stacks)) or 1) as pool:
        try:
            fitted = [head for part in pool.map(fit, stacks) for head in part]
        except BaseException:
            stop.set()  # Ctrl-C must not wait for the other threads' last epoch
            raise
    return [fitted[order.index(index)] for index in range(len(jobs))]


def _stacks(
    kind: str, features: FeatureSet, jobs: Sequence[Job], recipe: Recipe, device: torch.device, workers: int
) -> list[list[Job]]:
    """The jobs in stacks that are fitted at once.

    On a CPU, weights, gradients and moments of a stack should stay in its cache: beyond, a step waits for memory. The
    scaled copies of the features, one for every set of training rows, must fit into memory.
    """
    size, n_classes, hidden = features.features.shape[1], len(features.class_names), recipe.hidden_dim
    parameters = size * n_classes if kind == "linear" else (size + hidden + n_classes) * hidden
    cached = max(1, CACHED_BYTES // (16 * parameters)) if device.type == "cpu" else len(jobs)
    # As many stacks for every core, of nearly one size.
    n_stacks = max(1, min(len(jobs), workers * math.ceil(len(jobs) / workers / max(1, cached))))
    most_scaled = max(1, int(SCALED_BYTES / workers // max(1, 4 * features.features.numel())))
    stacks: list[list[Job]] = []
    for number in range(n_stacks):
        stacks.append([])
        for job in jobs[number * len(jobs) // n_stacks : (number + 1) * len(jobs) // n_stacks]:
            if len({scaler_key(other) for other in stacks[-1]} | {scaler_key(job)}) > most_scaled:
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
