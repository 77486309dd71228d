"""The interface of an encoder: named outputs, computed from waveforms at one sample rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from common.arrays import Array
from common.encoder_name import EncoderKind
from common.errors import UserError

Waveform = Array | torch.Tensor


class UnknownOutputError(UserError):
    """The encoder has no such layer or pooling."""


@dataclass(frozen=True)
class Output:
    """One embedding that an encoder can compute: a layer's activations, pooled.

    Attributes:
        layer, pool: as in ``--layer`` and ``--pool``; `pool` is empty if there is nothing to choose.
        width: numbers per clip.
    """

    layer: str
    pool: str
    width: int

    @property
    def name(self) -> str:
        """Such as ``"encoder_block6 mean"``."""
        return f"{self.layer} {self.pool}".strip()


@dataclass(frozen=True)
class EncoderInfo:
    """Where embeddings come from, as feature files and results record it.

    Attributes:
        kind: the kind of encoder.
        encoder: its name, such as ``"AudioSep ResUNet30"``.
        checkpoint: ``sha256:<hex>`` of the weights, ``random:<seed>``, or a name if there are no weights.
        release: the name of the weights' known release, ``"unknown"``, ``"untrained"`` or ``"plug-in"``; for readers.
        condition: ``"none"``, ``"zero"``, or ``sha256:<hex>`` of the condition.
        precision: such as ``"fp32"``.
        code: of a plug-in, ``sha256:<hex>`` of its file and its version, or the class; empty for the project's own.
        parameters: their number; None if unknown.
        min_samples: shorter clips are padded to this.
        padding: ``"official"`` if AudioSep pads time as its own forward does; else ``"none"``.
        packages: others than the project's own that compute, whose versions are recorded.
    """

    kind: EncoderKind
    encoder: str
    checkpoint: str
    release: str
    condition: str
    precision: str
    code: str = ""
    parameters: int | None = None
    min_samples: int = 1
    padding: str = "none"
    packages: tuple[str, ...] = ()


class Encoder(Protocol):
    """A frozen encoder.

    Attributes:
        sample_rate: of the waveforms it takes, in Hz.
    """

    sample_rate: int

    @property
    def info(self) -> EncoderInfo:
        """Where its embeddings come from."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Every output that it can compute."""

    @property
    def default_output(self) -> Output:
        """The one that is extracted if none is asked for."""

    def embed_outputs(self, waveforms: Sequence[Waveform], outputs: Sequence[Output]) -> dict[Output, torch.Tensor]:
        """Each of `outputs` from one pass: (N, width) float32 on the CPU.

        Args:
            waveforms: 1-D float arrays or tensors, mono, at `sample_rate`, in [-1, 1]. A clip's row is the same alone and
                in any batch.
        """


def choose_outputs(
    outputs: Sequence[Output], default: Output, layers: str | None, pools: str | None
) -> tuple[Output, ...]:
    """The outputs that ``--layer`` and ``--pool`` name.

    Args:
        outputs: all that the encoder has.
        default: what is taken where nothing is asked for.
        layers, pools: names with commas between them, or ``"all"``; None: the default's. A layer with one pooling
            is taken whatever `pools` says.

    Raises:
        UnknownOutputError: a layer or pooling does not exist.
    """
    known = tuple(dict.fromkeys(output.layer for output in outputs))
    chosen: list[Output] = []
    for layer in _names("layer", layers, default.layer, known):
        of_layer = [output for output in outputs if output.layer == layer]
        if len(of_layer) == 1:
            chosen += of_layer
            continue
        first = default.pool if default.pool in {output.pool for output in of_layer} else of_layer[0].pool
        for pool in _names("pool", pools, first, [output.pool for output in of_layer]):
            chosen += [output for output in of_layer if output.pool == pool]
    return tuple(chosen)


def find_output(outputs: Sequence[Output], layer: str, pool: str) -> Output:
    """The one of an encoder's outputs with this layer and pooling; UnknownOutputError if there is none."""
    return choose_outputs(outputs, outputs[0], layer, pool)[0]


def _names(what: str, asked: str | None, default: str, known: Sequence[str]) -> list[str]:
    """The names in a list with commas; UnknownOutputError if one of them is not known."""
    if asked is None:
        return [default]
    if asked == "all":
        return list(known)
    names = list(dict.fromkeys(name.strip() for name in asked.split(",")))
    for name in names:
        if name not in known:
            join = f"; to join several when classifying, extract them: --{what} {name.replace('+', ',')}"
            raise UnknownOutputError(
                f"--{what} {name} is unknown to this encoder; choose from {', '.join(known)}"
                f"{join if '+' in name else ', or all'}"
            )
    return names
