"""The original project's way of extraction, as a baseline: plain float32 modules in PyTorch's default layout, nothing
folded, one clip at a time, decoded by a DataLoader without workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from common.datasets.audio import read_audio
from common.encoder.checkpoint import load_weights
from common.encoder.network import BLOCKS, HOP_LENGTH, N_BINS, N_FFT, PRE_CONV_CHANNELS, SAMPLE_RATE, weight_shapes


class PlainBlock(nn.Module):
    """``ConvBlockRes`` of the official code."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels_in), nn.BatchNorm2d(channels_out)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        origin = x
        x = self.conv1(F.leaky_relu_(self.bn1(x), negative_slope=0.01))
        x = self.conv2(F.leaky_relu_(self.bn2(x), negative_slope=0.01))
        return (origin if self.shortcut is None else self.shortcut(origin)) + x


class PlainEncoder(nn.Module):
    """STFT, bn0, pre_conv and six blocks, each followed by its pooling; then the mean."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)
        self.bn0 = nn.BatchNorm2d(N_BINS)
        self.pre_conv = nn.Conv2d(1, PRE_CONV_CHANNELS, 1)
        used = BLOCKS[:-1]
        for name, _, channels_in, channels_out, _ in used:
            self.add_module(name, PlainBlock(channels_in, channels_out))
        tensors = load_weights(checkpoint, weight_shapes()).tensors
        names = {key.replace(".conv_block1", "").removeprefix("base."): value for key, value in tensors.items()}
        own = self.state_dict()
        missing = [key for key in own if key not in names and not key.endswith("num_batches_tracked")]
        if missing:
            raise ValueError(f"the weights lack {missing}")
        self.load_state_dict({key: names.get(key, value) for key, value in own.items()})
        self.poolings = [pooling for *_, pooling in used]
        self.eval().requires_grad_(False)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """(1, samples) -> (1, 384)."""
        spectrum = torch.stft(waveform, N_FFT, HOP_LENGTH, window=self.window, return_complex=True)
        magnitude = torch.sqrt((spectrum.real**2 + spectrum.imag**2).clamp(min=1e-10))  # (1, 1025, frames)
        x = self.bn0(magnitude[..., None]).permute(0, 3, 2, 1)[..., :-1]  # (1, 1, frames, 1024)
        x = self.pre_conv(x)
        for (name, *_), pooling in zip(BLOCKS[:-1], self.poolings, strict=True):
            x = F.avg_pool2d(self.get_submodule(name)(x), pooling)
        return x.mean(dim=(2, 3))


class Files(Dataset):
    """Audio files as waveforms at the encoder's rate."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return read_audio(self.paths[index], SAMPLE_RATE)


def extract_originally(encoder: PlainEncoder, paths: Sequence[Path], device: torch.device) -> torch.Tensor:
    """(N, 384) embeddings, one clip at a time."""
    rows = [encoder(waveform.to(device)).cpu() for waveform in DataLoader(Files(paths), batch_size=1)]
    return torch.cat(rows)
