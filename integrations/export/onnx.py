"""The encoder as an ONNX graph for clips of any length; needs onnx and onnxscript (requirements-encoders.txt)."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.encoder.audiosep import MIN_SAMPLES, AudioSepEncoder
from common.encoder.network import HOP_LENGTH, LEAKY_SLOPE, MIN_MAGNITUDE, N_FFT, SAMPLE_RATE, ResUNet30Encoder
from common.files import write_atomically
from integrations.export import ExportError

OPSET = 20


def export_onnx(
    path: Path, checkpoint: str | None = None, condition: str | None = None, overwrite: bool = False
) -> Path:
    """Write the encoder as an ONNX file; returns its path. Arguments and errors as for `load_encoder`; ExportError if packages
    are missing, or the file exists. Input ``audio`` (clips, samples): mono at 32 kHz, of the same length, at least MIN_SAMPLES.
    Outputs ``embedding`` (clips, 384) and ``frames`` (clips, columns of 0.32 s, 384)."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"{' and '.join(missing)} is not installed: pip install -r requirements-encoders.txt")
    if path.exists() and (path.is_dir() or not overwrite):
        raise ExportError(f"{path} already exists; give another file, or --overwrite")
    encoder = AudioSepEncoder(checkpoint, condition=condition)
    sizes = {0: torch.export.Dim("clips"), 1: torch.export.Dim("samples", min=MIN_SAMPLES)}
    # torch prints every step, and warns about packages it does not use.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Graph(encoder.network).eval(),
            (torch.zeros(2, 40_000),),
            input_names=["audio"],
            output_names=["embedding", "frames"],
            dynamic_shapes=(sizes,),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model: Any = program.model_proto
    model.doc_string = "AudioSep's separation encoder: mono sound at 32 kHz -> embeddings of 384 numbers"
    facts = {name: getattr(encoder.info, name) for name in ("checkpoint", "release", "condition")}
    for key, value in {**facts, "sample_rate": SAMPLE_RATE, "min_samples": MIN_SAMPLES}.items():
        model.metadata_props.add(key=key, value=str(value))
    write_atomically(path, model.SerializeToString())
    return path


class Graph(nn.Module):
    """The folded network in operations that every runtime has, with the STFT as a convolution."""

    def __init__(self, network: ResUNet30Encoder) -> None:
        super().__init__()
        self.network = network
        bins, samples = torch.arange(N_FFT // 2)[:, None], torch.arange(N_FFT)
        # Integers modulo N_FFT: large angles would lose precision.
        angles = (bins * samples % N_FFT).double() * (2 * math.pi / N_FFT)
        window = network.window.double()
        kernel = torch.cat([angles.cos() * window, -angles.sin() * window])[:, None]
        self.kernel = nn.Buffer(kernel.float())

    def forward(self, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, samples) -> embeddings (B, 384), frames (B, T, 384)."""
        padded = F.pad(audio[:, None], (N_FFT // 2, N_FFT // 2), mode="reflect")
        real, imaginary = F.conv1d(padded, self.kernel, stride=HOP_LENGTH).chunk(2, dim=1)
        power = (real * real + imaginary * imaginary).clamp(min=MIN_MAGNITUDE**2)
        spectrogram = power.sqrt().transpose(1, 2) * self.network.bn0_scale + self.network.bn0_shift
        first = self.network.first_block
        x = spectrogram[:, None]
        channels = (1, -1, 1, 1)
        for block in self.network.blocks[:-1]:  # without the bottleneck
            pooled = x if block.pooling == (1, 1) else F.avg_pool2d(x, block.pooling)
            if block is first:
                pooled = pooled * first.pre_weight.view(channels) + first.pre_bias.view(channels)
            scale, shift = block.scale.view(channels), block.shift.view(channels)
            hidden = F.leaky_relu(block.conv1(F.leaky_relu(x * scale + shift, LEAKY_SLOPE)), LEAKY_SLOPE)
            x = block.conv2(hidden) + block.shortcut(pooled)
        frames = x.mean(dim=3).transpose(1, 2)
        return frames.mean(dim=1), frames
