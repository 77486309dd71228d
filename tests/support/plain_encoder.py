"""The encoder written out plainly, for one clip at a time: what the fast one is held against, in float64 by the tests and in
float32 by the benchmark of extraction.

No folding, no tiles, no masks: torch's own BatchNorm in eval mode, every layer under its official name. And the fast
encoder with few channels, for tests in which their number does not matter.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.arrays import Array
from common.encoder import network
from common.encoder.checkpoint import load_weights
from common.encoder.network import BLOCKS, weight_shapes

Tensors = dict[str, torch.Tensor]


def use_narrow_network(patch: pytest.MonkeyPatch) -> None:
    """Let `load_encoder` build the same network with an eighth of the channels.

    Tiles, batches and padding do not depend on the number of channels, and the work falls to a fraction.
    """
    narrow = tuple((layer, name, before // 8, after // 8, pooling) for layer, name, before, after, pooling in BLOCKS)
    patch.setattr(network, "BLOCKS", narrow)
    patch.setattr(network, "PRE_CONV_CHANNELS", network.PRE_CONV_CHANNELS // 8)


def plain_layers(
    waveform: Array, checkpoint: str = "random:2024", condition: Array | None = None, pads_time: bool = False
) -> dict[str, torch.Tensor]:
    """layer -> its whole output (channels, time, frequency) in float64 for a waveform of at least 9,920 samples."""
    tensors = _weights(checkpoint, network.PRE_CONV_CHANNELS)
    layers = plain_outputs(torch.from_numpy(waveform.astype(np.float64)), tensors, condition, pads_time)
    return {layer: output[0] for layer, output in layers}


def plain_outputs(
    samples: torch.Tensor, tensors: Tensors, condition: Array | None = None, pads_time: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every layer and its output (1, channels, time, frequency), in the type and on the device of samples and weights."""
    window = torch.hann_window(2048, periodic=True, dtype=samples.dtype, device=samples.device)
    spectrum = torch.stft(samples, 2048, 320, window=window, center=True, pad_mode="reflect", return_complex=True)
    power = spectrum.real**2 + spectrum.imag**2
    magnitude = torch.sqrt(torch.clamp(power, 1e-10, np.inf))[None, :, :, None]  # (1, 1025, time, 1)
    x = _batch_norm(magnitude, tensors, "base.bn0").permute(0, 3, 2, 1)  # (1, 1, time, 1025)
    if pads_time:
        x = F.pad(x, (0, 0, 0, -x.shape[2] % 32))
    x = F.conv2d(x[..., :-1], tensors["base.pre_conv.weight"], tensors["base.pre_conv.bias"])
    yield "pre_conv", x
    for layer, name, _, _, pooling in BLOCKS:
        x = F.avg_pool2d(_block(x, tensors, name, condition), pooling)
        yield layer, x


@functools.lru_cache(maxsize=1)
def _weights(checkpoint: str, channels: int) -> Tensors:
    """The checkpoint's tensors in float64; `channels` tells the narrow network's from the whole one's."""
    return {name: value.double() for name, value in load_weights(checkpoint, weight_shapes()).tensors.items()}


def _batch_norm(x: torch.Tensor, tensors: Tensors, name: str) -> torch.Tensor:
    weight, bias, mean, var = (tensors[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var"))
    return F.batch_norm(x, mean, var, weight, bias, training=False, eps=1e-5)


def _block(x: torch.Tensor, tensors: Tensors, name: str, condition: Array | None) -> torch.Tensor:
    block = f"base.{name}.conv_block1"

    def activated(before: torch.Tensor, norm: str, which: str) -> torch.Tensor:
        normed = _batch_norm(before, tensors, f"{block}.{norm}")
        if condition is not None:
            film = f"film.{name}->conv_block1->{which}"
            vector = torch.from_numpy(condition.astype(np.float64))
            normed += F.linear(vector, tensors[f"{film}.weight"], tensors[f"{film}.bias"])[:, None, None]
        return F.leaky_relu_(normed, 0.01)

    hidden = F.conv2d(activated(x, "bn1", "beta1"), tensors[f"{block}.conv1.weight"], padding=1)
    residual = F.conv2d(activated(hidden, "bn2", "beta2"), tensors[f"{block}.conv2.weight"], padding=1)
    if f"{block}.shortcut.weight" in tensors:
        x = F.conv2d(x, tensors[f"{block}.shortcut.weight"], tensors[f"{block}.shortcut.bias"])
    return x + residual


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest relative L2 error of a row."""
    value, reference = torch.atleast_2d(value.double()), torch.atleast_2d(reference.double())
    return float(((value - reference).norm(dim=1) / reference.norm(dim=1)).max())
