"""A stand-in for AudioSep's encoder, for tests of all that is around it: the same outputs, in no time.

As a script it is ESC-50's extraction with the stand-in as its encoder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from common.cli import extract_main
from common.encoder import SAMPLE_RATE, Encoder, EncoderInfo, Output, Waveform, choose
from common.encoder.audiosep import DEFAULT, DEFAULT_LAYER, DEFAULT_POOL, OUTPUTS
from common.encoder_name import EncoderKind
from esc50_feature_fc.esc50 import TASK
from tests.support.samples import find_output

POOLING: dict[str, Callable[..., np.ndarray]] = {"mean": np.mean, "std": np.std, "max": np.max, "mean_time": np.mean}


class StandIn(Encoder):
    """An `Encoder`: each number is the mean, spread or maximum of the squares of one piece of the waveform.

    Attributes:
        batch_sizes: how many waveforms each call of `embed_outputs` had.
        before_call: called before each of them, with its number from 0.
    """

    sample_rate = SAMPLE_RATE
    outputs = OUTPUTS
    default_output = DEFAULT
    device = torch.device("cpu")

    def __init__(
        self, checkpoint: str = "random:2024", condition: str = "none", padding: str = "none", min_samples: int = 1
    ) -> None:
        self.info = EncoderInfo(
            EncoderKind.UNTRAINED,
            "stand-in",
            checkpoint,
            "untrained",
            condition,
            "fp32",
            min_samples=min_samples,
            padding=padding,
        )
        self.batch_sizes: list[int] = []
        self.before_call: Callable[[int], object] = lambda number: None

    def embed_outputs(self, waveforms: Sequence[Waveform], outputs: Sequence[Output]) -> dict[Output, torch.Tensor]:
        """As `Encoder.embed_outputs`."""
        self.before_call(len(self.batch_sizes))
        self.batch_sizes.append(len(waveforms))
        return {output: torch.from_numpy(self._embed(waveforms, output)) for output in outputs}

    def embed(
        self, waveforms: Sequence[Waveform], layer: str = DEFAULT_LAYER, pool: str = DEFAULT_POOL
    ) -> torch.Tensor:
        """One output of the waveforms."""
        output = find_output(self.outputs, layer, pool)
        return self.embed_outputs(waveforms, [output])[output]

    def _embed(self, waveforms: Sequence[Waveform], output: Output) -> np.ndarray:
        rows = np.zeros((len(waveforms), output.width), np.float32)
        depth = 1 + [each.layer for each in OUTPUTS].index(output.layer)  # so that no two layers agree
        with np.errstate(over="ignore", invalid="ignore"):  # samples may be huge
            for row, waveform in zip(rows, waveforms, strict=True):
                samples = np.asarray(waveform, np.float32)
                pieces = np.pad(samples, (0, -len(samples) % output.width)).reshape(output.width, -1)
                row[:] = depth * POOLING[output.pool](pieces**2, axis=1)
        return rows


def load_stand_in(
    checkpoint: object = None,
    device: object = None,
    precision: object = None,
    condition: object = None,
    padding: object = "none",
) -> StandIn:
    """In the place of `common.encoder.load_encoder`."""
    del device, precision
    return StandIn(str(checkpoint), str(condition), str(padding))


def halt(sign: Path) -> None:
    """Tell another process that this one stands still, and wait for its signal."""
    sign.touch()
    time.sleep(600)


def main(argv: Sequence[str] | None = None) -> None:
    """ESC-50's extraction script with the stand-in."""
    choose.load_encoder = load_stand_in
    extract_main(TASK, argv)


if __name__ == "__main__":
    main()
