"""The steps of a stack as one CUDA graph, since the launches of its small kernels would take longer than they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

WARM_UP = 3  # steps before the capture, in which torch and cuBLAS make what they keep


class _Graph(Protocol):
    def replay(self) -> None: ...


class CapturedSteps:
    """A step that is captured once and then replayed, reading its batch where a counter on the device points.

    Args:
        step: called with the batch's tensors; what it changes must stay where it is in memory, and nothing that it does
            may wait for the device or depend on numbers of the host.
    """

    def __init__(self, step: Callable[..., None]) -> None:
        self.step = step
        self.batches: list[torch.Tensor] = []
        self.number: torch.Tensor | None = None
        self.graph: _Graph | None = None

    def run(self, batches: Sequence[torch.Tensor]) -> None:
        """Take a step for every batch, in their order.

        Args:
            batches: tensors (S, ...), of the same shapes at every call, whose first index is the batch's number.
        """
        done = 0
        if self.graph is None:
            self.batches = [each.clone() for each in batches]
            self.number = torch.zeros(1, dtype=torch.int64, device=batches[0].device)
            while done < min(WARM_UP, len(batches[0])):
                self._step()
                done += 1
            self.graph = self._capture()
        else:
            for own, given in zip(self.batches, batches, strict=True):
                own.copy_(given)
            self.number.zero_()
        for _ in range(done, len(batches[0])):
            self.graph.replay()

    def _step(self) -> None:
        self.step(*(each.index_select(0, self.number)[0] for each in self.batches))
        self.number += 1

    def _capture(self) -> _Graph:
        """Record a step without taking it."""
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile: a progress bar does not, a caller's might.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._step()
        return graph
