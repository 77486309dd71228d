"""AudioSep in EVAR (https://github.com/nttcslab/eval-audio-repr).

Copy this file into EVAR's folder ``evar/`` and ``audiosep.yaml`` into ``config/``, and add ``import evar.ar_audiosep`` to the
imports of ``lineareval.py``. This project must be installed in the same environment (``pip install -e FOLDER``).
"""

import torch
from evar.ar_base import BaseAudioRepr

from integrations.hear_audiosep import get_scene_embeddings, get_timestamp_embeddings, load_model


class AR_AudioSep(BaseAudioRepr):  # type: ignore[misc]  # EVAR is not a package
    """The encoder with EVAR's methods; `weight_file` or the environment names the weights (`integrations.hear_audiosep`)."""

    def __init__(self, cfg) -> None:  # type: ignore[no-untyped-def]
        super().__init__(cfg=cfg)
        self.model = load_model(self.cfg.weight_file or "")

    def encode_frames(self, batch_audio: torch.Tensor) -> torch.Tensor:
        """(B, samples) at 32 kHz -> (B, 384, frames of 0.32 s)."""
        return get_timestamp_embeddings(batch_audio, self.model)[0].transpose(1, 2)

    def forward(self, batch_audio: torch.Tensor) -> torch.Tensor:
        """(B, samples) at 32 kHz -> (B, 384)."""
        return get_scene_embeddings(batch_audio, self.model)
