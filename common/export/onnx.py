"""The encoder as one ONNX graph, for clips of any length; needs onnx and onnxscript (requirements-encoders.txt)."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.encoder.audiosep import MIN_SAMPLES, build_encoder
from common.encoder.network import HOP_LENGTH, LEAKY_SLOPE, MIN_MAGNITUDE, N_FFT, SAMPLE_RATE, ResUNet30Encoder
from common.encoder.protocol import EncoderInfo
from common.export.hugging_face import ExportError

NEEDED = ("onnx", "onnxscript")
OPSET = 20


def export_onnx(
    path: Path, checkpoint: str | None = None, condition: str | None = None, overwrite: bool = False
) -> list[Path]:
    """Write the encoder as an ONNX file.

    Input ``audio`` (clips, samples): clips of one length, at least MIN_SAMPLES, mono at 32 kHz. Outputs ``embedding``
    (clips, 384) and ``frames`` (clips, columns of 0.32 s, 384).

    Args:
        checkpoint, condition: as `load_encoder`.

    Returns:
        The file.

    Raises:
        ExportError: packages are missing, or the file exists.
        CheckpointError, ConditionError: as `load_encoder`.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"{' and '.join(missing)} is not installed: pip install -r requirements-encoders.txt")
    if path.exists() and (path.is_dir() or not overwrite):
        raise ExportError(f"{path} already exists; give another file, or --overwrite")
    encoder = build_encoder(checkpoint, "fp32", condition, "none")
    graph = Graph(encoder.network).eval()
    sizes = {0: torch.export.Dim("clips"), 1: torch.export.Dim("samples", min=MIN_SAMPLES)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        whole = Path(folder) / path.name
        # torch tells every step on stdout, and warns of packages that it does not use.
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                graph,
                (torch.zeros(2, 40_000),),
                whole,
                input_names=["audio"],
                output_names=["embedding", "frames"],
                dynamic_shapes=(sizes,),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        _describe(whole, encoder.info)
        whole.replace(path)
    return [path]


def _describe(path: Path, info: EncoderInfo) -> None:
    """Write into the file what it is."""
    onnx: Any = importlib.import_module("onnx")
    model = onnx.load(path)
    model.doc_string = "AudioSep's separation encoder: mono sound at 32 kHz -> embeddings of 384 numbers"
    onnx.helper.set_model_props(
        model,
        {
            "checkpoint": info.checkpoint,
            "release": info.release,
            "condition": info.condition,
            "sample_rate": str(SAMPLE_RATE),
            "min_samples": str(MIN_SAMPLES),
        },
    )
    onnx.save(model, path)


class Graph(nn.Module):
    """The folded network by plain operations, with the STFT as a convolution, which any runtime has.

    Args:
        network: of `build_encoder`.
    """

    def __init__(self, network: ResUNet30Encoder) -> None:
        super().__init__()
        self.network = network
        bins, samples = torch.arange(N_FFT // 2)[:, None], torch.arange(N_FFT)
        # Whole numbers first: an angle of millions would lose its digits.
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
        for block in self.network.blocks[:-1]:  # up to encoder_block6; the last one is the bottleneck
            pooled = x if block.pooling == (1, 1) else F.avg_pool2d(x, block.pooling)
            if block is first:
                pooled = pooled * first.pre_weight.view(channels) + first.pre_bias.view(channels)
            scale, shift = block.scale.view(channels), block.shift.view(channels)
            hidden = F.leaky_relu(block.conv1(F.leaky_relu(x * scale + shift, LEAKY_SLOPE)), LEAKY_SLOPE)
            x = block.conv2(hidden) + (pooled if block.shortcut is None else block.shortcut(pooled))
        frames = x.mean(dim=3).transpose(1, 2)
        return frames.mean(dim=1), frames
