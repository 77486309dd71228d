"""The original project's extraction, as a baseline: float32 layers in PyTorch's default layout, nothing folded, a clip at a
time, decoded by a DataLoader without workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from common.datasets.audio import read_audio
from common.encoder.checkpoint import load_weights
from common.encoder.network import BLOCKS, HOP_LENGTH, N_FFT, SAMPLE_RATE, weight_shapes


class PlainEncoder:
    """STFT, bn0, pre_conv, and the official code's six blocks with their pooling; then the mean."""

    def __init__(self, checkpoint: str, device: torch.device) -> None:
        self.tensors = {
            name: tensor.to(device) for name, tensor in load_weights(checkpoint, weight_shapes()).tensors.items()
        }
        self.window, self.device = torch.hann_window(N_FFT, device=device), device

    def embed(self, waveform: torch.Tensor) -> torch.Tensor:
        """(1, samples) -> (1, 384)."""
        spectrum = torch.stft(waveform.to(self.device), N_FFT, HOP_LENGTH, window=self.window, return_complex=True)
        magnitude = torch.sqrt((spectrum.real**2 + spectrum.imag**2).clamp(min=1e-10))  # (1, 1025, frames)
        x = self._norm(magnitude[..., None], "base.bn0").permute(0, 3, 2, 1)[..., :-1]  # (1, 1, frames, 1024)
        x = self._conv(x, "base.pre_conv")
        for _, name, _, _, pooling in BLOCKS[:-1]:
            x = F.avg_pool2d(self._block(x, f"base.{name}.conv_block1"), pooling)
        return x.mean(dim=(2, 3))

    def _block(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """``ConvBlockRes`` of the official code."""
        hidden = self._conv(F.leaky_relu_(self._norm(x, f"{name}.bn1"), 0.01), f"{name}.conv1", padding=1)
        hidden = self._conv(F.leaky_relu_(self._norm(hidden, f"{name}.bn2"), 0.01), f"{name}.conv2", padding=1)
        return (self._conv(x, f"{name}.shortcut") if f"{name}.shortcut.weight" in self.tensors else x) + hidden

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.tensors[f"{name}.{part}"] for part in names))

    def _conv(self, x: torch.Tensor, name: str, padding: int = 0) -> torch.Tensor:
        return F.conv2d(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"), padding=padding)


def extract_originally(encoder: PlainEncoder, paths: Sequence[Path]) -> torch.Tensor:
    """(N, 384) embeddings, a clip at a time."""
    loader = DataLoader(paths, collate_fn=lambda batch: torch.from_numpy(read_audio(batch[0], SAMPLE_RATE))[None])
    return torch.cat([encoder.embed(waveform).cpu() for waveform in loader])
