"""K heads of one kind fitted together: K independent problems of one shape.

A step is one batched product per layer, and Adam updates each number separately, so every head learns what it would
learn alone. Tests compare it with heads fitted alone, and with torch.optim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from common.features import FeatureSet
from common.heads.adamw import StackedAdamW
from common.heads.classifiers import HeadKind, head_title
from common.heads.compiled_fit import CompiledFit, is_compiled
from common.heads.cuda_graph import GraphedSteps
from common.heads.jobs import Curves, FitError, FittedHead, Job
from common.heads.recipes import Recipe
from common.heads.scaled_rows import ScaledFeatures, StackRows
from common.heads.stacked_heads import StackedHeads, generator


class BatchedFit:
    """A fit of K heads, epoch by epoch; `jobs` are sorted, longest first."""

    def __init__(
        self,
        kind: HeadKind,
        features: FeatureSet,
        jobs: Sequence[Job],
        recipe: Recipe,
        device: torch.device,
        shared: ScaledFeatures,
    ) -> None:
        self.kind, self.jobs, self.recipe, self.device = kind, jobs, recipe, device
        self.rows = StackRows.of(features, jobs, shared, device)
        self.heads = StackedHeads(kind, self.rows.width, len(features.class_names), jobs, recipe, device)
        self.n_batches = [math.ceil(len(job.split.train) / recipe.batch_size) for job in jobs]
        steps = [recipe.epochs * number for number in self.n_batches]
        # Each keeps moments of its own, as large as the weights.
        self.compiled: CompiledFit | None = None
        if is_compiled(recipe, device):
            self.compiled = CompiledFit(self.heads.layers, self.rows.width, recipe, steps)
        else:
            self.optimizer = StackedAdamW(self.heads.layers, self.heads.gradients, self.heads.widths, recipe, steps)
        # A CUDA graph must not need new numbers from the host, as schedules and dropout do.
        needs_host = recipe.is_cosine or recipe.dropout or recipe.input_dropout
        self.graph = GraphedSteps() if device.type == "cuda" and not needs_host else None
        self.valid = [torch.from_numpy(job.split.valid).to(device) for job in jobs]
        self.test = [torch.from_numpy(job.split.test).to(device) for job in jobs]
        self.orders = [generator(job.seed, job.split.name) for job in jobs]
        self.loss_sum = torch.zeros(len(jobs), device=device)  # of the epoch
        self.curves = [Curves([], [], []) for _ in jobs]
        self.kept: list[list[torch.Tensor] | None] = [None for _ in jobs]  # layers of the epoch to keep, so far

    @torch.no_grad()
    def epoch(self) -> None:
        """One pass over every head's training rows, then its accuracies."""
        sizes = torch.tensor([len(job.split.train) for job in self.jobs], device=self.device)
        batches = self._shuffled_batches(sizes)
        self.loss_sum.zero_()
        first = 0
        if self.compiled is not None:
            for head, number in enumerate(self.n_batches):
                own = [each[:number, head].contiguous() for each in batches]
                self.loss_sum[head] = self.compiled.run(head, self.rows.scaled, *own[:3])
            first = self.n_batches[0]
        elif self.graph is not None:
            first = min(self.n_batches)  # after these, not all heads have batches left
            self.graph.run(self._step, [each[:first] for each in batches])
        for number in range(first, self.n_batches[0]):
            active = sum(own > number for own in self.n_batches)
            self._step(*(each[number, :active] for each in batches))
        for curves, loss in zip(self.curves, (self.loss_sum / sizes).tolist(), strict=True):
            curves.train_loss.append(loss)
        self._note_accuracies()

    def _shuffled_batches(self, sizes: torch.Tensor) -> list[torch.Tensor]:
        """Row numbers, labels, weights in the batch's mean, and whether a row counts: (batches, K, batch size) each.

        Heads with fewer rows are padded; padding rows do not count.
        """
        batch_size, longest = self.recipe.batch_size, self.n_batches[0]
        rows = torch.tensor([[job.split.train[0]] for job in self.jobs]).repeat(1, longest * batch_size)
        for head, (job, order) in enumerate(zip(self.jobs, self.orders, strict=True)):
            train = torch.from_numpy(job.split.train)
            rows[head, : len(train)] = train[torch.randperm(len(train), generator=order)]
        rows = rows.to(self.device)
        ends = sizes[:, None]
        places = torch.arange(rows.shape[1], device=self.device)
        starts = places // batch_size * batch_size
        counts = places < ends
        shares = counts / (ends - starts).clamp(min=1, max=batch_size)
        labels, rows = self.rows.labels[rows], rows + self.rows.first_row[:, None]
        return [
            each.view(len(self.jobs), longest, batch_size).transpose(0, 1).contiguous()
            for each in (rows, labels, shares, counts)
        ]

    def _step(self, rows: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor, counts: torch.Tensor) -> None:
        """One step of the first A heads; all arguments (A, batch size)."""
        active, batch = rows.shape
        x = self.rows.scaled.index_select(0, rows.flatten()).view(active, batch, -1)
        loss = self.heads.backward(x, labels, shares)
        self.loss_sum[:active] += (loss * counts).sum(dim=1)
        self.optimizer.step(active)

    def _note_accuracies(self) -> None:
        """Record the accuracies after an epoch, and keep a head's layers if this is its best or its required epoch.

        What is kept depends only on the job and the validation rows; the test accuracy is only recorded.
        """
        test, valid = self._accuracies(self.test), self._accuracies(self.valid)
        for head, (job, curves) in enumerate(zip(self.jobs, self.curves, strict=True)):
            if head in test:
                curves.test_accuracy.append(test[head])
            is_best = head in valid and valid[head] > max(curves.valid_accuracy, default=-1.0)
            if head in valid:
                curves.valid_accuracy.append(valid[head])
            if is_best if job.keep is None else len(curves.train_loss) == job.keep:
                self.kept[head] = self.heads.weights_of(head)

    def _accuracies(self, rows: Sequence[torch.Tensor]) -> dict[int, float]:
        """Head -> accuracy on its rows, if it has any."""
        accuracies = {
            head: (self.heads.logits(head, self.rows.of_head(head, own)).argmax(dim=1) == self.rows.labels[own])
            .float()
            .mean()
            for head, own in enumerate(rows)
            if len(own)
        }
        fetched = torch.stack(list(accuracies.values())).tolist() if accuracies else []
        return dict(zip(accuracies, fetched, strict=True))

    def finish(self) -> list[FittedHead]:
        """The heads at their kept epochs; FitError if one diverged."""
        return [self._fitted(head) for head in range(len(self.jobs))]

    @torch.no_grad()
    def _fitted(self, head: int) -> FittedHead:
        job, curves, kept = self.jobs[head], self.curves[head], self.kept[head]
        epoch = len(curves.train_loss)
        if kept is not None:
            epoch = job.keep or 1 + curves.valid_accuracy.index(max(curves.valid_accuracy))
        module = self.heads.as_module(kept or self.heads.weights_of(head))
        logits, valid_logits = (module(self.rows.of_head(head, rows[head]).cpu()) for rows in (self.test, self.valid))
        if not torch.isfinite(logits).all() or not math.isfinite(curves.train_loss[-1]):
            raise FitError(
                f"the {head_title(self.kind)} head diverged ({job.split.name}, seed {job.seed}): lower "
                "--learning-rate, or scale the features (--scaler standard)"
            )
        return FittedHead(job, module, self.rows.scalers[head], logits, valid_logits, curves, epoch)
