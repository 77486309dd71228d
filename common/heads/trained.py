"""A trained head and its file; and what it knows of sounds unlike all that it was trained on: "none of these"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from common.arrays import Array
from common.encoder import Encoder, Output, Waveform, choose_outputs
from common.errors import UserError
from common.features import LABEL_SEPARATOR, PROVENANCE, FeatureSet, Provenance
from common.files import load_torch, save_torch
from common.heads.recipes import HeadKind, new_head
from common.heads.scalers import Scaler, fit_scaler, one_blas_thread

MOST_ROWS = 4096  # training rows that are kept: about 6 MB at 384 numbers
# The provenance that must be equal where a head is used.
USED_BY_HEAD = ("encoder", "kind", "checkpoint", "code", "condition", "padding", "precision", "layer", "pool")


class NoneOfTheseError(UserError):
    """Too few held-out clips for the threshold of a false-alarm rate."""


class Threshold(NamedTuple):
    """A distance beyond which a sound is none of the classes."""

    distance: float
    n_clips: int  # held-out clips that set it
    n_groups: int | None  # their recordings, patients or speakers; None: unknown, or the head was trained on them too
    is_promised: bool  # whether the false-alarm rate holds for new groups


@dataclass(frozen=True, eq=False)
class KnownSounds:
    """A head's training rows, and the distances of held-out clips of the known classes to such rows.

    A clip's distance is Euclidean, of standardised embeddings, to the nearest kept row (Ramaswamy et al. 2000; for
    embeddings: Sun et al. 2022, https://arxiv.org/abs/2204.06507). The head's scaler is not used: the strength of its
    whitening differs between folds, and distances with it."""

    scaler: Scaler  # standardises embeddings; fitted on the kept rows
    embeddings: Array  # (N, D) float32, standardised; at most MOST_ROWS training rows, drawn at random
    # (M,) distances of clips not among the rows; (M,) int64 their groups, if none of these has training clips.
    held_out: Array = field(default_factory=lambda: np.empty(0, np.float32))
    groups: Array | None = None
    # The share of clips of a class left out that a false-alarm rate of 5 % marks; None: not measured.
    found: float | None = None

    @classmethod
    def of(cls, kept: Array) -> KnownSounds:
        """Of (N, D) training rows, of which `draw_known` has kept some."""
        scaler = fit_scaler("standard", kept)
        return cls(scaler, scaler(kept))

    def distances(self, embeddings: Array) -> Array:
        """(N, D) embeddings -> (N,) float32."""
        from sklearn.metrics import pairwise_distances_argmin_min

        with one_blas_thread():
            _, distances = pairwise_distances_argmin_min(self.scaler(embeddings), self.embeddings)
        kept: Array = distances.astype(np.float32)
        return kept


def draw_known(train: Array, seed: int) -> Array:
    """(M,) at most MOST_ROWS of the training rows (N,), in their order."""
    if len(train) <= MOST_ROWS:
        return train
    return train[np.sort(np.random.default_rng(seed).choice(len(train), MOST_ROWS, replace=False))]


def conformal_threshold(held_out: Array, groups: Array | None, rate: float) -> Threshold:
    """The distance that a share of at most `rate` of new clips exceeds: a conformal quantile (Bates et al. 2023,
    https://arxiv.org/abs/2104.08279) of the held-out clips' distances (M,).

    With their groups (M,), the clips of a new group: every group counts as much as any other (the pooled distribution functions
    of Dunn et al. 2022, https://arxiv.org/abs/1809.07441). That takes 1 / rate - 1 groups; with fewer, the share
    is that of the held-out groups, and nothing is promised. NoneOfTheseError if there are too few clips for the rate."""
    least = math.ceil(1 / rate - 1e-9) - 1
    if len(held_out) < least:
        raise NoneOfTheseError(
            f"a false-alarm rate of {rate:g} needs at least {least} held-out clips, and the head has {len(held_out)}; "
            "ask for a higher rate, or train the head on data with more folds or validation clips"
        )
    _, members, counts = np.unique(
        np.arange(len(held_out)) if groups is None else groups, return_inverse=True, return_counts=True
    )
    is_promised = len(counts) >= least
    order = np.argsort(held_out, kind="stable")
    reached = np.cumsum(1 / counts[members[order]]) / (len(counts) + is_promised)  # one more: the new group
    place = min(int(np.searchsorted(reached, 1 - rate - 1e-9)), len(order) - 1)
    n_groups = None if groups is None else len(counts)
    return Threshold(float(held_out[order[place]]), len(held_out), n_groups, is_promised and groups is not None)


class HeadFileError(UserError):
    """A file does not hold a trained head."""


class OtherEncoderError(UserError):
    """A head is used with an encoder that it was not trained on."""


def require_equal(made_by: Provenance, other: Mapping[str, object], what: str, whose: str) -> None:
    """Raise OtherEncoderError unless `other` is of the encoder, layers and pools of embeddings; the message says `what` has the
    one and `whose` is the other."""
    if "checkpoint" not in made_by:
        raise OtherEncoderError(
            "it is not known which encoder made the embeddings, so no other can be used; extract them again with this project"
        )
    for key in USED_BY_HEAD:
        expected, actual = made_by.get(key), other.get(key)
        if expected != actual:
            raise OtherEncoderError(f"{what} {key} {expected}, but {whose} {actual}")


def outputs_behind(made_by: Provenance, encoder: Encoder, what: str) -> tuple[Output, ...]:
    """The outputs of an encoder that embeddings are of; errors and `what` as for `require_equal`."""
    # An encoder has all layers and pools.
    actual = {key: getattr(encoder.info, key, made_by.get(key)) for key in USED_BY_HEAD}
    require_equal(made_by, actual, what, "the encoder has")
    layers, pools = (str(made_by[key]).replace("+", ",") for key in ("layer", "pool"))
    return choose_outputs(encoder.outputs, encoder.default_output, layers, pools or None)


@dataclass(frozen=True)
class PlattScaling:
    """How the logits of a head become probabilities, with several labels a clip: ``sigmoid(slope * logit + bias)``. All (C,)."""

    slopes: list[float]
    biases: list[float]


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """A trained head with its scaler, its class names and the encoder it was trained on."""

    kind: HeadKind
    module: nn.Sequential  # on the CPU, in eval mode
    scaler: Scaler
    class_names: list[str]  # in the order of the logits
    encoder: Provenance  # of the training embeddings
    temperature: float = 1.0  # divisor of the logits, which calibrates the probabilities
    known: KnownSounds | None = None  # training clips, for "none of these"; None without held-out clips
    scaling: PlattScaling | None = None  # in place of the temperature, with several labels a clip
    # (C,) the probabilities from which a class is heard, in a window or beside others; None: no clips could set them
    thresholds: list[float] | None = None

    def predict(self, encoder: Encoder, waveforms: Sequence[Waveform]) -> list[str]:
        """N waveforms at the encoder's sample rate -> N class names, or labels joined by ``;``; errors as for `predict_proba`."""
        return [LABEL_SEPARATOR.join(self.labels_of(row)) for row in self.predict_proba(encoder, waveforms).tolist()]

    def labels_of(self, probabilities: Sequence[float]) -> list[str]:
        """The most probable class; with several labels a clip, those from their thresholds on, the most probable first."""
        order = sorted(range(len(probabilities)), key=lambda index: -probabilities[index])
        if self.scaling is None:
            return [self.class_names[order[0]]]
        thresholds = self.thresholds or [0.5] * len(order)
        return [self.class_names[index] for index in order if probabilities[index] >= thresholds[index]]

    def predict_proba(self, encoder: Encoder, waveforms: Sequence[Waveform]) -> torch.Tensor:
        """N waveforms at the encoder's sample rate -> (N, C) probabilities, with the layers and pools of the training;
        OtherEncoderError if the encoder is not the one that the head was trained on."""
        return self.answer(encoder, waveforms)[0]

    def answer(self, encoder: Encoder, waveforms: Sequence[Waveform]) -> tuple[torch.Tensor, Array | None]:
        """The probabilities of `predict_proba`, and distances (N,) to the nearest known training clip, if the head keeps any."""
        outputs = self.outputs_of(encoder)
        embedded = encoder.embed_outputs(waveforms, outputs)
        embeddings = torch.cat([embedded[output] for output in outputs], dim=1)
        distances = None if self.known is None else self.known.distances(embeddings.numpy())
        return self._probabilities(embeddings), distances

    def predict_features(self, features: FeatureSet) -> torch.Tensor:
        """The rows of a feature file -> (N, C) probabilities; OtherEncoderError if they are of another encoder or outputs."""
        layer, pool = self.encoder.get("layer"), self.encoder.get("pool")
        picked = features.pick(layer, pool or None) if "outputs" in features.meta else features
        require_equal(self.encoder, picked.meta, "the head was trained with", "the features have")
        return self._probabilities(picked.features)

    def outputs_of(self, encoder: Encoder) -> tuple[Output, ...]:
        """The outputs of the encoder that the head was trained on; OtherEncoderError if it is another encoder."""
        return outputs_behind(self.encoder, encoder, "the head was trained with")

    def _probabilities(self, embeddings: torch.Tensor) -> torch.Tensor:
        logits = self.logits(embeddings)
        if self.scaling is None:
            return (logits / self.temperature).softmax(dim=1)
        return (logits * torch.tensor(self.scaling.slopes) + torch.tensor(self.scaling.biases)).sigmoid()

    @torch.no_grad()
    def logits(self, embeddings: torch.Tensor | Array) -> torch.Tensor:
        """(N, D) embeddings of the head's encoder, layers and pools, which are not checked -> (N, C) logits."""
        logits: torch.Tensor = self.module(torch.from_numpy(self.scaler(np.asarray(embeddings, np.float32))))
        return logits

    def save(self, path: str | Path) -> None:
        """Write atomically, as a plain dict that ``torch.load(path, weights_only=True)`` opens."""
        first, scaler, known = self.module[0], self.scaler, self.known
        assert isinstance(first, nn.Linear)
        content: dict[str, Any] = {
            "head": self.kind,
            "hidden_dim": first.out_features if len(self.module) > 1 else 0,
            "state_dict": dict(self.module.state_dict()),
            "scaler_mean": scaler.mean,
            "scaler_scale": scaler.scale,
            "scaler_rotation": scaler.rotation,
            "scaler_is_unit_length": scaler.is_unit_length,
            "class_names": list(self.class_names),
            "encoder": self.encoder,
            "temperature": self.temperature,
            "platt_scaling": None if self.scaling is None else asdict(self.scaling),
            "thresholds": self.thresholds,
        }
        if known is not None:
            content |= {
                "known_mean": known.scaler.mean,
                "known_scale": known.scaler.scale,
                "known_embeddings": known.embeddings,
                "known_held_out": known.held_out,
                "known_groups": known.groups,
                "known_found": known.found,
            }
        arrays = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
        save_torch(content | {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> TrainedHead:
        """Read a file written by `save`; HeadFileError for any other."""
        if not Path(path).exists():
            raise HeadFileError(
                f"{path} not found; classification writes the trained heads, such as TASK_linear_classifier.pt"
            )
        try:
            content = load_torch(Path(path))
            if "features" in content:
                raise ValueError("it is a feature file: give the head that was trained on it")
            content |= {name: value.numpy() for name, value in content.items() if torch.is_tensor(value)}
            known, scaling = None, content["platt_scaling"]
            scaler = Scaler(*(content[f"scaler_{name}"] for name in ("mean", "scale", "rotation", "is_unit_length")))
            with torch.device("meta"):  # without random weights
                module = new_head(content["head"], scaler.width, len(content["class_names"]), content["hidden_dim"])
            module.load_state_dict(content["state_dict"], assign=True)
            if "known_mean" in content:
                standard = Scaler(content["known_mean"], content["known_scale"])
                rest = (content[f"known_{name}"] for name in ("embeddings", "held_out", "groups", "found"))
                known = KnownSounds(standard, *rest)
            return cls(
                content["head"],
                module.eval(),
                scaler,
                content["class_names"],
                PROVENANCE.validate_python(content["encoder"]),
                content["temperature"],
                known,
                None if scaling is None else PlattScaling(**scaling),
                content["thresholds"],
            )
        except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
            cause = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:300]
            raise HeadFileError(f"{path} is not a trained head of this project ({cause})") from error
