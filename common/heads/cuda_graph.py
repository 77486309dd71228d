"""Training steps as one CUDA graph, since launching their small kernels takes longer than running them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Protocol

import torch

WARM_UP = 3  # steps before the capture, in which torch and cuBLAS allocate what they keep


class _Graph(Protocol):
    def replay(self) -> None:
        """Run the recorded step once."""


class GraphedSteps:
    """A step that is captured once and then replayed; a counter on the device says which batch it reads.

    Tensors that the step changes must stay at the same address. The step must not wait for the device, or depend on
    numbers on the host that change.
    """

    def __init__(self) -> None:
        self.batches: list[torch.Tensor] = []
        self.number = torch.empty(0, dtype=torch.int64)
        self.graph: _Graph | None = None

    def run(self, step: Callable[..., None], batches: Sequence[torch.Tensor]) -> None:
        """Run the step for every batch, in order.

        Args:
            step: called with a batch's tensors; the same function at every call.
            batches: tensors (S, ...), of the same shapes at every call, whose first index is the batch's number.
        """
        done = 0
        if self.graph is None:
            self.batches = [each.clone() for each in batches]
            self.number = torch.zeros(1, dtype=torch.int64, device=batches[0].device)
            while done < min(WARM_UP, len(batches[0])):
                self._take(step)
                done += 1
            try:
                self.graph = self._capture(step)
            except RuntimeError as error:  # the step was not run
                reason = str(error).partition("\n")[0]
                warnings.warn(f"fitting continues without a CUDA graph, more slowly: {reason}", stacklevel=2)
                self.graph = SimpleNamespace(replay=lambda: self._take(step))
        else:
            for own, given in zip(self.batches, batches, strict=True):
                own.copy_(given)
            self.number.zero_()
        for _ in range(done, len(batches[0])):
            self.graph.replay()

    def _take(self, step: Callable[..., None]) -> None:
        step(*(each.index_select(0, self.number)[0] for each in self.batches))
        self.number += 1

    def _capture(self, step: Callable[..., None]) -> _Graph:
        """Record a step without running it."""
        device = self.number.device
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        # A stream of this device, which need not be the current one. Other threads may use it at the same time: a
        # progress bar does not, but a caller's thread might.
        stream = torch.cuda.Stream(device)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._take(step)
        return graph
