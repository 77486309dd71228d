"""What an encoder is: named outputs, computed from waveforms at one sample rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.arrays import Array
from common.datasets.audio import read_audio, resample
from common.encoder_name import EncoderKind
from common.errors import UserError

Waveform = Array | torch.Tensor


class UnknownOutputError(UserError):
    """The encoder has no such layer or pooling."""


@dataclass(frozen=True)
class Output:
    """One embedding that an encoder can compute: a layer's activations, pooled."""

    layer: str  # as in --layer
    pool: str  # as in --pool; empty if there is nothing to choose
    width: int  # numbers per clip

    @property
    def name(self) -> str:
        """Such as ``"encoder_block6 mean"``."""
        return f"{self.layer} {self.pool}".strip()


@dataclass(frozen=True)
class EncoderInfo:
    """Where embeddings come from, as feature files and results record it."""

    kind: EncoderKind
    encoder: str  # its name, such as "AudioSep ResUNet30"
    checkpoint: str  # "sha256:<hex>" of the weights, "random:<seed>", or a name if there are no weights
    release: str  # the name of the weights' known release, "unknown", "untrained" or "plug-in"; for readers
    condition: str  # "none", "zero", or "sha256:<hex>" of the condition
    precision: str  # such as "fp32"
    code: str = ""  # of a plug-in, "sha256:<hex>" of its file and its version, or the class
    parameters: int | None = None  # their number; None if unknown
    min_samples: int = 1  # shorter clips are padded to this
    padding: str = "none"  # "official" if AudioSep pads time as its own forward does
    packages: tuple[str, ...] = ()  # others than the project's own that compute, whose versions are recorded


class Encoder:
    """A frozen encoder: what extraction needs of it, and what a user calls."""

    is_thread_safe = False  # whether several threads may call it at the same time
    is_stopped = False  # set to end calls in other threads early, whose results nobody waits for
    sample_rate: int  # of the waveforms it takes, in Hz
    info: EncoderInfo
    device: torch.device
    outputs: tuple[Output, ...]  # every one that it can compute
    default_output: Output  # the one that is extracted if none is asked for

    def embed_outputs(self, waveforms: Sequence[Waveform], outputs: Sequence[Output]) -> dict[Output, torch.Tensor]:
        """Several outputs from one pass: (N, width) float32 on the CPU; waveforms at `sample_rate`, otherwise as for `embed`."""
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
            waveforms: 1-D floating-point arrays or tensors, mono, in [-1, 1], finite, of any length from one sample. Those
                that are shorter than the encoder's minimum are padded to it.
            layer, pool: one of `outputs`; None: as in `default_output`.
            sample_rate: of the waveforms, in Hz; they are resampled to the encoder's. None: they are at the encoder's.

        Returns:
            float32 tensor (N, width) on the CPU, in order. A clip's row is the same alone and in any batch (on a GPU up to
            rounding, under 1e-6). ValueError if a waveform, the layer or the pool cannot be used.
        """
        output = self._one_output(layer, pool)
        if sample_rate is not None and sample_rate != self.sample_rate:
            waveforms = [
                resample(waveform, sample_rate, self.sample_rate) for waveform in check_waveforms(waveforms, 1)
            ]
        return self.embed_outputs(waveforms, [output])[output]

    def embed_files(
        self, paths: Sequence[str | Path] | str | Path, layer: str | None = None, pool: str | None = None
    ) -> torch.Tensor:
        """Embed audio files of any kind and rate, or one, in order: (N, width); AudioError if one cannot be read.

        For many files, `own_sounds/embed.py` resumes, saves, and names those that fail.
        """
        output, paths = self._one_output(layer, pool), [paths] if isinstance(paths, (str, Path)) else paths
        rows = [self.embed_outputs([read_audio(path, self.sample_rate)], [output])[output] for path in paths]
        return torch.cat(rows) if rows else torch.empty(0, output.width)

    def _one_output(self, layer: str | None, pool: str | None) -> Output:
        chosen = choose_outputs(self.outputs, self.default_output, layer, pool)
        if len(chosen) > 1:
            raise ValueError(f"layer {layer!r} and pool {pool!r} are several outputs; see embed_outputs")
        return chosen[0]


def check_waveforms(waveforms: Sequence[Waveform], min_samples: int) -> list[Array]:
    """Finite 1-D float32 arrays of at least `min_samples`; shorter ones are zero-padded to that. ValueError says what to do
    with any other."""
    # One array is ambiguous: is (2, samples) two clips, or one in stereo?
    if isinstance(waveforms, (np.ndarray, torch.Tensor)):
        how = "embed([waveform])" if waveforms.ndim == 1 else "embed(list(waveforms)), once they are mono"
        raise ValueError(
            f"waveforms is one array of shape {tuple(waveforms.shape)}; give a sequence of 1-D ones: {how}"
        )
    checked = []
    for index, waveform in enumerate(waveforms):
        if not isinstance(waveform, (np.ndarray, torch.Tensor)):
            raise ValueError(f"waveform {index} is a {type(waveform).__name__}; give a 1-D float32 array or tensor")
        if waveform.ndim != 1:
            raise ValueError(
                f"waveform {index} has shape {tuple(waveform.shape)}; give a 1-D array (average the channels to mono first)"
            )
        if not (waveform.is_floating_point() if torch.is_tensor(waveform) else waveform.dtype.kind == "f"):
            raise ValueError(
                f"waveform {index} has type {waveform.dtype}; give float32 in [-1, 1] (16-bit integers: divide by 32768)"
            )
        if not len(waveform):
            raise ValueError(f"waveform {index} is empty; give at least one sample")
        if torch.is_tensor(waveform):
            waveform = waveform.detach().to("cpu", torch.float32).numpy()
        samples = np.ascontiguousarray(
            waveform, dtype=np.float32
        )  # of any strides, byte order and floating-point width
        if not np.isfinite(samples).all():
            raise ValueError(f"waveform {index} holds NaN or infinite samples; repair or leave out this clip")
        checked.append(np.pad(samples, (0, min_samples - len(samples))) if len(samples) < min_samples else samples)
    return checked


def choose_outputs(
    outputs: Sequence[Output], default: Output, layers: str | None, pools: str | None
) -> tuple[Output, ...]:
    """The outputs that ``--layer`` and ``--pool`` name, with commas or as ``"all"``; None: the default's. A layer with a single
    pooling is taken whatever `pools` says. UnknownOutputError if a layer or pooling does not exist."""
    known = tuple(dict.fromkeys(output.layer for output in outputs))
    chosen: list[Output] = []
    for layer in _names("layer", layers, default.layer, known):
        of_layer = [output for output in outputs if output.layer == layer]
        if len(of_layer) == 1:
            chosen += of_layer
            continue
        by_pool = {output.pool: output for output in of_layer}
        first = default.pool if default.pool in by_pool else of_layer[0].pool
        chosen += [by_pool[pool] for pool in _names("pool", pools, first, list(by_pool))]
    return tuple(chosen)


def _names(what: str, asked: str | None, default: str, known: Sequence[str]) -> list[str]:
    """The names in a list with commas; UnknownOutputError if one of them is not known."""
    if asked is None:
        return [default]
    if asked == "all":
        return list(known)
    names = list(dict.fromkeys(name.strip() for name in asked.split(",")))
    for name in names:
        if name not in known:
            choice = f"choose from {', '.join(known)}, or several with commas, or all"
            raise UnknownOutputError(f"--{what} {name} is unknown to this encoder; {choice}")
    return names
