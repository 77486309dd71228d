"""The encoder's first 3x3 convolution, whose input channels are all functions of one number, read from a table.

Each of its input channels is ``leaky_relu(scale * x + shift)`` of the spectrogram's one channel x. It is linear on both sides
of where it bends. So what one place of the spectrogram adds to the outputs around it is linear in x between neighbouring
bends: 33 pieces for 32 channels. Their slopes and offsets are computed once. So an output takes one
multiplication for each tap, where the convolution takes one for each tap and input channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from common.compiled import compiled
from common.encoder.fast_cpu.threads import in_parallel
from common.encoder.network import LEAKY_SLOPE


class TableConv2d:
    """The leaky ReLU of what a 3x3 convolution with a padding of 1 computes of ``leaky_relu(scale * x + shift)``, up to the
    rounding of float32; scale and shift are (channels_in,)."""

    def __init__(self, scale: torch.Tensor, shift: torch.Tensor, conv: nn.Conv2d) -> None:
        assert conv.bias is not None
        scale, shift, kernel, bias = (values.detach().double() for values in (scale, shift, conv.weight, conv.bias))
        # Where the scale is 0, a channel does not bend.
        bends, order = torch.sort(torch.where(scale == 0, math.inf, -shift / scale))
        before = torch.empty_like(order)
        before[order] = torch.arange(len(order))
        pieces = torch.arange(len(bends) + 1)[:, None]
        # A channel's sign changes at its bend: (pieces, channels_in).
        is_positive = torch.where(scale == 0, shift > 0, (pieces > before) == (scale > 0))
        gain = torch.where(is_positive, 1.0, LEAKY_SLOPE).double()
        slopes, offsets = (torch.einsum("ocij,pc->ijpo", kernel, gain * values) for values in (scale, shift))
        offsets[1, 1] += bias  # of the middle, which is never outside
        table = torch.stack([slopes, offsets], dim=3).flatten(0, 1).float()
        outside = torch.zeros_like(table[:, :1])
        self.channels = conv.out_channels
        self.bends = bends.float().numpy()
        # Of (taps, pieces and outside, slopes and offsets, channels_out)
        self.table = torch.cat([table, outside], dim=1).flatten().numpy()

    def __call__(self, x: torch.Tensor, ends: Sequence[int]) -> torch.Tensor:
        """(B, time, frequency) -> (B, channels_out, time, frequency), channels last in memory. From its end on, an item counts
        as 0 after the first leaky ReLU, and so do its outputs."""
        y = x.new_empty(*x.shape, self.channels)
        for item, end, into in zip(x.numpy(), ends, y.numpy(), strict=True):
            inside = np.ascontiguousarray(item[:end])
            in_parallel(len(item), _read, inside, self.bends, self.table, np.float32(LEAKY_SLOPE), into)
        return y.permute(0, 3, 1, 2)


@compiled
def _read(x, bends, table, negative_slope, out, first, last):  # type: ignore[no-untyped-def]
    """Frames `first` to `last` of out (time, frequency, channels), of x (at most as many frames, frequency).

    Indexes are unsigned, since a negative one would count from the end: to look whether it is would take the longest.
    """
    n_frames, n_frequencies = x.shape
    channels, tap = np.uint64(out.shape[2]), np.uint64(len(table) // 9)
    outside = tap - np.uint64(2) * channels
    # With a frame and a frequency of the outside on either side.
    values = np.zeros((last - first + 2, n_frequencies + 2), np.float32)
    rows = np.empty(values.shape, np.uint64)  # where the slopes of the first tap begin
    for t in range(first - 1, last + 1):
        row, value = rows[t - first + 1], values[t - first + 1]
        inside = 0 <= t < n_frames
        for f in range(n_frequencies + 2):
            row[f] = np.uint64(0) if inside else outside
        if inside:
            row[0] = row[-1] = outside
            for f in range(n_frequencies):
                value[f + 1] = x[t, f]
            for bend in bends:
                for f in range(1, n_frequencies + 1):
                    row[f] += np.uint64(2) * channels if value[f] > bend else np.uint64(0)
    out[max(first, n_frames) : last] = np.float32(0)
    for t in range(first, min(n_frames, last)):
        r0, r1, r2 = rows[t - first], rows[t - first + 1], rows[t - first + 2]
        v0, v1, v2 = values[t - first], values[t - first + 1], values[t - first + 2]
        for f in range(n_frequencies):
            # Where the slopes of the nine taps begin; the offsets come right after. And what they are multiplied by.
            a, b, c = r0[f], r0[f + 1] + tap, r0[f + 2] + np.uint64(2) * tap
            d, e, g = r1[f] + np.uint64(3) * tap, r1[f + 1] + np.uint64(4) * tap, r1[f + 2] + np.uint64(5) * tap
            h, i, j = r2[f] + np.uint64(6) * tap, r2[f + 1] + np.uint64(7) * tap, r2[f + 2] + np.uint64(8) * tap
            xa, xb, xc, xd, xe, xg = v0[f], v0[f + 1], v0[f + 2], v1[f], v1[f + 1], v1[f + 2]
            xh, xi, xj = v2[f], v2[f + 1], v2[f + 2]
            y = out[t, f]
            for o in range(channels):
                p = o + channels
                total = table[a + o] * xa + table[a + p] + table[b + o] * xb + table[b + p]
                total += table[c + o] * xc + table[c + p] + table[d + o] * xd + table[d + p]
                total += table[e + o] * xe + table[e + p] + table[g + o] * xg + table[g + p]
                total += table[h + o] * xh + table[h + p] + table[i + o] * xi + table[i + p]
                total += table[j + o] * xj + table[j + p]
                y[o] = max(total, negative_slope * total)
