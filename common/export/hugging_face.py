"""A folder that transformers loads: weights of the encoder alone, configuration, code, feature extractor, model card."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save

from common.encoder.audiosep import PADDINGS
from common.encoder.checkpoint import EXPORTED, KNOWN_RELEASES, Weights, load_weights
from common.encoder.condition import read_condition
from common.encoder.network import SAMPLE_RATE, weight_shapes
from common.errors import UserError
from common.files import write_atomically

HERE = Path(__file__).resolve().parent
CODE = HERE / "modeling_audiosep.py"
CARD = HERE / "model_card.md"


class ExportError(UserError):
    """The folder cannot be written."""


def export_hugging_face(
    folder: Path,
    checkpoint: str | None = None,
    condition: str | None = None,
    padding: str = "none",
    overwrite: bool = False,
) -> list[Path]:
    """Write the encoder as a model of transformers.

    The weights keep their official names, so `load_encoder` takes the folder as a checkpoint too.

    Args:
        folder: is created; it must be empty unless `overwrite` is set.
        checkpoint, condition, padding: as `load_encoder`.

    Returns:
        The files.

    Raises:
        ExportError: the folder is not empty, or the padding is unknown.
        CheckpointError, ConditionError: as `load_encoder`.
    """
    if padding not in PADDINGS:
        raise ExportError(f"padding {padding!r} is unknown; choose one of {', '.join(PADDINGS)}")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not overwrite)):
        raise ExportError(f"{folder} is not an empty folder; give another, or --overwrite")
    weights = load_weights(checkpoint, weight_shapes())
    embedding, identity = read_condition(condition)
    tensors = save(_tensors(weights), metadata={"format": "pt"})
    contents = {
        "config.json": _json(_config(embedding, padding) | {"weights_sha256": hashlib.sha256(tensors).hexdigest()}),
        "preprocessor_config.json": _json(_preprocessor()),
        "modeling_audiosep.py": CODE.read_bytes(),
        "README.md": _card(weights, identity, padding).encode(),
        # Last: a folder with weights is complete.
        EXPORTED: tensors,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def _tensors(weights: Weights) -> dict[str, torch.Tensor]:
    """The weights, and the counters that torch's batch norms have."""
    norms = [name.rpartition(".")[0] for name in weights.tensors if name.endswith(".running_var")]
    counters = {f"{name}.num_batches_tracked": torch.tensor(0) for name in norms}
    return {name: tensor.contiguous() for name, tensor in weights.tensors.items()} | counters


def _config(condition: torch.Tensor | None, padding: str) -> dict[str, object]:
    code = CODE.stem
    return {
        "architectures": ["AudioSepEncoderModel"],
        "auto_map": {
            "AutoConfig": f"{code}.AudioSepEncoderConfig",
            "AutoFeatureExtractor": f"{code}.AudioSepFeatureExtractor",
            "AutoModel": f"{code}.AudioSepEncoderModel",
        },
        "model_type": "audiosep_encoder",
        "dtype": "float32",
        "hidden_size": 384,
        "sampling_rate": SAMPLE_RATE,
        "condition": None if condition is None else condition.tolist(),
        "pads_time": padding == "official",
    }


def _preprocessor() -> dict[str, object]:
    return {
        "feature_extractor_type": "AudioSepFeatureExtractor",
        "auto_map": {"AutoFeatureExtractor": f"{CODE.stem}.AudioSepFeatureExtractor"},
        "feature_size": 1,
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": SAMPLE_RATE,
    }


def _card(weights: Weights, condition: str, padding: str) -> str:
    """The model card: what this is, where it comes from, how to use it."""
    is_known = weights.release in KNOWN_RELEASES.values()
    origin = f"From a checkpoint that is not one of the published releases ({weights.identity})."
    if is_known:
        origin = f"From the published release {weights.release} ({weights.identity})."
    if weights.is_untrained:
        origin = f"**Random weights ({weights.identity}): for trials only. Nothing here says anything about AudioSep.**"
    parameters = sum(math.prod(tensor.shape) for name, tensor in weights.tensors.items() if ".running_" not in name)
    is_padded = padding == "official"
    rest = "What is left at the end of a clip belongs to no column; a clip shorter than 0.31 s is padded with zeros to that."
    if is_padded:
        rest = "The end of a clip is padded with zeros to a whole column, after bn0, as AudioSep's own forward does."
    betas = ""
    if condition == "none":
        betas = (
            "\nWithout a condition every FiLM beta is 0. That is a state that AudioSep itself never runs in; the nearest that it does\n"
            "is an all-zero condition (`condition` of 512 zeros in `config.json`).\n"
        )
    names = "by their official names without prefix: the encoder, the bottleneck and FiLM."
    tensors = f"These are the tensors of the checkpoint named above, in float32, {names}"
    if weights.is_untrained:
        tensors = f"These are random numbers in the shapes of AudioSep's tensors, {names}"
    text = CARD.read_text(encoding="utf-8")
    for name, value in {
        "ORIGIN": origin,
        "PARAMETERS": f"{parameters / 1e6:.1f} million",
        "CONDITION": condition,
        "PADDING": padding,
        "LICENCE": "license: mit\n" if is_known else "",
        "REST": rest,
        "BETAS": betas,
        "TENSORS": tensors,
    }.items():
        text = text.replace(f"<{name}>", value)
    return text


def _json(content: dict[str, object]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
