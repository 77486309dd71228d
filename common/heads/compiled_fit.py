"""Heads fitted by compiled steps (`common.heads.compiled_steps`), on a CPU and at small batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from common.heads.recipes import Recipe

# Measured with 25 three-layer heads: at batches of 8, compiled steps take less than half the time of torch's stacked ones.
# At 64, products dominate, and torch's are faster.
LARGEST_BATCH = 16


def is_compiled(recipe: Recipe, device: torch.device) -> bool:
    """Whether heads are fitted by compiled steps: on a CPU, at small batches, without dropout."""
    is_plain = not recipe.dropout and not recipe.input_dropout
    return device.type == "cpu" and is_plain and recipe.batch_size <= LARGEST_BATCH


class CompiledFit:
    """The optimizer's state of K heads, and their steps."""

    def __init__(self, layers: Sequence[torch.Tensor], width: int, recipe: Recipe, steps: Sequence[int]) -> None:
        """Set the moments to 0.

        Args:
            layers: (K, padded rows, out) each, as `common.heads.stacked_heads.StackedHeads` keeps them; changed in place.
            width: of an embedding.
            steps: of each head in the whole fit.
        """
        self.recipe, self.width, self.steps = recipe, width, steps
        self.layers = [layer.numpy() for layer in layers]
        self.means, self.squares = ([np.zeros_like(layer) for layer in self.layers] for _ in range(2))
        self.done = [0] * len(steps)

    def run(
        self, head: int, rows: torch.Tensor, order: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor
    ) -> float:
        """Take a step of one head for each batch.

        Args:
            rows: (N, padded width) scaled embeddings.
            order, labels, shares: (S, B) row numbers, labels, and weights in the batch's mean, 0 for padding.

        Returns:
            The sum of the cross-entropies.
        """
        from common.compiled import call
        from common.heads.compiled_steps import linear_steps, three_layer_steps  # takes half a second

        recipe, done = self.recipe, self.done[head]
        layers, means, squares = (
            tuple(layer[head] for layer in kind) for kind in (self.layers, self.means, self.squares)
        )
        rates = np.array([recipe.rate(done + step, self.steps[head]) for step in range(len(order))])
        batches = (rows.numpy(), self.width + 1, order.numpy(), labels.numpy(), shares.numpy())
        settings = (done, rates, recipe.weight_decay, np.float32(recipe.label_smoothing))
        self.done[head] += len(order)
        if len(layers) == 1:
            return float(call(linear_steps, *batches, layers[0], means[0], squares[0], *settings))
        return float(call(three_layer_steps, *batches, layers, means, squares, *settings))
