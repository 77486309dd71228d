"""A folder for transformers: the encoder's weights, configuration, code, feature extractor, model card."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from jinja2 import Template
from safetensors.torch import save

from common.encoder.checkpoint import EXPORTED, KNOWN_RELEASES, load_weights, read_condition
from common.encoder.network import SAMPLE_RATE, weight_shapes
from common.files import write_atomically
from integrations.export import ExportError

CODE = Path(__file__).with_name("modeling_audiosep.py")
CARD = Path(__file__).with_name("model_card.md")
EXTRACTOR = f"{CODE.stem}.AudioSepFeatureExtractor"
CONFIG = {
    "architectures": ["AudioSepEncoderModel"],
    "auto_map": {
        "AutoConfig": f"{CODE.stem}.AudioSepEncoderConfig",
        "AutoFeatureExtractor": EXTRACTOR,
        "AutoModel": f"{CODE.stem}.AudioSepEncoderModel",
    },
    "model_type": "audiosep_encoder",
    "dtype": "float32",
    "hidden_size": 384,
    "sampling_rate": SAMPLE_RATE,
}
PREPROCESSOR = {
    "feature_extractor_type": EXTRACTOR.partition(".")[2],
    "auto_map": {"AutoFeatureExtractor": EXTRACTOR},
    "feature_size": 1,
    "padding_value": 0.0,
    "sampling_rate": SAMPLE_RATE,
}


def export_hugging_face(
    folder: Path,
    checkpoint: str | None = None,
    condition: str | None = None,
    padding: str = "none",
    overwrite: bool = False,
) -> list[Path]:
    """Write the encoder as a transformers model; returns the files. Arguments and errors as for `load_encoder`, which also takes
    the folder as a checkpoint; ExportError if the folder is not empty."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not overwrite)):
        raise ExportError(f"{folder} is not an empty folder; give another, or --overwrite")
    weights = load_weights(checkpoint, weight_shapes())
    embedding, condition_name = read_condition(condition)
    # torch's batch norms expect counters.
    norms = [name.removesuffix("running_var") for name in weights.tensors if name.endswith("running_var")]
    counters = {f"{name}num_batches_tracked": torch.tensor(0) for name in norms}
    contiguous = {name: tensor.contiguous() for name, tensor in weights.tensors.items()}
    tensors = save(contiguous | counters, metadata={"format": "pt"})
    settings = {
        "condition": None if embedding is None else embedding.tolist(),
        "pads_time": padding == "official",
        "weights_sha256": hashlib.sha256(tensors).hexdigest(),
    }
    facts = {
        "is_release": weights.release in KNOWN_RELEASES.values(),
        "parameters": sum(tensor.numel() for name, tensor in weights.tensors.items() if ".running_" not in name),
    }
    card = Template(CARD.read_text(encoding="utf-8"), trim_blocks=True, keep_trailing_newline=True)
    contents = {
        "config.json": (json.dumps(CONFIG | settings, indent=2) + "\n").encode(),
        "preprocessor_config.json": (json.dumps(PREPROCESSOR, indent=2) + "\n").encode(),
        CODE.name: CODE.read_bytes(),
        "README.md": card.render(weights=weights, condition=condition_name, padding=padding, **facts).encode(),
        EXPORTED: tensors,  # last: a folder with weights is complete
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]
