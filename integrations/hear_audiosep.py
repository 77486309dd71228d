"""AudioSep as a module of HEAR 2021 (https://hearbenchmark.com/hear-api.html): ``integrations.hear_audiosep``.

A scene embedding is `encoder.embed`: 384 numbers, the mean over time and frequency of the last encoder block. A timestamp
embedding is the mean over frequency of a frame of that block, 0.32 s; their mean is the scene embedding.
"""

from __future__ import annotations

import torch

from common.encoder import AudioSepEncoder
from integrations.audiosep import embed_batch, embed_batch_frames, load_audiosep


class AudioSepModel(torch.nn.Module):
    """The encoder with HEAR's attributes."""

    def __init__(self, encoder: AudioSepEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.sample_rate: int = encoder.sample_rate
        self.scene_embedding_size = self.timestamp_embedding_size = encoder.embedding_size
        self.min_samples = encoder.info.min_samples


def load_model(model_file_path: str = "") -> AudioSepModel:
    """Build the model from a weights file, random:SEED, or without a path, as the environment says."""
    return AudioSepModel(load_audiosep(model_file_path))


def get_scene_embeddings(audio: torch.Tensor, model: AudioSepModel) -> torch.Tensor:
    """(n_sounds, n_samples) at 32 kHz -> (n_sounds, 384)."""
    return embed_batch(audio, model.encoder)


def get_timestamp_embeddings(audio: torch.Tensor, model: AudioSepModel) -> tuple[torch.Tensor, torch.Tensor]:
    """(n_sounds, n_samples) at 32 kHz -> embeddings (n_sounds, T, 384) and their centres (n_sounds, T) in ms."""
    frames = embed_batch_frames(audio, model.encoder)
    # The centre of a frame of a shorter sound would lie in the padding.
    centres_s = model.encoder.frame_times(frames.shape[1]).clamp(max=audio.shape[1] / model.sample_rate)
    return frames, (1000 * centres_s).expand(len(frames), -1).to(audio.device)
