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

    @property
    def padded_frames(self) -> int:
        """The width at which the tile is computed: one of 16 in whole columns, at most an eighth of an octave
        too wide. Few widths share batches on a GPU, and leave few gaps of odd sizes in a CPU's memory."""
        step = max(FRAMES_PER_COLUMN, (1 << (self.frames - 1).bit_length()) // 8)
        return -(-self.frames // step) * step

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
    def of(values: torch.Tensor, pools: Sequence[str]) -> Moments:
        """Of (channels, time, frequency) of any floating-point type; only what `pools` needs, summed in float32."""
        values = values.float()
        count = values.shape[1] * values.shape[2]
        squares = maximum = None
        if "std" in pools:
            variance, mean = torch.var_mean(values, dim=(1, 2), correction=0)
            squares = variance.double().cpu() * count
        else:
            mean = values.mean(dim=(1, 2))
        if "max" in pools:
            maximum = values.amax(dim=(1, 2)).double().cpu()
        return Moments(count, mean.double().cpu(), squares, maximum)

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
