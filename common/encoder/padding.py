"""The padding of the shorter items of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PaddingMask:
    """Which positions of a batch are padding.

    Attributes:
        first: the first position in time that is padding in any item.
        ends: (B,) where the padding of each item begins.
        is_padding: (B, time - first, 1) bool, from `first` on.
    """

    first: int
    ends: torch.Tensor
    is_padding: torch.Tensor


def padding_mask(first: int, ends: torch.Tensor, frames: int) -> PaddingMask | None:
    """The padding mask of a batch of so many frames, whose items end at `ends` (B,), the shortest at `first`; None if nothing
    is padded."""
    if first == frames:
        return None
    is_padding = torch.arange(first, frames, device=ends.device) >= ends[:, None]
    return PaddingMask(first, ends, is_padding[:, :, None])


def item_ends(mask: PaddingMask | None, items: int, frames: int) -> list[int]:
    """Where the padding of each of a batch's items begins: at `frames` without a mask."""
    return [frames] * items if mask is None else mask.ends.tolist()


def fill_padding(x: torch.Tensor, mask: PaddingMask | None, value: float = 0) -> torch.Tensor:
    """Set the padding of x, (B, channels, time, frequency) or (B, time, frequency), to `value` in place; returns x."""
    if mask is not None:
        is_padding = mask.is_padding if x.ndim == 3 else mask.is_padding[:, None]
        x[..., mask.first :, :].masked_fill_(is_padding, value)
    return x
