"""Clips of any length in bounded memory: cut into tiles of frames, pooled in parts that are merged, beside padding in a batch.

A clip of up to MAX_TILE_FRAMES is one tile. A longer one is cut into cores. Each core is computed with a halo as wide as
the receptive field on either side, and only the core's output is pooled. Merged, the parts equal the result of computing
the clip in one piece.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

FRAMES_PER_COLUMN = 32  # the encoder's five poolings of 2 in time
FRAMES_PER_SECOND = 100  # a clip of n seconds has 100 n + 1 frames
MAX_TILE_FRAMES = 1024  # 10.24 s; this bounds the memory
# Over time and frequency; the last over time alone, which keeps where in the spectrum something is.
POOLS = ("mean", "std", "max", "mean_time")


@dataclass(frozen=True)
class Tile:
    """Frames [first, last) of clip `clip`, computed for its core [core_start, core_end). All bounds but the clip's
    own end are multiples of 32, so that a tile's poolings are aligned with the clip's."""

    clip: int
    first: int
    last: int
    core_start: int
    core_end: int

    @property
    def frames(self) -> int:
        return self.last - self.first

    def padded_frames(self, steps: int) -> int:
        """The width at which the tile is computed: rounded up to one of `steps` widths per octave, or to whole seconds, as
        most data sets cut their clips. With few widths, more tiles share a batch on a GPU, and a CPU's memory fragments
        less."""
        step = max(8, (1 << (self.frames - 1).bit_length()) // steps)
        of_seconds = -(-(self.frames - 1) // FRAMES_PER_SECOND) * FRAMES_PER_SECOND + 1
        return min(-(-self.frames // step) * step, of_seconds)

    def columns(self, level: int) -> slice:
        """The core's positions within the tile after `level` poolings in time."""
        first = self.first >> level
        return slice((self.core_start >> level) - first, (self.core_end >> level) - first)


def plan_tiles(clip: int, frames: int, halo: int) -> list[Tile]:
    """Cut a clip of `frames` frames into tiles whose cores cover it without overlap."""
    if frames <= MAX_TILE_FRAMES:
        return [Tile(clip, 0, frames, 0, frames)]
    # The frames after the last whole column are added to the last core: alone they would be a tile without a core.
    starts = range(0, frames - frames % FRAMES_PER_COLUMN, MAX_TILE_FRAMES - 2 * halo)
    ends = [*starts[1:], frames]
    return [
        Tile(clip, max(0, start - halo), min(frames, end + halo), start, end)
        for start, end in zip(starts, ends, strict=True)
    ]


def padding_mask(first: int, ends: torch.Tensor, frames: int) -> torch.Tensor | None:
    """(B, frames - first, 1) bool: which of a batch's last frames are padding, if its items end at `ends` (B,), the shortest
    at `first`; None if nothing is padded."""
    if first == frames:
        return None
    return (torch.arange(first, frames, device=ends.device) >= ends[:, None])[:, :, None]


def fill_padding(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Set the padding of x, (B, channels, time, frequency) or (B, time, frequency), to 0 in place; returns x."""
    if mask is not None:
        x[..., x.shape[-2] - mask.shape[1] :, :].masked_fill_(mask if x.ndim == 3 else mask[:, None], 0)
    return x


@dataclass(frozen=True)
class Moments:
    """What the poolings of the items of a batch need."""

    counts: Sequence[int]  # (B,) numbers of values per channel
    # ``mean`` (always) and ``max``: (B, channels); ``std``: (B, channels) sums of squared deviations from the mean;
    # ``mean_time``: (B, channels, frequency) means over time.
    by_pool: dict[str, torch.Tensor]

    @staticmethod
    def joined(batches: Sequence[Moments]) -> Moments:
        """The items of all batches, copied from the device: float64 on the CPU."""
        counts = [count for batch in batches for count in batch.counts]
        by_pool = {
            pool: torch.cat([batch.by_pool[pool].cpu().double() for batch in batches]) for pool in batches[0].by_pool
        }
        return Moments(counts, by_pool)

    def pooled(self, items: Sequence[int], pool: str) -> torch.Tensor:
        """A pooling of items that are disjoint parts of one clip (Chan et al. 1979, the parallel form of the variance):
        (channels,) float32; for ``mean_time`` (channels * frequency,), all frequencies of a channel together."""
        values = self.by_pool[pool][items].flatten(1)
        counts = torch.tensor([[self.counts[item]] for item in items], dtype=torch.float64)
        shares = counts / counts.sum()
        if pool == "max":
            return values.amax(dim=0).float()
        if pool == "std":
            means = self.by_pool["mean"][items]
            shifts = counts * (means - (means * shares).sum(dim=0)).square()
            return ((values + shifts).sum(dim=0) / counts.sum()).sqrt().float()
        return (values * shares).sum(dim=0).float()


def to_device(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Numbers as a tensor on the device, without waiting for the device's pending work."""
    tensor = torch.tensor(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def batch_moments(values: torch.Tensor, columns: Sequence[slice], pools: Collection[str]) -> Moments:
    """The moments that the poolings need, float32 on the device of `values` (B, channels, time, frequency); `columns` are the
    time positions to pool over, at least one for each item."""
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
    return Moments([n_frequencies * (part.stop - part.start) for part in columns], moments)
