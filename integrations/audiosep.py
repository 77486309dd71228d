"""AudioSep for suites, which build encoders without arguments: environment variables name the weights.

AUDIOSEP_CHECKPOINT   a weights file, an exported folder, or random:SEED for trials (default: the project's checkpoint)
AUDIOSEP_CONDITION    none, zero, or a .npy or .pt file (default: none)
"""

from __future__ import annotations

import os
import warnings

import torch

from common.encoder import AudioSepEncoder, CheckpointError, load_encoder


def load_audiosep(checkpoint: str = "", device: str | torch.device = "cpu") -> AudioSepEncoder:
    """Build the encoder from `checkpoint`, or if empty, as the environment says; CheckpointError without weights."""
    checkpoint = checkpoint or os.environ.get("AUDIOSEP_CHECKPOINT", "")
    try:
        return load_encoder(checkpoint or None, device, condition=os.environ.get("AUDIOSEP_CONDITION") or None)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. In a suite: set AUDIOSEP_CHECKPOINT to the file, or to random:0 for a trial with random weights"
        ) from error


def embed_batch(audio: torch.Tensor, encoder: AudioSepEncoder) -> torch.Tensor:
    """(n_sounds, n_samples) mono at 32 kHz -> embeddings (n_sounds, 384), on the device of `audio`. Sounds below the encoder's
    minimum length are padded with zeros, with a warning; ValueError for integers, NaN, infinity or no samples."""
    return encoder.embed(_clips_of(audio, encoder)).to(audio.device)


def embed_batch_frames(audio: torch.Tensor, encoder: AudioSepEncoder) -> torch.Tensor:
    """As `embed_batch`, one embedding every 0.32 s: (n_sounds, frames, 384)."""
    frames = encoder.embed_frames(_clips_of(audio, encoder))
    stacked = torch.stack(frames) if frames else torch.empty(0, 1, encoder.embedding_size)
    return stacked.to(audio.device)


def _clips_of(audio: torch.Tensor, encoder: AudioSepEncoder) -> list[torch.Tensor]:
    """The rows of a batch, whose values the encoder checks."""
    if not torch.is_tensor(audio) or audio.ndim != 2:
        shape = tuple(audio.shape) if torch.is_tensor(audio) else type(audio).__name__
        raise ValueError(f"audio is {shape}; give a tensor (n_sounds, n_samples), mono (average the channels first)")
    min_samples = encoder.info.min_samples
    if 0 < audio.shape[1] < min_samples:
        warnings.warn(
            f"sounds of {audio.shape[1]} samples are padded with zeros to the encoder's minimum of {min_samples} "
            f"({min_samples / encoder.sample_rate:.2f} s)",
            stacklevel=4,
        )
    return list(audio)
