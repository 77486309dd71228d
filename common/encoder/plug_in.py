"""What encoders from outside this project have in common."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from common.arrays import Array
from common.encoder.protocol import Encoder, EncoderInfo, Output, Waveform, check_waveforms
from common.encoder_name import EncoderName
from common.errors import UserError

# Frames (N, time, D) -> (N, D), over time; the standard deviation is that of the population.
POOLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda frames: frames.double().mean(dim=1).float(),
    "std": lambda frames: frames.double().std(dim=1, correction=0).float(),
    "max": lambda frames: frames.amax(dim=1),
}
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


class PlugIn(Encoder):
    """An `Encoder` from outside. The clips of a call share a batch only if they have the same length."""

    name: EncoderName
    # Shorter clips are zero-padded to so many samples; 1 until `find_min_samples` is asked, and where the plug-in pads.
    pad_to = 1

    def states(self, audio: Array, layers: Collection[str]) -> dict[str, torch.Tensor]:
        """(N, samples) -> at least these layers: (N, time, D), or (N, D) of outputs without a pooling.

        Raises:
            PluginError: the plug-in fails, or returns something else than it should.
        """
        raise NotImplementedError

    def embed_outputs(self, waveforms: Sequence[Waveform], outputs: Sequence[Output]) -> dict[Output, torch.Tensor]:
        """As `Encoder.embed_outputs`; errors as for `states`."""
        checked = check_waveforms(waveforms, self.pad_to)
        embeddings = {output: torch.empty(len(checked), output.width) for output in outputs}
        for rows in by_length(checked, self.sample_rate):
            states = self.states(np.stack([checked[row] for row in rows]), {output.layer for output in outputs})
            for output in outputs:
                values = states[output.layer]
                pooled = POOLS[output.pool](values) if output.pool else values
                if pooled.shape[1] != output.width:
                    raise PluginError(f"{self.name}: {output.name} has {pooled.shape[1]} numbers, not {output.width}")
                embeddings[output][rows] = pooled.cpu().float()
        return embeddings

    def find_min_samples(self) -> int:
        """The fewest samples of noise of which the encoder gives finite numbers, by bisection.

        Raises:
            PluginError: it fails even for 10 s; the cause is that failure.
        """
        noise = 0.1 * np.random.default_rng(0).standard_normal(int(LONGEST_MINIMUM_S * self.sample_rate))
        waveform = noise.astype(np.float32)

        def works(samples: int) -> bool:
            embedded = self.embed_outputs([waveform[:samples]], self.outputs)
            return all(bool(values.isfinite().all()) for values in embedded.values())

        def quietly(samples: int) -> bool:
            try:
                return works(samples)
            except PluginError:
                return False

        low, high = 0, 1  # fails (nothing to embed), perhaps works
        while high < len(waveform) and not quietly(high):
            low, high = high, min(2 * high, len(waveform))
        if not works(high):  # raises the plug-in's own error, if it has one
            raise PluginError(f"{self.name} gives NaN or infinity for {LONGEST_MINIMUM_S:.0f} s of noise")
        return low + 1 + bisect.bisect_left(range(low + 1, high), True, key=quietly)

    def describe(
        self, model: object, checkpoint: str, code: str, min_samples: int, packages: tuple[str, ...] = ()
    ) -> EncoderInfo:
        """What is recorded; `model` is asked for the number of its parameters, if it is one of torch."""
        parameters = sum(values.numel() for values in model.parameters()) if isinstance(model, nn.Module) else 0
        return EncoderInfo(
            self.name.kind,
            self.name.label,
            checkpoint,
            release="plug-in",
            condition="none",
            precision="fp32",
            code=code,
            parameters=parameters or None,
            min_samples=min_samples,
            packages=packages,
        )


def tensors_sha256(model: nn.Module) -> str:
    """``sha256:<hex>`` of a module's tensors: names, shapes, types and values."""
    checksum = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        checksum.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        checksum.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return f"sha256:{checksum.hexdigest()}"
