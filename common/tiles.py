"""Clips cut into tiles of frames, and what is pooled of the tiles put together again.

A clip of up to MAX_TILE_FRAMES is one tile. A longer one is cut into cores; each is computed with a halo as
wide as the receptive field on either side, and only the core's own output is pooled. So clips of any length
need bounded memory, and the parts add up to what one piece would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

FRAMES_PER_COLUMN = 32  # the encoder's five poolings of 2 in time
FRAMES_PER_SECOND = 100  # and one more in a clip of whole seconds
MAX_TILE_FRAMES = 1024  # 10.24 s; the widest tile bounds the memory


@dataclass(frozen=True)
class Tile:
    """Frames [first, last) of clip `clip`, computed for its core [core_start, core_end); all but the clip's
    own end are multiples of 32, so that the poolings of a tile fall where the clip's own do."""

    clip: int
    first: int
    last: int
    core_start: int
    core_end: int

    @property
    def frames(self) -> int:
        return self.last - self.first

    def padded_frames(self, steps: int) -> int:
        """The width at which the tile is computed: the next of so many steps an octave, or of the whole seconds that
        most data sets cut their clips to. Few widths share batches on a GPU, and leave few gaps of odd sizes in a CPU's
        memory."""
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
    # The frames after the last whole column join the last core: alone they would make a tile that owns nothing.
    starts = range(0, frames - frames % FRAMES_PER_COLUMN, MAX_TILE_FRAMES - 2 * halo)
    ends = [*starts[1:], frames]
    return [
        Tile(clip, max(0, start - halo), min(frames, end + halo), start, end)
        for start, end in zip(starts, ends, strict=True)
    ]


@dataclass(frozen=True)
class Moments:
    """Count, mean, sum of squared deviations and maximum per channel; float64 on the CPU."""

    count: int
    mean: torch.Tensor
    squares: torch.Tensor | None
    maximum: torch.Tensor | None

    @staticmethod
    def of(counts: Sequence[int], measured: dict[str, torch.Tensor]) -> list[Moments]:
        """Of each item that was measured, fetched from the device."""
        fetched = {name: values.double().cpu() for name, values in measured.items()}
        return [
            Moments(
                count, *(fetched[name][item] if name in fetched else None for name in ("mean", "squares", "maximum"))
            )
            for item, count in enumerate(counts)
        ]

    @staticmethod
    def merge(parts: list[Moments]) -> Moments:
        """Of disjoint parts together (Chan et al. 1979, the parallel form of the variance)."""
        count = sum(part.count for part in parts)
        mean = sum(part.mean * (part.count / count) for part in parts)
        squares = maximum = None
        if parts[0].squares is not None:
            squares = sum(part.squares + part.count * (part.mean - mean).square() for part in parts)
        if parts[0].maximum is not None:
            maximum = torch.stack([part.maximum for part in parts]).amax(dim=0)
        return Moments(count, mean, squares, maximum)

    def pooled(self, pool: str) -> torch.Tensor:
        """(channels,) float32."""
        values = {"mean": self.mean, "max": self.maximum}.get(pool)
        return (values if values is not None else (self.squares / self.count).sqrt()).to(torch.float32)


def sent(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Numbers as a tensor on the device, without waiting for what that does meanwhile."""
    tensor = torch.tensor(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def measure(values: torch.Tensor, columns: Sequence[slice], pools: Sequence[str]) -> dict[str, torch.Tensor]:
    """What the poolings need of a batch, in float32 on its device.

    Args:
        values: (B, channels, time, frequency) of any floating-point type.
        columns: the positions in time that count, at least one of each item.
        pools: of mean, std and max.

    Returns:
        (B, channels) each: ``mean``; for std ``squares``, the sum of squared deviations; for max ``maximum``.
    """
    values, mask = values.float(), None
    if len({(own.start, own.stop) for own in columns}) == 1:
        values, counts = values[:, :, columns[0]], columns[0].stop - columns[0].start
    else:
        starts, stops = (
            sent([getattr(own, end) for own in columns], values.device)[:, None, None, None]
            for end in ("start", "stop")
        )
        position = torch.arange(values.shape[2], device=values.device)[:, None]
        mask = (position >= starts) & (position < stops)  # (B, 1, time, 1)
        counts = (stops - starts)[:, :, 0, 0]

    def owned(values: torch.Tensor, otherwise: float) -> torch.Tensor:
        return values if mask is None else values.where(mask, otherwise)

    measured = {"mean": owned(values, 0).sum(dim=(2, 3)) / (counts * values.shape[3])}
    if "std" in pools:
        deviations = values - measured["mean"][:, :, None, None]
        measured["squares"] = owned(deviations, 0).square().sum(dim=(2, 3))
    if "max" in pools:
        measured["maximum"] = owned(values, -torch.inf).amax(dim=(2, 3))
    return measured
