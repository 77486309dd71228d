"""Convolutions with a quarter of the multiplications, for layers of many channels on a CPU.

Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", https://arxiv.org/abs/1509.09308. Sixteen
neighbouring outputs of a 3x3 convolution depend on 6x6 inputs. Inputs and kernel are transformed to values at 6x6 points,
where a convolution is a product: 36 products of matrices instead of 144. The outputs are interpolated from there. A
convolution of stride 2 is the sum of convolutions of stride 1, of the even and of the odd rows and columns.

The transforms are those of Toom and Cook, at points that keep the error of float32 small (Barabasz et al., "Error Analysis
and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", https://arxiv.org/abs/1803.10986). They are
compiled, in long vectors: images are kept in phases, so that what neighbouring tiles have in the same place lies side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.arrays import Array
from common.compiled import compiled
from common.encoder.fast_cpu.threads import in_parallel
from common.encoder.network import LEAKY_SLOPE

OUTPUTS = 4  # of a tile, in each direction
POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)  # the first of these, and infinity
PHASES = 8  # columns that are eight apart lie side by side; eight columns are two tiles at a stride of 1, one at 2
# Inputs or products at the points that are computed at a time, 34 MB: more gains little; with fewer, the starts cost more.
NUMBERS_AT_A_TIME = 2**23
# With fewer tiles, reading the transformed kernels, which are 4 to 6 times larger, takes longer than what is saved.
MIN_TILES = 16
SPAN = 512  # numbers of a vector that are computed at a time: they stay in the L1 cache


class WinogradBlock:
    """The convolutions of a block on a CPU, up to the rounding of float32: `conv1` of the leaky ReLU of the scaled and shifted
    input, and `conv2` of the leaky ReLU of that."""

    def __init__(self, scale: torch.Tensor, shift: torch.Tensor, conv1: nn.Conv2d, conv2: nn.Conv2d) -> None:
        self.scale, self.shift = scale, shift
        self.conv1, self.conv2 = WinogradConv2d(conv1), WinogradConv2d(conv2)

    def __call__(self, x: torch.Tensor, ends: Sequence[int]) -> torch.Tensor | None:
        """(B, channels_in, time, frequency) -> (B, channels_out, time // stride, frequency // stride), channels last in
        memory; None if so small an input is computed faster without. From its end on, an item counts as 0, and so do its
        outputs."""
        if x.shape[3] % PHASES or not self.conv1.pays(*x.shape[2:]):
            return None
        step_down, step_across = self.conv2.stride
        y = x.new_empty(len(x), x.shape[2] // step_down, x.shape[3] // step_across, self.conv2.direct.out_channels)
        for item, end, into in zip(x.permute(0, 2, 3, 1), ends, y, strict=True):
            image, hidden = (_phased(x, end, conv.direct.in_channels) for conv in (self.conv1, self.conv2))
            phases = item[:end].unflatten(1, (-1, PHASES)).transpose(1, 2)
            torch.addcmul(self.shift, phases, self.scale, out=image[:end])
            F.leaky_relu_(image[:end], LEAKY_SLOPE)
            self.conv1(image, hidden[:end], LEAKY_SLOPE)
            del image  # as large as the input
            n_outputs = end // step_down
            if self.conv2.pays(end, x.shape[3]):
                self.conv2(hidden, into[:n_outputs])
            elif n_outputs:
                in_order = hidden[:end].transpose(1, 2).flatten(1, 2).permute(2, 0, 1)
                into[:n_outputs] = self.conv2.direct(in_order[None])[0].permute(1, 2, 0)
            into[n_outputs:] = 0
        return y.permute(0, 3, 1, 2)


def _phased(like: torch.Tensor, height: int, channels: int) -> torch.Tensor:
    """An empty image in phases, as wide as `like` (..., width): (height + 1, PHASES, width / PHASES, channels). Column f is at
    [f % PHASES, f // PHASES]; the last row is 0, for what is outside."""
    image = like.new_empty(height + 1, PHASES, like.shape[-1] // PHASES, channels)
    image[height] = 0
    return image


class WinogradConv2d:
    """A convolution in float32 of an image in phases, with a padding of 1, and for each direction a stride of 1 and 3 taps, or a
    stride of 2 and 4 taps."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.direct = conv
        self.stride = (conv.stride[0], conv.stride[1])
        self.down, self.across = (
            _Transforms(taps // step) for taps, step in zip(conv.kernel_size, self.stride, strict=True)
        )

    @cached_property
    def weight(self) -> torch.Tensor:
        """The kernel at the points: (points, inputs of a product, channels_out). Computed when it is first used: short
        clips do not need all of them, and few people need the bottleneck's."""
        kernel = self.direct.weight.detach().double()
        parts = kernel.unflatten(3, (-1, self.stride[1])).unflatten(2, (-1, self.stride[0]))
        down, across = (torch.from_numpy(direction.of_kernel) for direction in (self.down, self.across))
        weight = torch.einsum("ia,jb,ocapbq->ijpqco", down, across, parts)
        return weight.flatten(2, 4).flatten(0, 1).float().contiguous()

    def pays(self, height: int, width: int) -> bool:
        """Whether an image of this size has enough tiles."""
        down, across = (-(-(size // step) // OUTPUTS) for size, step in zip((height, width), self.stride, strict=True))
        return down * across >= MIN_TILES

    def __call__(self, image: torch.Tensor, into: torch.Tensor, negative_slope: float = 1) -> None:
        """The convolution of (height + 1, PHASES, width / PHASES, channels_in), the last row 0, and a leaky ReLU of it (a
        slope of 1: none), written `into` an image in phases without such a row, or (height / stride, width / stride,
        channels_out)."""
        in_order, slope, classes = into.ndim == 3, np.float32(negative_slope), PHASES // OUTPUTS // self.stride[1]
        rows, across = -(-len(into) // OUTPUTS), math.prod(into.shape[1:-1]) // OUTPUTS
        # As views: into a copy, the result would be lost.
        source, target = (x.view(len(x), math.prod(x.shape[1:])).numpy() for x in (image, into))
        points = (len(self.down.of_inputs), len(self.across.of_inputs))
        inputs = (self.down.of_inputs, self.across.of_inputs, self.stride)
        outputs = (self.down.to_outputs, self.across.to_outputs, slope, classes, in_order)
        of_a_row = math.prod(points) * across * max(self.weight.shape[1:])
        at_a_time = max(1, NUMBERS_AT_A_TIME // of_a_row)
        for first in range(0, rows, at_a_time):
            count = min(at_a_time, rows - first)
            x = image.new_empty(math.prod(points), count * across, self.weight.shape[1])
            in_parallel(count, _to_points, source, *inputs, first, x.numpy())
            x = torch.bmm(x, self.weight).unflatten(0, points)
            if self.direct.bias is not None:
                at_one = POINTS.index(1.0)  # the value there is in every output, once
                x[at_one, at_one] += self.direct.bias.detach()
            in_parallel(count, _to_outputs, x.numpy(), *outputs, first, target)


@compiled
def _to_points(image, down, across, stride, first, points, start, stop):  # type: ignore[no-untyped-def]
    """The inputs of some rows of tiles, `start` to `stop` of those from `first` on, at the points: `image` (height + 1, PHASES *
    columns of a phase * channels) -> `points` (all points, tiles from `first` on, inputs of a product)."""
    step_down, step_across = stride
    outside, part = image.shape[0] - 1, image.shape[1] // PHASES
    tiles, depth = points.shape[1:]
    channels = depth // (step_down * step_across)
    columns, classes = part // channels, PHASES // OUTPUTS // step_across
    numbers, into = image.ravel(), points.ravel()
    padded = part + 2 * channels  # with a column of the outside on either side
    strip = np.zeros(len(down) * PHASES * padded, np.float32)
    places, single, zero, plain = np.zeros(6, np.uint64), np.uint64(1), np.uint64(0), np.float32(1)
    for row in range(start, stop):
        for below in range(step_down):
            for k in range(len(down)):
                y = (OUTPUTS * (first + row) + k) * step_down + below - 1
                places[k] = image.shape[1] * (y if 0 <= y < outside else outside)
            for begin in range(0, image.shape[1], part):
                for at in range(begin, begin + part, SPAN):
                    size = np.uint64(min(SPAN, begin + part - at))
                    for i in range(len(down)):
                        to = np.uint64((i * PHASES + begin // part) * padded + channels + at - begin)
                        _combine(down[i], numbers, places, np.uint64(at), plain, strip, to, single, size, zero)
            for i in range(len(down)):
                for tile in range(classes):
                    for right in range(step_across):
                        for k in range(len(across)):
                            column = (OUTPUTS * tile + k) * step_across + right - 1
                            places[k] = (i * PHASES + column % PHASES) * padded + (1 + column // PHASES) * channels
                        for j in range(len(across)):
                            to = ((i * len(across) + j) * tiles + (row * classes + tile) * columns) * depth
                            to = np.uint64(to + (below * step_across + right) * channels)
                            run, count, apart = np.uint64(channels), np.uint64(columns), np.uint64(depth)
                            if depth == channels:
                                run, count = np.uint64(part), single
                            _combine(across[j], strip, places, zero, plain, into, to, count, run, apart)


@compiled
def _to_outputs(points, down, across, slope, classes, in_order, first, image, start, stop):  # type: ignore[no-untyped-def]
    """The outputs of some rows of tiles, `start` to `stop` of those from `first` on, and their leaky ReLU: products at the points
    (points down, points across, tiles from `first` on, channels) -> `image` (height, columns * channels).

    Args:
        classes: tiles that lie in different phases.
        in_order: whether the columns of `image` are in order, not in phases.
    """
    n_down, n_across, tiles, channels = points.shape
    height, width = image.shape
    phases = classes * OUTPUTS
    columns = width // (phases * channels)
    numbers, into = points.ravel(), image.ravel()
    span = max(1, SPAN // channels)  # columns that are computed at a time
    strip = np.empty(n_down * OUTPUTS * span * channels, np.float32)
    places, single, zero, plain = np.zeros(6, np.uint64), np.uint64(1), np.uint64(0), np.float32(1)
    for row in range(start, stop):
        for tile in range(classes):
            for column in range(0, columns, span):
                count = min(span, columns - column)
                size = count * channels
                for i in range(n_down):
                    for k in range(n_across):
                        places[k] = ((i * n_across + k) * tiles + (row * classes + tile) * columns + column) * channels
                    for j in range(OUTPUTS):
                        to = np.uint64((i * OUTPUTS + j) * size)
                        _combine(across[j], numbers, places, zero, plain, strip, to, single, np.uint64(size), zero)
                for j in range(OUTPUTS):
                    for k in range(n_down):
                        places[k] = (k * OUTPUTS + j) * size
                    phase = tile * OUTPUTS + j
                    for i in range(min(OUTPUTS, height - OUTPUTS * (first + row))):
                        to = (OUTPUTS * (first + row) + i) * width
                        if in_order:
                            to = np.uint64(to + (column * phases + phase) * channels)
                            runs, run, apart = np.uint64(count), np.uint64(channels), np.uint64(phases * channels)
                        else:
                            to = np.uint64(to + (phase * columns + column) * channels)
                            runs, run, apart = single, np.uint64(size), zero
                        _combine(down[i], strip, places, zero, slope, into, to, runs, run, apart)


@compiled
def _combine(weights, numbers, places, at, slope, into, to, count, run, apart):  # type: ignore[no-untyped-def]
    """A weighted sum of 5 or 6 vectors, and its leaky ReLU.

    Vector k begins at numbers[places[k] + at]. The sum is written from into[to] on, in `count` runs of `run` numbers that begin
    `apart` numbers from each other. Indexes are unsigned, since a negative one would count from the end: to look whether it
    is would take the longest.
    """
    a, b, c, d, e = places[0] + at, places[1] + at, places[2] + at, places[3] + at, places[4] + at
    wa, wb, wc, wd, we = weights[0], weights[1], weights[2], weights[3], weights[4]
    f, wf = a, np.float32(0)
    six = len(weights) == 6
    if six:
        f, wf = places[5] + at, weights[5]
    for _ in range(count):
        if six:
            for x in range(run):
                y = wa * numbers[a + x] + wb * numbers[b + x] + wc * numbers[c + x] + wd * numbers[d + x]
                y += we * numbers[e + x] + wf * numbers[f + x]
                into[to + x] = max(y, slope * y)
        else:
            for x in range(run):
                y = wa * numbers[a + x] + wb * numbers[b + x] + wc * numbers[c + x] + wd * numbers[d + x]
                y += we * numbers[e + x]
                into[to + x] = max(y, slope * y)
        a, b, c, d, e, f, to = a + run, b + run, c + run, d + run, e + run, f + run, to + apart


class _Transforms:
    """The transforms of one direction: of inputs (points, points) and to outputs (OUTPUTS, points), both float32, and of a
    kernel of so many taps (points, taps), float64.

    A polynomial is given by its values at as many points as it has coefficients; at infinity, by its highest coefficient.
    Multiplied there and interpolated, two polynomials' coefficients are convolved. The transpose of that slides a kernel
    over inputs.
    """

    def __init__(self, taps: int) -> None:
        size = OUTPUTS + taps - 1
        points = (*POINTS[: size - 1], math.inf)

        def values(coefficients: int) -> Array:
            powers = range(coefficients)
            rows = [[float(power == powers[-1]) if math.isinf(p) else p**power for power in powers] for p in points]
            return np.array(rows)

        of_inputs = np.linalg.inv(values(size)).T
        # Transformed inputs of about one size lose least when they are rounded.
        scale = np.abs(of_inputs).sum(axis=1, keepdims=True)
        self.of_inputs = np.ascontiguousarray(of_inputs / scale, np.float32)
        self.of_kernel = values(taps) * scale
        self.to_outputs = np.ascontiguousarray(values(OUTPUTS).T, np.float32)
