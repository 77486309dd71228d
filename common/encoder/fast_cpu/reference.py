"""What the fast convolutions compute, in NumPy."""

from __future__ import annotations

import numpy as np

from common.arrays import Array


def leaky_relu(x: Array, slope: float) -> Array:
    """The activation."""
    return np.where(x > 0, x, slope * x)


def convolve(x: Array, kernel: Array, stride: tuple[int, int] = (1, 1)) -> Array:
    """(B, C, T, F) -> (B, O, T // stride[0], F // stride[1]), with a zero on every side; the kernel is (O, C, I, J)."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2:], axis=(2, 3))
    convolved: Array = np.einsum("bctfij,ocij->botf", windows[:, :, :: stride[0], :: stride[1]], kernel, optimize=True)
    return convolved
