"""The encoder's first 3x3 convolution, whose input channels are all functions of one number, read from a table.

Each of its input channels is ``leaky_relu(scale * x + shift)`` of the spectrogram's one channel x. It is linear on both sides
of where it bends. So what one place of the spectrogram adds to the outputs around it is linear in x between neighbouring
bends: 33 pieces for 32 channels. Their slopes and offsets are computed once. So an output takes two
multiplications for each tap, where the convolution takes one for each tap and input channel.

torch's ``embedding_bag`` adds rows of a table, each times a weight: the row of slopes times x, the row of offsets times 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from common.encoder.padding import PaddingMask, fill_padding

# Frames that are computed at a time, so that what is computed of them stays in a CPU's cache; of 1 to 8, 4 was the fastest.
FRAMES_AT_A_TIME = 4


class TableConv2d(nn.Module):
    """What a convolution computes of ``leaky_relu(scale * x + shift)``, up to the rounding of float32.

    Args:
        scale, shift: (channels_in,).
        negative_slope: of the leaky ReLU.
        conv: a 3x3 convolution with a padding of 1.
    """

    def __init__(self, scale: torch.Tensor, shift: torch.Tensor, negative_slope: float, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None
        scale, shift, kernel, bias = (each.detach().double() for each in (scale, shift, conv.weight, conv.bias))
        # Where the scale is 0, a channel does not bend.
        bends, order = torch.sort(torch.where(scale == 0, math.inf, -shift / scale))
        before = torch.empty_like(order)
        before[order] = torch.arange(len(order))
        pieces = torch.arange(len(bends) + 1)[:, None]
        # A channel's sign changes at its bend: (pieces, channels_in).
        is_positive = torch.where(scale == 0, shift > 0, (pieces > before) == (scale > 0))
        gain = torch.where(is_positive, 1.0, negative_slope).double()
        slopes, offsets = (torch.einsum("ocij,pc->pijo", kernel, gain * each) for each in (scale, shift))
        offsets[:, 1, 1] += bias  # of the middle, which is never outside
        table = torch.stack([slopes, offsets], dim=2)  # (pieces, taps in time, 2, taps in frequency, channels_out)
        outside = torch.zeros_like(table[:1])
        self.bends = nn.Buffer(bends.float())
        self.table = nn.Buffer(torch.cat([table, outside]).flatten(3).flatten(0, 2).float())
        # Two numbers that belong together, such as the places of a piece's slopes and offsets, are moved as one.
        self.pieces = nn.Buffer(_as_one(*(6 * torch.arange(len(pieces) + 1) + part for part in (0, 1))))
        self.outside = int(self.pieces[-1])
        self.taps = nn.Buffer(_as_one(2 * torch.arange(3), 2 * torch.arange(3)))

    def forward(self, x: torch.Tensor, mask: PaddingMask | None) -> torch.Tensor:
        """(B, time, frequency) -> (B, channels_out, time, frequency), channels last in memory. What is padding counts as
        0 after the leaky ReLU; the outputs at its places mean nothing."""
        rows = fill_padding(self.pieces[torch.bucketize(x, self.bends, out_int32=True)], mask, self.outside)
        rows = F.pad(rows, (1, 1, 1, 1), value=self.outside)
        weights = F.pad(torch.stack([x, torch.ones_like(x)], dim=-1).view(torch.int64).squeeze(-1), (1, 1, 1, 1))
        y = x.new_empty(*x.shape, self.table.shape[1] // 3)
        for item_rows, item_weights, item in zip(rows, weights, y, strict=True):
            for start in range(0, len(item), FRAMES_AT_A_TIME):
                part = slice(start, start + FRAMES_AT_A_TIME + 2)
                self._frames(item_rows[part], item_weights[part], item[start : start + FRAMES_AT_A_TIME])
        return y.permute(0, 3, 1, 2)

    def _frames(self, rows: torch.Tensor, weights: torch.Tensor, into: torch.Tensor) -> None:
        """The outputs of a few frames: (frames + 2, frequencies + 2) twice -> (frames, frequencies, channels_out)."""
        frames, frequencies, channels = into.shape
        bags = rows.new_empty(2, frames, frequencies + 2, 3)
        torch.add(rows.unfold(0, 3, 1), self.taps, out=bags[0])
        bags[1] = weights.unfold(0, 3, 1)
        of_taps = F.embedding_bag(
            bags[0].view(torch.int32).view(-1, 6),
            self.table,
            mode="sum",
            per_sample_weights=bags[1].view(torch.float32).view(-1, 6),
        ).view(frames, frequencies + 2, 3, channels)
        torch.add(of_taps[:, :-2, 0], of_taps[:, 1:-1, 1], out=into)
        into += of_taps[:, 2:, 2]


def table_pays() -> bool:
    """Whether `embedding_bag` has kernels for this CPU; its plain loop is slower than the convolution."""
    return "fbgemm" in torch.backends.quantized.supported_engines and "AVX" in torch.backends.cpu.get_cpu_capability()


def _as_one(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Pairs of numbers below 2^31 as int64, whose sums are the pairs' sums."""
    return torch.stack([first, second], dim=-1).int().view(torch.int64).squeeze(-1)
