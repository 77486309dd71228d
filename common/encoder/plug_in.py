"""What encoders from outside this project have in common."""

from __future__ import annotations

import bisect
import hashlib
import warnings
from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import nn

from common.arrays import Array
from common.datasets import DatasetNote
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


class PlugIn(Encoder):
    """An `Encoder` from outside. The clips of a call share a batch only if they have the same length."""

    name: EncoderName
    # Shorter clips are zero-padded to so many samples; 1 until `find_min_samples` is asked, and where the plug-in pads.
    pad_to = 1

    def states(self, audio: Array, layers: Collection[str]) -> dict[str, torch.Tensor]:
        """(N, samples) -> at least these layers: (N, time, D), or (N, D) of outputs without a pooling; PluginError if the plug-in
        fails, or returns something else."""
        raise NotImplementedError

    def embed_outputs(self, waveforms: Sequence[Waveform], outputs: Sequence[Output]) -> dict[Output, torch.Tensor]:
        """As `Encoder.embed_outputs`; errors as for `states`."""
        checked = check_waveforms(waveforms, self.pad_to)
        embeddings = {output: torch.empty(len(checked), output.width) for output in outputs}
        lengths = np.array([len(waveform) for waveform in checked], dtype=int)
        batches: list[Array] = []
        for length in np.unique(lengths):
            rows, size = np.flatnonzero(lengths == length), max(1, int(BATCH_S * self.sample_rate / length))
            batches += np.split(rows, range(size, len(rows), size))
        for rows in batches:
            states = self.states(np.stack([checked[row] for row in rows]), {output.layer for output in outputs})
            for output in outputs:
                values = states[output.layer]
                pooled = POOLS[output.pool](values) if output.pool else values
                if pooled.shape[1] != output.width:
                    raise PluginError(f"{self.name}: {output.name} has {pooled.shape[1]} numbers, not {output.width}")
                embeddings[output][rows] = pooled.cpu().float()
        return embeddings

    def find_min_samples(self) -> int:
        """The fewest samples of noise of which the encoder gives finite numbers, by bisection; PluginError if it fails for all."""
        longest = int(LONGEST_MINIMUM_S * self.sample_rate)
        noise = (0.1 * np.random.default_rng(0).standard_normal(longest)).astype(np.float32)

        def problem(samples: int) -> PluginError | None:
            try:
                embedded = self.embed_outputs([noise[:samples]], self.outputs)
            except PluginError as error:
                return error
            if all(bool(values.isfinite().all()) for values in embedded.values()):
                return None
            return PluginError(f"{self.name} gives NaN or infinity for {LONGEST_MINIMUM_S:.0f} s of noise")

        high = 1
        while (error := problem(high)) is not None:
            if high == longest:
                raise error
            high = min(2 * high, longest)
        low = high // 2 + 1  # half of it fails
        return low + bisect.bisect_left(range(low, high), True, key=lambda samples: problem(samples) is None)

    def describe(
        self, model: object, checkpoint: str, code: str, min_samples: int, packages: tuple[str, ...] = ()
    ) -> EncoderInfo:
        """What is recorded; with a note if one clip has two embeddings."""
        second = (0.1 * np.random.default_rng(0).standard_normal(self.sample_rate)).astype(np.float32)
        if not torch.equal(
            *(self.embed_outputs([second], [self.default_output])[self.default_output] for _ in range(2))
        ):
            warnings.warn(
                f"{self.name} gives one clip two embeddings: its scores depend on chance", DatasetNote, stacklevel=2
            )
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
