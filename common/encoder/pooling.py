"""Pooling over time and frequency, in parts that can be merged: the moments of each tile are merged per clip."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

# Over time and frequency; the last over time alone, which keeps where in the spectrum something is.
POOLS = ("mean", "std", "max", "mean_time")


@dataclass(frozen=True)
class BatchMoments:
    """Moments of every item of a batch, float32 on the batch's device.

    Attributes:
        counts: number of values per channel, of each item.
        mean: (B, channels).
        squares: (B, channels) sums of squared deviations from the mean; None unless ``std`` is pooled.
        maximum: (B, channels); None unless ``max`` is pooled.
        mean_time: (B, channels, frequency) means over time; None unless ``mean_time`` is pooled.
    """

    counts: Sequence[int]
    mean: torch.Tensor
    squares: torch.Tensor | None
    maximum: torch.Tensor | None
    mean_time: torch.Tensor | None


@dataclass(frozen=True)
class Moments:
    """Moments of one item: count, mean, sum of squared deviations and maximum per channel, and the mean per channel and
    frequency; float64 on the CPU."""

    count: int
    mean: torch.Tensor
    squares: torch.Tensor | None
    maximum: torch.Tensor | None
    mean_time: torch.Tensor | None

    @staticmethod
    def split(batch: BatchMoments) -> list[Moments]:
        """The batch's items, copied from the device."""
        mean, *others = (
            None if values is None else values.cpu().double()
            for values in (batch.mean, batch.squares, batch.maximum, batch.mean_time)
        )
        assert mean is not None
        return [
            Moments(count, mean[item], *(None if values is None else values[item] for values in others))
            for item, count in enumerate(batch.counts)
        ]

    @staticmethod
    def merge(parts: Sequence[Moments]) -> Moments:
        """The moments of disjoint parts together (Chan et al. 1979, the parallel form of the variance)."""
        count = sum(part.count for part in parts)
        mean = torch.stack([part.mean * (part.count / count) for part in parts]).sum(dim=0)
        squares = [
            part.squares + part.count * (part.mean - mean).square() for part in parts if part.squares is not None
        ]
        maxima = [part.maximum for part in parts if part.maximum is not None]
        by_frequency = [part.mean_time * (part.count / count) for part in parts if part.mean_time is not None]
        return Moments(
            count,
            mean,
            torch.stack(squares).sum(dim=0) if squares else None,
            torch.stack(maxima).amax(dim=0) if maxima else None,
            torch.stack(by_frequency).sum(dim=0) if by_frequency else None,
        )

    def pooled(self, pool: str) -> torch.Tensor:
        """(channels,) float32; for ``mean_time`` (channels * frequency,), all frequencies of a channel together."""
        if pool == "mean":
            values = self.mean
        elif pool == "max":
            assert self.maximum is not None
            values = self.maximum
        elif pool == "mean_time":
            assert self.mean_time is not None
            values = self.mean_time.flatten()
        else:
            assert self.squares is not None
            values = (self.squares / self.count).sqrt()
        return values.to(torch.float32)


def to_device(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Numbers as a tensor on the device, without waiting for the device's pending work."""
    tensor = torch.tensor(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def batch_moments(values: torch.Tensor, columns: Sequence[slice], pools: Collection[str]) -> BatchMoments:
    """The moments that the poolings need, for every item of a batch.

    Args:
        values: (B, channels, time, frequency) of any floating-point type.
        columns: the time positions to pool over, at least one for each item.
        pools: some of POOLS.
    """
    values, mask = values.float(), None
    n_frequencies = values.shape[3]
    counts: int | torch.Tensor
    if len({(core.start, core.stop) for core in columns}) == 1:
        values, counts = values[:, :, columns[0]], columns[0].stop - columns[0].start
    else:
        starts, stops = (
            to_device([getattr(core, end) for core in columns], values.device)[:, None, None, None]
            for end in ("start", "stop")
        )
        position = torch.arange(values.shape[2], device=values.device)[:, None]
        mask = (position >= starts) & (position < stops)  # (B, 1, time, 1)
        counts = (stops - starts)[:, :, 0, 0]

    def of_core(values: torch.Tensor, otherwise: float) -> torch.Tensor:
        return values if mask is None else values.where(mask, otherwise)

    mean = of_core(values, 0).sum(dim=(2, 3)) / (counts * n_frequencies)
    squares = of_core(values - mean[:, :, None, None], 0).square().sum(dim=(2, 3)) if "std" in pools else None
    maximum = of_core(values, -torch.inf).amax(dim=(2, 3)) if "max" in pools else None
    mean_time = None
    if "mean_time" in pools:
        n_times = counts[:, :, None] if isinstance(counts, torch.Tensor) else counts
        mean_time = of_core(values, 0).sum(dim=2) / n_times
    return BatchMoments(
        [n_frequencies * (part.stop - part.start) for part in columns], mean, squares, maximum, mean_time
    )
