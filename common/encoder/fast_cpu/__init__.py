"""The encoder's convolutions with fewer multiplications, for a CPU in float32. One door: `accelerate`."""

from __future__ import annotations

import torch

from common.encoder.network import ResUNet30Encoder


def accelerate(network: ResUNet30Encoder) -> None:
    """Replace the convolutions of a network's blocks where that pays; embeddings change by rounding alone."""
    from common.encoder.fast_cpu.table import TableConv2d  # numba takes a quarter of a second
    from common.encoder.fast_cpu.winograd import WinogradBlock

    # With AVX-512 32 channels are too few for Winograd's algorithm; other kinds of CPUs were not measured.
    fewest = 32 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 64
    for block in network.blocks:
        scale, shift = block.scale.flatten(), block.shift.flatten()
        if block is network.first_block:
            block.fast_conv1 = TableConv2d(scale, shift, block.conv1)
        elif block.conv1.in_channels >= fewest:
            block.fast_convolutions = WinogradBlock(scale, shift, block.conv1, block.conv2)
