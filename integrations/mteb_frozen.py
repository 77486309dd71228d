"""Any encoder of this project in MTEB (https://github.com/embeddings-benchmark/mteb): ``mteb.evaluate(entry("audiosep"), tasks)``."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.modality_collators import AudioCollator
from mteb.models.model_implementations import MODEL_REGISTRY

from common.arrays import Array
from common.encoder import Encoder, new_encoder, resolve_device
from common.encoder.checkpoint import KNOWN_RELEASES
from common.encoder_name import EncoderKind, EncoderName
from common.progress import progress_bar
from integrations.hear_audiosep import load_model

ORGANISATION = "frozen-encoders"
AUDIOSEP = {
    "name": "Audio-AGI/AudioSep",
    "license": "mit",
    "release_date": "2023-08-09",
    "reference": "https://github.com/Audio-AGI/AudioSep",
    "public_training_code": "https://github.com/Audio-AGI/AudioSep",
}


class FrozenEncoder(AbsEncoder):  # type: ignore[misc]  # mteb is optional
    """An `Encoder` with MTEB's interface: an embedding per clip, computed at its length, without padding."""

    def __init__(self, encoder: Encoder, meta: ModelMeta) -> None:
        self.model, self.mteb_model_meta = encoder, meta

    def encode(self, inputs: Any, **_: object) -> Array:
        """A loader of batches ``{"audio": [{"array", "sampling_rate"}, ...]}`` -> (clips, width)."""
        inputs.collate_fn = AudioCollator(target_sampling_rate=self.model.sample_rate)
        output = self.model.default_output
        rows = []
        for batch in progress_bar(iterable=inputs, desc="embedding", unit="batch", leave=False):
            waveforms = [np.asarray(clip["array"]).reshape(-1) for clip in batch["audio"]]  # mono after the collator
            rows.append(self.model.embed_outputs(waveforms, [output])[output])
        return torch.cat(rows).numpy()


def entry(
    name: str = "audiosep", checkpoint: str = "", device: str = "auto", trust_remote_code: bool = False
) -> FrozenEncoder:
    """Build an encoder for `mteb.evaluate` and `mteb.mock_run`, and register it with MTEB under its name: that of ``--encoder``.
    `checkpoint`: AudioSep's weights (`integrations.hear_audiosep`). A UserError if the encoder cannot be built."""
    parsed, resolved = EncoderName.parse(name), resolve_device(device)
    if parsed.kind is EncoderKind.AUDIOSEP:
        encoder: Encoder = load_model(checkpoint, resolved).encoder
    else:
        encoder = new_encoder(parsed, "", resolved, trust_remote_code=trust_remote_code)
    meta = describe(encoder, parsed)
    MODEL_REGISTRY[meta.name] = meta
    return FrozenEncoder(encoder, meta)


def describe(encoder: Encoder, name: EncoderName) -> ModelMeta:
    """What MTEB records about an encoder."""
    info = encoder.info
    origin = dict.fromkeys(("license", "release_date", "public_training_code")) | {
        "name": f"{ORGANISATION}/{name.slug}"
    }
    # MTEB keeps results by name and revision: whatever changes an embedding must change the revision.
    identity = (info.checkpoint, info.condition, info.padding, info.precision, info.code, encoder.default_output.name)
    return ModelMeta(
        **(AUDIOSEP if info.release in KNOWN_RELEASES.values() else origin),
        loader=lambda *_, **__: FrozenEncoder(encoder, describe(encoder, name)),
        revision=hashlib.sha256("\n".join(identity).encode()).hexdigest()[:40],
        languages=["eng-Latn"],
        open_weights=True,
        n_parameters=info.parameters,
        memory_usage_mb=None if info.parameters is None else round(info.parameters * 4 / 1024**2),
        max_tokens=float("inf"),
        embed_dim=encoder.default_output.width,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name="cosine",
        use_instructions=False,
        training_datasets=None,  # MTEB has no names for them
        modalities=["audio"],
    )
