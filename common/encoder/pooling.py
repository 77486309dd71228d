"""Pooling over time and frequency, in parts that can be merged: the moments of each tile are merged per clip."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

# Over time and frequency; the last over time alone, which keeps where in the spectrum something is.
POOLS = ("mean", "std", "max", "mean_time")


@dataclass(frozen=True)
class BatchMoments:
    """The moments of every item of a batch, as in `Moments` but with a first dimension B: float32 on the batch's device."""

    counts: Sequence[int]
    by_pool: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Moments:
    """What the poolings of one item need.

    Attributes:
        count: number of values per channel.
        by_pool: float64 on the CPU. ``mean`` (always) and ``max``: (channels,); ``std``: (channels,) sums of squared
            deviations from the mean; ``mean_time``: (channels, frequency) means over time.
    """

    count: int
    by_pool: dict[str, torch.Tensor]

    @staticmethod
    def split(batch: BatchMoments) -> list[Moments]:
        """The batch's items, copied from the device."""
        by_pool = {pool: values.cpu().double() for pool, values in batch.by_pool.items()}
        return [
            Moments(count, {pool: values[item] for pool, values in by_pool.items()})
            for item, count in enumerate(batch.counts)
        ]

    @staticmethod
    def merge(parts: Sequence[Moments]) -> Moments:
        """The moments of disjoint parts together (Chan et al. 1979, the parallel form of the variance)."""
        count = sum(part.count for part in parts)

        def weighted(pool: str) -> torch.Tensor:
            return torch.stack([part.by_pool[pool] * (part.count / count) for part in parts]).sum(dim=0)

        merged = {"mean": weighted("mean")}
        for pool in parts[0].by_pool.keys() - merged.keys():
            values = [part.by_pool[pool] for part in parts]
            if pool == "std":
                shifts = [part.count * (part.by_pool["mean"] - merged["mean"]).square() for part in parts]
                merged[pool] = torch.stack([square + shift for square, shift in zip(values, shifts, strict=True)]).sum(
                    dim=0
                )
            else:
                merged[pool] = torch.stack(values).amax(dim=0) if pool == "max" else weighted(pool)
        return Moments(count, merged)

    def pooled(self, pool: str) -> torch.Tensor:
        """(channels,) float32; for ``mean_time`` (channels * frequency,), all frequencies of a channel together."""
        values = self.by_pool[pool]
        return ((values / self.count).sqrt() if pool == "std" else values.flatten()).to(torch.float32)


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
    moments = {"mean": mean}
    if "std" in pools:
        moments["std"] = of_core(values - mean[:, :, None, None], 0).square().sum(dim=(2, 3))
    if "max" in pools:
        moments["max"] = of_core(values, -torch.inf).amax(dim=(2, 3))
    if "mean_time" in pools:
        n_times = counts[:, :, None] if isinstance(counts, torch.Tensor) else counts
        moments["mean_time"] = of_core(values, 0).sum(dim=2) / n_times
    return BatchMoments([n_frequencies * (part.stop - part.start) for part in columns], moments)
