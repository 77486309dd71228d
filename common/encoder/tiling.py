"""Clips cut into tiles of frames, so that clips of any length need bounded memory.

A clip of up to MAX_TILE_FRAMES is one tile. A longer one is cut into cores. Each core is computed with a halo as wide as
the receptive field on either side, and only the core's own output is pooled (`common.encoder.pooling`). Merged, the
parts equal the result of computing the clip in one piece.
"""

from __future__ import annotations

from dataclasses import dataclass

FRAMES_PER_COLUMN = 32  # the encoder's five poolings of 2 in time
FRAMES_PER_SECOND = 100  # a clip of n seconds has 100 n + 1 frames
MAX_TILE_FRAMES = 1024  # 10.24 s; this bounds the memory


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
