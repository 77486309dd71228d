"""Any encoder of this project in MTEB (https://github.com/embeddings-benchmark/mteb): AudioSep, log-mel, HEAR, transformers.

import mteb
from adapters.mteb_frozen import entry
mteb.evaluate(entry("audiosep"), mteb.get_tasks(["ESC50"]))
mteb.evaluate(entry("hear:examples/encoders/resemblyzer_dvector.py"), mteb.get_tasks(["ESC50"]))
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.modality_collators import AudioCollator
from mteb.models.model_implementations import MODEL_REGISTRY

from adapters.shared import load_audiosep
from common.arrays import Array
from common.encoder import Encoder, new_encoder, resolve_device
from common.encoder.checkpoint import KNOWN_RELEASES
from common.encoder_name import EncoderKind, EncoderName
from common.progress import progress_bar

ORGANISATION = "frozen-encoders"
AUDIOSEP = {
    "name": "Audio-AGI/AudioSep",
    "license": "mit",
    "release_date": "2023-08-09",
    "reference": "https://github.com/Audio-AGI/AudioSep",
    "public_training_code": "https://github.com/Audio-AGI/AudioSep",
    "citation": """@article{liu2023separate,
  title={Separate Anything You Describe},
  author={Liu, Xubo and Kong, Qiuqiang and Zhao, Yan and Liu, Haohe and Yuan, Yi and Liu, Yuzhuo and Xia, Rui and Wang, Yuxuan
          and Plumbley, Mark D. and Wang, Wenwu},
  journal={arXiv preprint arXiv:2308.05037},
  year={2023}
}""",
}


class FrozenEncoder(AbsEncoder):  # type: ignore[misc]  # mteb is optional
    """An `Encoder` as MTEB's: one embedding per sound, each of its own length, none padded to another's."""

    def __init__(self, encoder: Encoder, meta: ModelMeta) -> None:
        self.model, self.mteb_model_meta = encoder, meta

    def encode(self, inputs: Any, **_: object) -> Array:
        """A loader of batches ``{"audio": [{"array", "sampling_rate"}, ...]}`` -> (sounds, width).

        Raises:
            ValueError: a sound is empty or not floating-point.
        """
        inputs.collate_fn = AudioCollator(target_sampling_rate=self.model.sample_rate)
        output = self.model.default_output
        rows = []
        for batch in progress_bar(iterable=inputs, desc="embedding", unit="batch", leave=False):
            clips = [np.asarray(each["array"]).reshape(-1) for each in batch["audio"]]  # mono after the collator
            rows.append(self.model.embed_outputs(clips, [output])[output])
        return torch.cat(rows).numpy()


def entry(
    name: str = "audiosep", checkpoint: str = "", device: str = "auto", trust_remote_code: bool = False
) -> FrozenEncoder:
    """An encoder for `mteb.evaluate`, `mteb.mock_run` and MTEB's registry, where it is entered under its name.

    Args:
        name: as ``--encoder`` takes it.
        checkpoint: AudioSep's weights; see `adapters.shared`.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``...
        trust_remote_code: whether a model of ``hf:`` may run code that it brings.

    Raises:
        CheckpointError, PluginError, EncoderNameError: there is no such encoder.
    """
    parsed, place = EncoderName.parse(name), resolve_device(device)
    if parsed.kind is EncoderKind.AUDIOSEP:
        encoder: Encoder = load_audiosep(checkpoint, place)
    else:
        encoder = new_encoder(parsed, "", place, trust_remote_code=trust_remote_code)
    meta = describe(encoder, parsed)
    made = FrozenEncoder(encoder, meta)
    MODEL_REGISTRY[meta.name] = meta
    return made


def describe(encoder: Encoder, name: EncoderName) -> ModelMeta:
    """What MTEB records of an encoder."""
    info = encoder.info
    known: dict[str, Any] = {
        "name": f"{ORGANISATION}/{name.slug}",
        "license": None,
        "release_date": None,
        "public_training_code": None,
    }
    if info.release in KNOWN_RELEASES.values():
        known |= AUDIOSEP
    megabytes = None if info.parameters is None else round(info.parameters * 4 / 1024**2)
    # MTEB keeps results by name and revision, so whatever changes an embedding must change the revision.
    made_by = (info.checkpoint, info.condition, info.padding, info.precision, info.code, encoder.default_output.name)
    revision = hashlib.sha256("\n".join(made_by).encode()).hexdigest()[:40]
    return ModelMeta(
        **known,
        loader=lambda *_, device=None, **__: FrozenEncoder(encoder, describe(encoder, name)),
        revision=revision,
        languages=["eng-Latn"],
        open_weights=True,
        n_parameters=info.parameters,
        memory_usage_mb=megabytes,
        max_tokens=float("inf"),
        embed_dim=encoder.default_output.width,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name="cosine",
        use_instructions=False,
        training_datasets=None,  # unknown to MTEB's names
        modalities=["audio"],
    )
