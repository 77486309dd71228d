"""A trained head, and the file it is kept in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common.arrays import Array
from common.encoder import Encoder, Output, Waveform, choose_outputs
from common.errors import UserError
from common.features import FeatureFileError, FeatureSet, Provenance, read_provenance
from common.files import load_torch, save_torch
from common.heads.novelty import KnownSounds
from common.heads.recipes import HEADS, HeadKind
from common.heads.scalers import Scaler

# What of the provenance must be the same where a head is used.
USED_BY_HEAD = ("encoder", "kind", "checkpoint", "code", "condition", "padding", "precision", "layer", "pool")


class HeadFileError(UserError):
    """A file does not hold a trained head."""


class OtherEncoderError(UserError):
    """A head is used with an encoder that it was not trained on."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What a head says of N clips.

    Attributes:
        probabilities: (N, C).
        distances: (N,), of each clip to the nearest one that the head has learned from; None if it does not know.
    """

    probabilities: torch.Tensor
    distances: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """A trained head with what it needs to be used: scaler, class names and the encoder it was trained on.

    Attributes:
        kind: a key of HEADS.
        module: on the CPU, in eval mode.
        scaler: applied to embeddings before the head.
        class_names: C names, in the order of the logits.
        encoder: provenance of the embeddings (checkpoint, layer, pool, condition...).
        temperature: the logits are divided by it before they become probabilities, so that these mean what they say.
        known: what it has learned from, by which unknown sounds are told; None in heads without held-out clips.
    """

    kind: HeadKind
    module: nn.Sequential
    scaler: Scaler
    class_names: list[str]
    encoder: Provenance
    temperature: float = 1.0
    known: KnownSounds | None = None

    def predict(self, encoder: Encoder, waveforms: Sequence[Waveform]) -> list[str]:
        """N waveforms at the encoder's sample rate -> N class names; errors as for `predict_proba`."""
        return [self.class_names[index] for index in self.predict_proba(encoder, waveforms).argmax(dim=1).tolist()]

    def predict_proba(self, encoder: Encoder, waveforms: Sequence[Waveform]) -> torch.Tensor:
        """N waveforms at the encoder's sample rate -> (N, C) probabilities.

        The head embeds them itself, with the layers and pools that it was trained on: embeddings say nothing of where they
        come from, and those of another encoder would be answered without a word.

        Raises:
            OtherEncoderError: the encoder is not the one that the head was trained on.
        """
        return self.answer(encoder, waveforms).probabilities

    def answer(self, encoder: Encoder, waveforms: Sequence[Waveform]) -> Answer:
        """Probabilities, and how far each clip is from all that the head has learned from; as `predict_proba`."""
        outputs = self.outputs_of(encoder)
        embedded = encoder.embed_outputs(waveforms, outputs)
        embeddings = torch.cat([embedded[output] for output in outputs], dim=1)
        distances = None
        if self.known is not None:
            distances = torch.from_numpy(self.known.distances(embeddings.numpy()))
        return Answer(self._probabilities(embeddings), distances)

    def predict_features(self, features: FeatureSet) -> torch.Tensor:
        """The rows of a feature file -> (N, C) probabilities.

        Raises:
            OtherEncoderError: another encoder made them, or the file lacks the head's layers and pools.
        """
        layer, pool = self.encoder.get("layer"), self.encoder.get("pool")
        picked = features.pick(layer, pool or None) if "outputs" in features.meta else features
        self._require(picked.meta, "the features")
        return self._probabilities(picked.features)

    def outputs_of(self, encoder: Encoder) -> tuple[Output, ...]:
        """The encoder's outputs that the head was trained on; OtherEncoderError if it is another encoder."""
        info = encoder.info
        computed = {key: getattr(info, key) for key in USED_BY_HEAD if key not in ("layer", "pool")}
        self._require({**computed, "layer": self.encoder.get("layer"), "pool": self.encoder.get("pool")}, "the encoder")
        layers, pools = (str(self.encoder[key]).replace("+", ",") for key in ("layer", "pool"))
        return choose_outputs(encoder.outputs, encoder.default_output, layers, pools or None)

    def _require(self, other: Mapping[str, object], what: str) -> None:
        """Raise OtherEncoderError unless `other` is the provenance of the head's embeddings."""
        if "checkpoint" not in self.encoder:
            raise OtherEncoderError(
                "the head's features did not say which encoder made them, so it cannot be used on others; train it again on "
                "features that this project has extracted"
            )
        for key in USED_BY_HEAD:
            expected, actual = self.encoder.get(key), other.get(key)
            if expected != actual:
                raise OtherEncoderError(f"the head was trained with {key} {expected}, but {what} has {actual}")

    def _probabilities(self, embeddings: torch.Tensor) -> torch.Tensor:
        return (self.logits(embeddings) / self.temperature).softmax(dim=1)

    @torch.no_grad()
    def logits(self, embeddings: torch.Tensor | Array) -> torch.Tensor:
        """(N, D) embeddings of the head's own encoder, layers and pools -> (N, C) logits; nothing is checked."""
        logits: torch.Tensor = self.module(torch.from_numpy(self.scaler(np.asarray(embeddings, np.float32))))
        return logits

    def save(self, path: str | Path) -> None:
        """Write atomically, as a plain dict that ``torch.load(path, weights_only=True)`` opens."""
        first = self.module[0]
        assert isinstance(first, nn.Linear)
        content = {
            "head": self.kind,
            "hidden_dim": first.out_features if len(self.module) > 1 else 0,
            # Copies: a state dict's own tensors alias the live weights.
            "state_dict": {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()},
            "scaler_mean": torch.from_numpy(self.scaler.mean.copy()),
            "scaler_scale": torch.from_numpy(self.scaler.scale.copy()),
            "scaler_rotation": None if self.scaler.rotation is None else torch.from_numpy(self.scaler.rotation.copy()),
            "scaler_is_unit_length": self.scaler.is_unit_length,
            "class_names": list(self.class_names),
            "encoder": self.encoder,
            "temperature": self.temperature,
            "known_mean": None if self.known is None else torch.from_numpy(self.known.scaler.mean.copy()),
            "known_scale": None if self.known is None else torch.from_numpy(self.known.scaler.scale.copy()),
            "known_embeddings": None if self.known is None else torch.from_numpy(self.known.embeddings),
            "known_held_out": None if self.known is None else torch.from_numpy(self.known.held_out),
        }
        save_torch(content, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> TrainedHead:
        """Read a file written by `save`; HeadFileError for any other."""
        if not Path(path).exists():
            raise HeadFileError(
                f"{path} not found; classification writes the trained heads, such as TASK_linear_classifier.pt"
            )
        try:
            content = load_torch(Path(path))
            class_names, encoder = _names(content["class_names"]), read_provenance(content["encoder"])
            rotation = content["scaler_rotation"]
            scaler = Scaler(
                content["scaler_mean"].numpy(),
                content["scaler_scale"].numpy(),
                None if rotation is None else rotation.numpy(),
                content["scaler_is_unit_length"],
            )
            # Without memory, then with the tensors that are there: a damaged width claims any amount.
            with torch.device("meta"):
                module = HEADS[content["head"]](scaler.width, len(class_names), content["hidden_dim"])
            module.load_state_dict(content["state_dict"], assign=True)
            known = None
            if content.get("known_embeddings") is not None:
                standard = Scaler(content["known_mean"].numpy(), content["known_scale"].numpy())
                known = KnownSounds(standard, content["known_embeddings"].numpy(), content["known_held_out"].numpy())
            temperature = float(content.get("temperature", 1.0))
            _refuse_odd_numbers(module, scaler, known, temperature)
        except (OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError, AttributeError) as error:
            cause = " ".join(str(error).split())[:300]
            hint = (
                "; it is a feature file: give the head that was trained on it" if _is_feature_file(Path(path)) else ""
            )
            raise HeadFileError(f"{path} is not a trained head of this project ({cause}){hint}") from error
        return cls(content["head"], module.eval(), scaler, class_names, encoder, temperature, known)


def _names(names: object) -> list[str]:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError("its class names are not a list of texts")
    return names


def _refuse_odd_numbers(module: nn.Module, scaler: Scaler, known: KnownSounds | None, temperature: float) -> None:
    """ValueError where a head's parts do not fit together, or would give no probabilities."""
    parts = [scaler.mean, scaler.scale, *([] if scaler.rotation is None else [scaler.rotation])]
    if known is not None:
        parts += [known.embeddings, known.held_out, known.scaler.mean, known.scaler.scale]
    for part in parts:
        if part.dtype.kind != "f" or not np.isfinite(part).all():
            raise ValueError("its numbers are not finite")
    for value in module.state_dict().values():
        if value.dtype != torch.float32 or not value.isfinite().all():
            raise ValueError("its weights are not finite float32 numbers")
    if not isinstance(scaler.is_unit_length, bool):
        raise TypeError(f"scaler_is_unit_length is a {type(scaler.is_unit_length).__name__}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"its temperature is {temperature}")
    n_inputs = len(scaler.mean)
    if scaler.scale.shape != scaler.mean.shape or scaler.mean.ndim != 1 or not (scaler.scale > 0).all():
        raise ValueError("its scaler is not one of embeddings")
    if scaler.rotation is not None and (scaler.rotation.ndim != 2 or scaler.rotation.shape[0] != n_inputs):
        raise ValueError("its scaler's rotation has another width")
    if known is not None:
        width = known.scaler.mean.shape
        has_rows = known.embeddings.ndim == 2 and known.embeddings.shape[1:] == width and len(known.embeddings)
        if not has_rows or width != (n_inputs,) or known.scaler.scale.shape != width or known.held_out.ndim != 1:
            raise ValueError("its known sounds have another width")


def _is_feature_file(path: Path) -> bool:
    try:
        FeatureSet.load(path)
    except FeatureFileError:
        return False
    return True
