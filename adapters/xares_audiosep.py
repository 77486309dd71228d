"""AudioSep as an encoder of X-ARES (https://github.com/jimbozhang/xares): 384 numbers every 0.32 s.

X-ARES makes the class without arguments: `adapters.shared` says where the weights come from.
"""

from __future__ import annotations

import torch

from adapters.shared import clips_of, load_audiosep


class AudioSepXaresEncoder(torch.nn.Module):
    """The encoder with X-ARES' attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = load_audiosep()
        self.sampling_rate = self.encoder.sample_rate
        self.output_dim = self.encoder.embedding_size
        self.hop_size_in_ms = 320

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """(B, samples) at 32 kHz -> (B, frames, 384); ValueError for anything else than mono floating-point sounds.

        X-ARES pads the sounds of a batch to one length, so what is padded counts as silence, as with every encoder there.
        """
        clips = clips_of(audio, self.encoder)
        return torch.stack(self.encoder.embed_frames(clips)).to(audio.device)
