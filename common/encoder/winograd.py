"""Convolutions with a quarter of the multiplications, for layers of many channels on a CPU.

Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", https://arxiv.org/abs/1509.09308. Sixteen
neighbouring outputs of a 3x3 convolution depend on 6x6 inputs. Inputs and kernel are transformed to values at 6x6 points,
where a convolution is a product: 36 products of matrices instead of 144. The outputs are interpolated from there. A
convolution of stride 2 is the sum of convolutions of stride 1, of the even and of the odd rows and columns.

The transforms are those of Toom and Cook, at points that keep the error of float32 small (Barabasz et al., "Error Analysis
and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", https://arxiv.org/abs/1803.10986).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

OUTPUTS = 4  # of a tile, in each direction
POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)  # the first of these, and infinity
# Rows of tiles that are computed at a time: what is computed of them stays in a CPU's cache.
ROWS_AT_A_TIME = 8
# With fewer tiles, reading the transformed kernels, which are 4 to 6 times larger, takes longer than what is saved.
MIN_TILES = 24


class WinogradConv2d(nn.Module):
    """What a Conv2d computes, up to the rounding of float32.

    Args:
        conv: of float32, with a padding of 1, and for each direction a stride of 1 and 3 taps, or a stride of 2 and 4 taps.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.direct = conv
        self.stride = (conv.stride[0], conv.stride[1])
        down, across = self._directions()
        self.down_inputs, self.down_outputs = nn.Buffer(down.of_inputs.float()), nn.Buffer(down.to_outputs.float())
        self.across_inputs, self.across_outputs = (
            nn.Buffer(across.of_inputs.float()),
            nn.Buffer(across.to_outputs.float()),
        )
        self._weight: torch.Tensor | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The kernel at the points: (points, inputs of a product, channels_out). Computed when it is first used: short
        clips do not need all of them, and few people need the bottleneck's."""
        if self._weight is None or self._weight.device != self.direct.weight.device:
            down, across = (direction.of_kernel.to(self.direct.weight.device) for direction in self._directions())
            kernel = self.direct.weight.detach().double()
            parts = kernel.unflatten(3, (-1, self.stride[1])).unflatten(2, (-1, self.stride[0]))
            weight = torch.einsum("ia,jb,ocapbq->ijpqco", down, across, parts)
            self._weight = weight.flatten(2, 4).flatten(0, 1).float().contiguous()
        return self._weight

    def _directions(self) -> tuple[_Transforms, _Transforms]:
        """The transforms in time and in frequency."""
        down, across = (
            _transforms(taps // step) for taps, step in zip(self.direct.kernel_size, self.stride, strict=True)
        )
        return down, across

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels_in, time, frequency) -> (B, channels_out, time // stride[0], frequency // stride[1]), channels last
        in memory."""
        height, width = (size // step for size, step in zip(x.shape[2:], self.stride, strict=True))
        down, across = -(-height // OUTPUTS), -(-width // OUTPUTS)
        if down * across < MIN_TILES:
            return self.direct(x)  # type: ignore[no-any-return]
        below, right = (
            tiles * OUTPUTS * step - size + 1
            for tiles, step, size in zip((down, across), self.stride, x.shape[2:], strict=True)
        )
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, right, 1, below)).contiguous()
        y = x.new_empty(len(x), down, OUTPUTS, across, OUTPUTS, self.direct.out_channels)
        for image, into in zip(padded, y, strict=True):
            for first in range(0, down, ROWS_AT_A_TIME):
                part = into[first : first + ROWS_AT_A_TIME]
                outputs = self._tiles(image[OUTPUTS * self.stride[0] * first :], len(part), across)
                part.copy_(outputs.permute(2, 0, 3, 1, 4))
        return y.flatten(3, 4).flatten(1, 2)[:, :height, :width].permute(0, 3, 1, 2)

    def _tiles(self, image: torch.Tensor, down: int, across: int) -> torch.Tensor:
        """The outputs of an image's first tiles: (row in the tile, column in it, tiles down, tiles across, channels).

        Args:
            image: (rows, columns, channels_in), padded.
        """
        (row, column, _), (step_down, step_across) = image.stride(), self.stride
        points_down, points_across = len(self.down_inputs), len(self.across_inputs)
        next_input = (step_down * row, step_across * column)
        inputs = image.as_strided(
            (points_down, points_across, down, across, step_down, step_across, image.shape[2]),
            (*next_input, *(OUTPUTS * each for each in next_input), row, column, 1),
        )
        # What is not transformed lies in one long dimension, which the products run along.
        x = (self.down_inputs @ inputs.reshape(points_down, -1)).view(points_down, points_across, -1)
        x = torch.matmul(self.across_inputs, x).view(points_down * points_across, down * across, -1)
        x = torch.bmm(x, self.weight)
        if self.direct.bias is not None:
            one = POINTS.index(1.0)  # the value there is in every output, once
            x[one * points_across + one] += self.direct.bias
        y = (self.down_outputs @ x.view(points_down, -1)).view(OUTPUTS, points_across, -1)
        return torch.matmul(self.across_outputs, y).view(OUTPUTS, OUTPUTS, down, across, -1)


def pays(conv: nn.Conv2d) -> bool:
    """Whether a CPU computes a convolution faster this way: if the products of matrices outweigh the transforms.

    Measured on clips of 1 to 10 s. With 128 channels and a stride of 2 it takes 0.7 to 0.9 of the time with AVX2, and
    0.9 to 1.3 of it with AVX-512, whose direct convolutions are twice as fast.
    """
    if conv.stride == (1, 1):
        return conv.in_channels >= 64
    return conv.in_channels >= (256 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 128)


@dataclass(frozen=True)
class _Transforms:
    """The transforms of one direction, float64: of inputs (points, points), of a kernel (points, taps), and to outputs
    (OUTPUTS, points)."""

    of_inputs: torch.Tensor
    of_kernel: torch.Tensor
    to_outputs: torch.Tensor

    @property
    def points(self) -> int:
        return len(self.of_inputs)


def _transforms(taps: int) -> _Transforms:
    """The transforms for a kernel of so many taps.

    A polynomial is given by its values at as many points as it has coefficients; at infinity, by its highest coefficient.
    Multiplied there and interpolated, two polynomials' coefficients are convolved. The transpose of that slides a kernel
    over inputs.
    """
    size = OUTPUTS + taps - 1
    points = (*POINTS[: size - 1], math.inf)

    def values(coefficients: int) -> torch.Tensor:
        powers = range(coefficients)
        rows = [[float(power == coefficients - 1) if math.isinf(p) else p**power for power in powers] for p in points]
        return torch.tensor(rows, dtype=torch.float64)

    of_inputs, of_kernel = torch.linalg.inv(values(size)).T, values(taps)
    # Transformed inputs of about one size lose least when they are rounded.
    scale = of_inputs.abs().sum(dim=1, keepdim=True)
    return _Transforms(of_inputs / scale, of_kernel * scale, values(OUTPUTS).T)
