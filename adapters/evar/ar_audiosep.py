"""AudioSep in EVAR (https://github.com/nttcslab/eval-audio-repr).

Copy this file into its folder ``evar/`` and ``audiosep.yaml`` into ``config/``, and add ``import evar.ar_audiosep`` to the imports of
its ``lineareval.py``. This project must be installed in the same environment (``pip install -e FOLDER``).
"""

import torch
from evar.ar_base import BaseAudioRepr

from adapters.shared import clips_of, load_audiosep


class AR_AudioSep(BaseAudioRepr):  # type: ignore[misc]  # EVAR is no package
    """The encoder with EVAR's methods; the weights are `weight_file`, or as `adapters.shared` says."""

    def __init__(self, cfg) -> None:  # type: ignore[no-untyped-def]
        super().__init__(cfg=cfg)
        self.encoder = load_audiosep(self.cfg.weight_file or "")

    def encode_frames(self, batch_audio: torch.Tensor) -> torch.Tensor:
        """(B, samples) at 32 kHz -> (B, 384, frames of 0.32 s)."""
        clips = clips_of(batch_audio, self.encoder)
        return torch.stack(self.encoder.embed_frames(clips)).transpose(1, 2).to(batch_audio.device)

    def forward(self, batch_audio: torch.Tensor) -> torch.Tensor:
        """(B, samples) at 32 kHz -> (B, 384)."""
        clips = clips_of(batch_audio, self.encoder)
        return self.encoder.embed(clips).to(batch_audio.device)
