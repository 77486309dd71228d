"""Embedding of waveforms and of files, alike for every encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from common.datasets.audio import read_audio, resample
from common.encoder.protocol import Output, Waveform, choose_outputs
from common.encoder.waveforms import check_waveforms


class Embeds:
    """What a user of any encoder calls; the encoder itself has only `embed_outputs`."""

    sample_rate: int
    outputs: tuple[Output, ...]
    default_output: Output

    def embed_outputs(self, waveforms: Sequence[Waveform], outputs: Sequence[Output]) -> dict[Output, torch.Tensor]:
        """As `Encoder.embed_outputs`."""
        raise NotImplementedError

    def embed(
        self,
        waveforms: Sequence[Waveform],
        layer: str | None = None,
        pool: str | None = None,
        sample_rate: int | None = None,
    ) -> torch.Tensor:
        """Embed waveforms.

        Args:
            waveforms: 1-D floating-point arrays or tensors, mono, in [-1, 1], of any length from one sample. Those that are
                shorter than the encoder's minimum are padded to it.
            layer, pool: one of `outputs`; None: as in `default_output`.
            sample_rate: of the waveforms, in Hz; they are resampled to the encoder's. None: they are at the encoder's.

        Returns:
            float32 tensor (N, width) on the CPU, in the order given. A clip's row is the same alone and in any batch (on a
            GPU up to rounding, under 1e-6).

        Raises:
            ValueError: a waveform is empty, not 1-D, not floating-point, or holds NaN or infinity; or the layer or pool is
                unknown.
        """
        output = self._one_output(layer, pool)
        if sample_rate is not None and sample_rate != self.sample_rate:
            waveforms = [
                resample(waveform, sample_rate, self.sample_rate) for waveform in check_waveforms(waveforms, 1)
            ]
        return self.embed_outputs(waveforms, [output])[output]

    def embed_files(
        self, paths: Sequence[str | Path], layer: str | None = None, pool: str | None = None
    ) -> torch.Tensor:
        """Embed audio files of any kind and rate, one after the other: (N, width).

        For many files, `own_sounds/embed.py` resumes, saves, and names those that fail.

        Args:
            layer, pool: as for `embed`.

        Raises:
            AudioError: a file cannot be read.
        """
        output = self._one_output(layer, pool)
        rows = [self.embed_outputs([read_audio(path, self.sample_rate)], [output])[output] for path in paths]
        return torch.cat(rows) if rows else torch.empty(0, output.width)

    def _one_output(self, layer: str | None, pool: str | None) -> Output:
        chosen = choose_outputs(self.outputs, self.default_output, layer, pool)
        if len(chosen) > 1:
            raise ValueError(f"layer {layer!r} and pool {pool!r} are several outputs; see embed_outputs")
        return chosen[0]
