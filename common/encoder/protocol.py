"""The interface of an encoder: named outputs, computed from waveforms at one sample rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from common.arrays import Array
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
        encoder: the kind of encoder.
        checkpoint: ``sha256:<hex>`` of the weights, ``random:<seed>``, or a name if there are no weights.
        release: the name of the weights' known release, ``"unknown"``, or ``"untrained"``.
        condition: ``"none"``, ``"zero"``, or ``sha256:<hex>`` of the condition.
        precision: such as ``"fp32"``.
    """

    encoder: str
    checkpoint: str
    release: str
    condition: str
    precision: str


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

    def embed_outputs(self, waveforms: Sequence[Waveform], outputs: Sequence[Output]) -> dict[Output, torch.Tensor]:
        """Each of `outputs` from one pass: (N, width) float32 on the CPU.

        Args:
            waveforms: 1-D float arrays or tensors, mono, at `sample_rate`, in [-1, 1]. A clip's row is the same alone and
                in any batch.
        """


def find_output(outputs: Sequence[Output], layer: str, pool: str) -> Output:
    """The one of an encoder's outputs with this layer and pooling; UnknownOutputError if there is none.

    A single output is returned whatever is asked for.
    """
    if len(outputs) == 1:
        return outputs[0]
    for what, asked, known in (
        ("layer", layer, [output.layer for output in outputs]),
        ("pool", pool, [output.pool for output in outputs]),
    ):
        if asked not in known:
            names = ", ".join(dict.fromkeys(known))
            raise UnknownOutputError(f"--{what} {asked} is unknown to this encoder; choose one of {names}")
    return next(output for output in outputs if (output.layer, output.pool) == (layer, pool))
