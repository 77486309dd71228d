"""AudioSep as a module of HEAR 2021 (https://hearbenchmark.com/hear-api.html), which the adapters to other suites use too.

A scene embedding is `encoder.embed`: 384 numbers, the mean over time and frequency of the last encoder block. A timestamp
embedding is the mean over frequency of a frame of that block, 0.32 s; their mean is the scene embedding.

Suites build encoders without arguments, so environment variables name the weights:

AUDIOSEP_CHECKPOINT   a weights file, an exported folder, or random:SEED for trials (default: the project's checkpoint)
AUDIOSEP_CONDITION    none, zero, or a .npy or .pt file (default: none)
"""

from __future__ import annotations

import os
import warnings

import torch

from common.encoder import AudioSepEncoder, CheckpointError, load_encoder


class AudioSepModel(torch.nn.Module):
    """The encoder with HEAR's attributes."""

    def __init__(self, encoder: AudioSepEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.sample_rate: int = encoder.sample_rate
        self.scene_embedding_size = self.timestamp_embedding_size = encoder.embedding_size
        self.min_samples = encoder.info.min_samples


def load_model(model_file_path: str = "", device: str | torch.device = "cpu") -> AudioSepModel:
    """Build the model from a weights file, an exported folder, random:SEED, or without a path, as the environment says;
    CheckpointError without weights."""
    checkpoint = model_file_path or os.environ.get("AUDIOSEP_CHECKPOINT") or None
    try:
        encoder = load_encoder(checkpoint, device, condition=os.environ.get("AUDIOSEP_CONDITION") or None)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. In a suite: set AUDIOSEP_CHECKPOINT to the file, or to random:0 for a trial with random weights"
        ) from error
    return AudioSepModel(encoder)


def get_scene_embeddings(audio: torch.Tensor, model: AudioSepModel) -> torch.Tensor:
    """(n_sounds, n_samples) mono at 32 kHz -> (n_sounds, 384), on the device of `audio`. Sounds below the encoder's minimum
    length are padded with zeros, with a warning; ValueError for integers, NaN, infinity or no samples."""
    return model.encoder.embed(_clips_of(audio, model)).to(audio.device)


def get_timestamp_embeddings(audio: torch.Tensor, model: AudioSepModel) -> tuple[torch.Tensor, torch.Tensor]:
    """As `get_scene_embeddings`: embeddings (n_sounds, T, 384) and their centres (n_sounds, T) in ms."""
    clips = model.encoder.embed_frames(_clips_of(audio, model))
    frames = torch.stack(clips) if clips else torch.empty(0, 1, model.timestamp_embedding_size)
    # The centre of a frame of a shorter sound would lie in the padding.
    centres_s = model.encoder.frame_times(frames.shape[1]).clamp(max=audio.shape[1] / model.sample_rate)
    return frames.to(audio.device), (1000 * centres_s).expand(len(frames), -1).to(audio.device)


def _clips_of(audio: torch.Tensor, model: AudioSepModel) -> list[torch.Tensor]:
    """The rows of a batch, whose values the encoder checks."""
    if not torch.is_tensor(audio) or audio.ndim != 2:
        shape = tuple(audio.shape) if torch.is_tensor(audio) else type(audio).__name__
        raise ValueError(f"audio is {shape}; give a tensor (n_sounds, n_samples), mono (average the channels first)")
    if 0 < audio.shape[1] < model.min_samples:
        warnings.warn(
            f"sounds of {audio.shape[1]} samples are padded with zeros to the encoder's minimum of {model.min_samples} "
            f"({model.min_samples / model.sample_rate:.2f} s)",
            stacklevel=3,
        )
    return list(audio)
