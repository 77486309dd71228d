"""A head's fit by autograd and torch.optim, on any device: for GPUs, and as the reference of the compiled steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.heads.jobs import Batches
from common.heads.recipes import Recipe
from common.heads.steps import BETAS, EPS


class PlainHead:
    """A head that is fitted by plain torch."""

    def __init__(self, module: nn.Sequential, recipe: Recipe, n_steps: int, device: torch.device) -> None:
        """Start from the weights of `module`; the whole fit takes `n_steps`."""
        self.module, self.recipe, self.n_steps, self.done = module.to(device), recipe, n_steps, 0
        parameters = list(module.parameters())
        groups = [  # only weights decay, not biases
            {"params": [p for p in parameters if p.ndim == 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=BETAS, eps=EPS)

    def epoch(self, rows: torch.Tensor, batches: Batches) -> float:
        """Take a step per batch of the (N, P) `rows`; returns the sum of the cross-entropies."""
        order, labels, shares, noise = (part.to(rows.device) for part in batches)
        first = next(layer for layer in self.module if isinstance(layer, nn.Linear))
        total = torch.zeros((), device=rows.device)
        for step in range(len(order)):
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.rate(self.done, self.n_steps)
            logits = self._logits(rows[order[step], : first.in_features], noise[step])
            losses = _losses(logits, labels[step], self.recipe.label_smoothing)
            self.optimizer.zero_grad()
            (losses * shares[step]).sum().backward()
            self.optimizer.step()
            total += losses.detach()[shares[step] > 0].sum()
            self.done += 1
        return float(total)

    def _logits(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """(B, D) embeddings -> (B, C), with dropout by the numbers `noise`."""
        x, noise = _drop(x, noise, self.recipe.input_dropout)
        for layer in self.module:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                x, noise = _drop(x, noise, self.recipe.dropout)
        return x

    @torch.no_grad()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(M, D) scaled embeddings -> (M, C), without dropout."""
        logits: torch.Tensor = self.module(x)
        return logits

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of the module's state, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()}


def _losses(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """(B, C) logits -> (B,): the cross-entropy with (B,) labels, or with (B, C) the mean of the binary ones over classes."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    targets = (1 - smoothing) * labels.float() + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)


def _drop(x: torch.Tensor, noise: torch.Tensor, dropout: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Dropout by the first x.numel() of the numbers `noise`, and the rest of them."""
    if not dropout:
        return x, noise
    kept = noise[: x.numel()].view_as(x) >= dropout
    return x * kept / (1 - dropout), noise[x.numel() :]
