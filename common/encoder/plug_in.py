"""What encoders from outside this project have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from common.arrays import Array
from common.errors import UserError

if TYPE_CHECKING:
    from common.encoder.protocol import Encoder

POOLS = ("mean", "std", "max")  # over time
BATCH_S = 64.0  # seconds of audio in one call of a plug-in, at most
LONGEST_MINIMUM_S = 10.0  # an encoder that embeds no clip of this length is taken for broken


class PluginError(UserError):
    """An encoder from outside cannot be loaded, or fails."""


def by_length(waveforms: Sequence[Array], sample_rate: int) -> Iterator[list[int]]:
    """Row numbers of waveforms that may share a batch: those of one length, up to BATCH_S seconds together."""
    rows: dict[int, list[int]] = {}
    for row, waveform in enumerate(waveforms):
        rows.setdefault(len(waveform), []).append(row)
    for length, same_length in rows.items():
        size = max(1, int(BATCH_S * sample_rate / length))
        yield from (same_length[start : start + size] for start in range(0, len(same_length), size))


def pool_over_time(frames: torch.Tensor, pool: str) -> torch.Tensor:
    """(N, time, D) -> (N, D), by one of POOLS; the standard deviation is that of the population."""
    if pool == "mean":
        return frames.double().mean(dim=1).float()
    if pool == "std":
        return frames.double().std(dim=1, correction=0).float()
    return frames.amax(dim=1)


def find_min_samples(encoder: Encoder, name: str) -> int:
    """The fewest samples of noise of which the encoder gives finite numbers, by bisection.

    The encoder must not pad meanwhile.

    Raises:
        PluginError: it fails even for 10 s; the cause is that failure.
    """
    noise = 0.1 * np.random.default_rng(0).standard_normal(int(LONGEST_MINIMUM_S * encoder.sample_rate))
    waveform = noise.astype(np.float32)

    def works(samples: int) -> bool:
        embedded = encoder.embed_outputs([waveform[:samples]], encoder.outputs)
        return all(bool(values.isfinite().all()) for values in embedded.values())

    def quietly(samples: int) -> bool:
        try:
            return works(samples)
        except PluginError:
            return False

    low, high = 0, 1  # fails (nothing to embed), perhaps works
    while not quietly(high):
        if high == len(waveform):
            if not works(high):  # raises the plug-in's own error, if it has one
                raise PluginError(f"{name} gives NaN or infinity for {LONGEST_MINIMUM_S:.0f} s of noise")
            break
        low, high = high, min(2 * high, len(waveform))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if quietly(middle) else (middle, high)
    return high


def n_parameters(model: object) -> int | None:
    """The number of a module's parameters; None if it has none that torch knows of."""
    if not isinstance(model, nn.Module):
        return None
    return sum(parameter.numel() for parameter in model.parameters()) or None


def tensors_sha256(model: nn.Module) -> str:
    """``sha256:<hex>`` of a module's tensors: names, shapes, types and values."""
    checksum = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        checksum.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        checksum.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return f"sha256:{checksum.hexdigest()}"
