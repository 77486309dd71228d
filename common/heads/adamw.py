"""torch's fused AdamW on stacked layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.optim.adamw import adamw

from common.heads.recipes import Recipe

BETAS = (0.9, 0.999)
EPS = 1e-8


@dataclass(frozen=True)
class _Parameters:
    """Tensors that are stepped together, one entry per parameter."""

    values: list[torch.Tensor]
    gradients: list[torch.Tensor]
    means: list[torch.Tensor]
    squares: list[torch.Tensor]
    counts: list[torch.Tensor]


class StackedAdamW:
    """AdamW (Adam if there is no decay) on layers (K, rows, out); a step updates only the first `active` heads.

    Heads with the same number of batches per epoch form a group, whose slice of a layer is one parameter: a head whose
    epoch is over must not change during the last batches of the others, and neither must its moments and step count.
    Only weights decay, not biases; with decay, every head's weights and biases are separate parameters.
    """

    def __init__(
        self,
        layers: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        widths: Sequence[int],
        recipe: Recipe,
        steps: Sequence[int],
    ) -> None:
        """Set the moments to 0.

        Args:
            layers, gradients: as `common.heads.stacked_heads.StackedHeads` keeps them.
            widths: the number of weights per output of each layer; its next row is the bias.
            steps: the total steps of each head, in decreasing order.
        """
        self.recipe, self.steps = recipe, steps
        bounds = [0, *(head for head in range(1, len(steps)) if steps[head] != steps[head - 1]), len(steps)]
        self.groups = list(itertools.pairwise(bounds))
        self.done = [0] * len(self.groups)
        # Lists of all layers, in the order of _Parameters.
        tensors = (layers, gradients, *([torch.zeros_like(layer) for layer in layers] for _ in range(2)))

        def own(group: tuple[int, int], parts: Sequence[slice] | None) -> _Parameters:
            if parts is None:
                sliced = [[each[slice(*group)] for each in kind] for kind in tensors]
            else:
                sliced = [
                    [each[head, part] for head in range(*group) for each, part in zip(kind, parts, strict=True)]
                    for kind in tensors
                ]
            values, own_gradients, means, squares = sliced
            counts = [torch.zeros((), device=layers[0].device) for _ in values]
            return _Parameters(values, own_gradients, means, squares, counts)

        # (decay, the parameters of each group)
        if recipe.weight_decay:
            weights, biases = [slice(width) for width in widths], [slice(width, width + 1) for width in widths]
            parts: list[tuple[float, list[slice] | None]] = [(recipe.weight_decay, weights), (0.0, biases)]
        else:
            parts = [(0.0, None)]
        self.parameters = [(decay, [own(group, each) for group in self.groups]) for decay, each in parts]

    def step(self, active: int) -> None:
        """One step of the first `active` heads, which must be whole groups."""
        for number, (first, _) in enumerate(self.groups):
            if first >= active:
                return
            rate = self.recipe.rate(self.done[number], self.steps[first])
            for decay, groups in self.parameters:
                own = groups[number]
                adamw(
                    own.values,
                    own.gradients,
                    own.means,
                    own.squares,
                    [],
                    own.counts,
                    fused=True,
                    amsgrad=False,
                    beta1=BETAS[0],
                    beta2=BETAS[1],
                    lr=rate,
                    weight_decay=decay,
                    eps=EPS,
                    maximize=False,
                )
            self.done[number] += 1
