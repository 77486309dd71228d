"""AudioSep as a module of HEAR 2021 (https://hearbenchmark.com/hear-api.html): ``adapters.hear_audiosep``.

A scene embedding is the usual one: 384 numbers, the mean over time and frequency of the last encoder block. A timestamp
embedding is the mean over frequency of one of its columns, 0.32 s of sound; their mean is the scene embedding.
"""

from __future__ import annotations

import torch

from adapters.shared import clips_of, load_audiosep
from common.encoder import AudioSepEncoder


class AudioSepModel(torch.nn.Module):
    """The encoder with HEAR's attributes."""

    def __init__(self, encoder: AudioSepEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.sample_rate: int = encoder.sample_rate
        self.scene_embedding_size = self.timestamp_embedding_size = encoder.embedding_size
        self.min_samples = encoder.info.min_samples


def load_model(model_file_path: str = "") -> AudioSepModel:
    """The model; weights are a file, random:SEED, or as `adapters.shared` says."""
    return AudioSepModel(load_audiosep(model_file_path))


def get_scene_embeddings(audio: torch.Tensor, model: AudioSepModel) -> torch.Tensor:
    """(n_sounds, n_samples) at 32 kHz -> (n_sounds, 384); ValueError for anything else than mono floating-point sounds."""
    clips = clips_of(audio, model.encoder)
    return model.encoder.embed(clips).to(audio.device)


def get_timestamp_embeddings(audio: torch.Tensor, model: AudioSepModel) -> tuple[torch.Tensor, torch.Tensor]:
    """(n_sounds, n_samples) at 32 kHz -> embeddings (n_sounds, T, 384) and their centres (n_sounds, T) in milliseconds."""
    clips = clips_of(audio, model.encoder)
    frames = (
        torch.stack(model.encoder.embed_frames(clips)) if clips else torch.empty(0, 1, model.timestamp_embedding_size)
    )
    # Of a sound shorter than half a column, the centre would lie in the padding.
    centres = model.encoder.frame_times(frames.shape[1]).clamp(max=audio.shape[1] / model.sample_rate)
    times = (1000 * centres).expand(len(frames), -1)
    return frames.to(audio.device), times.to(audio.device)
