"""AudioSep as an encoder of X-ARES (https://github.com/jimbozhang/xares): 384 numbers every 0.32 s."""

from __future__ import annotations

import torch

from integrations.hear_audiosep import get_timestamp_embeddings, load_model


class AudioSepXaresEncoder(torch.nn.Module):
    """The encoder with X-ARES' attributes; the environment names the weights (`integrations.hear_audiosep`)."""

    def __init__(self) -> None:
        super().__init__()
        self.model = load_model()
        self.sampling_rate = self.model.sample_rate
        self.output_dim = self.model.timestamp_embedding_size
        self.hop_size_in_ms = 320

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """(B, samples) at 32 kHz -> (B, frames, 384); what X-ARES has padded in a batch counts as silence."""
        return get_timestamp_embeddings(audio, self.model)[0]
