"""What the adapters share: the encoder that the environment names, and the check of a batch of sounds.

A suite makes its encoders without arguments, so the environment may say which weights to take:

    AUDIOSEP_CHECKPOINT   a weights file, an exported folder, or random:SEED for trials (default: the project's usual file)
    AUDIOSEP_CONDITION    none, zero, or a .npy or .pt file (default: none)
"""

from __future__ import annotations

import os
import warnings

import torch

from common.encoder import AudioSepEncoder, CheckpointError, load_encoder


def load_audiosep(checkpoint: str = "", device: str | torch.device = "cpu") -> AudioSepEncoder:
    """The encoder with the weights that are given, or else those that the environment names.

    Raises:
        CheckpointError: the weights are missing or cannot be used.
    """
    wanted = checkpoint or os.environ.get("AUDIOSEP_CHECKPOINT") or None
    try:
        return load_encoder(wanted, device, condition=os.environ.get("AUDIOSEP_CONDITION") or None)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. In a suite: set AUDIOSEP_CHECKPOINT to the file, or to random:0 for a trial with random weights"
        ) from error


def clips_of(audio: torch.Tensor, encoder: AudioSepEncoder) -> list[torch.Tensor]:
    """(n_sounds, n_samples) -> its rows. Sounds shorter than the encoder's minimum are padded by it, with a warning.

    Raises:
        ValueError: not a floating-point tensor of mono sounds of at least one sample.
    """
    if not torch.is_tensor(audio) or audio.ndim != 2:
        shape = tuple(audio.shape) if torch.is_tensor(audio) else type(audio).__name__
        raise ValueError(f"audio is {shape}; give a tensor (n_sounds, n_samples), mono (average the channels first)")
    if not audio.is_floating_point():
        raise ValueError(f"audio has type {audio.dtype}; give float32 in [-1, 1] (16-bit integers: divide by 32768)")
    if not audio.shape[1]:
        raise ValueError("audio has no samples; give at least one")
    min_samples = encoder.info.min_samples
    if len(audio) and audio.shape[1] < min_samples:
        warnings.warn(
            f"sounds of {audio.shape[1]} samples are padded with zeros to the encoder's minimum of {min_samples} "
            f"({min_samples / encoder.sample_rate:.2f} s)",
            stacklevel=3,
        )
    return list(audio)
