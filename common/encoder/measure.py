"""What `common.encoder.check` measures: whether an encoder gives the same for the same, finite numbers, and what changes them."""

from __future__ import annotations

import itertools
import timeit
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from common.arrays import Array
from common.encoder.device import describe_cpu
from common.encoder.protocol import Encoder, Output
from common.errors import UserError
from common.files import read_record

SAME = 1e-5  # relative L2 error up to which two embeddings are the same
TIMED_S = 5.0  # seconds of a clip whose embedding is timed
Embed = Callable[[Sequence[Array]], Array]  # waveforms -> (N, width) float64


@dataclass(frozen=True)
class Property:
    """One measured property."""

    name: str  # what is asked
    holds: bool | None  # whether it does; None where neither answer is wrong
    measured: str  # what was seen


class CheckRecord(BaseModel):
    """What was measured of an encoder; the first fields as `EncoderInfo` and `Output` have them."""

    model_config = ConfigDict(frozen=True)

    encoder: str
    checkpoint: str
    sample_rate: int  # in Hz
    output: str
    width: int
    parameters: int | None
    min_samples: int
    speed: float  # seconds of audio per second, for clips of 5 s, one after the other
    device: str  # what it was measured on
    cpu: str
    properties: list[Property]  # in the order of the table

    @property
    def failing(self) -> tuple[str, ...]:
        """The properties that do not hold."""
        return tuple(checked.name for checked in self.properties if checked.holds is False)

    @classmethod
    def load(cls, path: Path) -> CheckRecord:
        """Read what ``--json`` wrote; UserError if it is damaged."""
        return read_record(
            path, cls, lambda _: UserError(f"{path} is damaged; run python -m common.encoder.check again")
        )


def check_encoder(encoder: Encoder, output: Output | None = None) -> CheckRecord:
    """Measure an encoder's properties with noise, silence and tones; `output` is one of its own, None the default one."""
    output, info = output or encoder.default_output, encoder.info

    def embed(waveforms: Sequence[Array]) -> Array:
        return encoder.embed_outputs(waveforms, [output])[output].double().numpy()

    sounds = _sounds(encoder.sample_rate)
    timed = np.resize(sounds[0], round(TIMED_S * encoder.sample_rate))
    fastest_s = min(timeit.repeat(partial(embed, [timed]), number=1, repeat=4))  # the first run loads kernels
    return CheckRecord(
        encoder=info.encoder,
        checkpoint=info.checkpoint,
        sample_rate=encoder.sample_rate,
        output=output.name,
        width=output.width,
        parameters=info.parameters,
        min_samples=info.min_samples,
        speed=TIMED_S / fastest_s,
        device=str(encoder.device),
        cpu=describe_cpu(),
        properties=[*_sameness(embed, sounds), *_finite(embed, sounds[0], info.min_samples), *_changes(embed, sounds)],
    )


def _sounds(sample_rate: int) -> list[Array]:
    """Three of 1 s, of a few tones with noise."""
    rng, seconds = np.random.default_rng(0), np.arange(sample_rate) / sample_rate
    sounds = []
    for _ in range(3):
        tones = sum(np.sin(2 * np.pi * hertz * seconds + phase) for hertz, phase in rng.uniform(80, 3000, (4, 2)))
        sounds.append((0.05 * (tones + rng.standard_normal(sample_rate))).astype(np.float32))
    return sounds


def _sameness(embed: Embed, sounds: list[Array]) -> Iterator[Property]:
    """A clip gives the same embedding whenever and in whatever company, and another clip gives another one."""
    # Some encoders treat long clips in another way.
    long = [np.concatenate([sounds[place] for place in order] * 2) for order in ((0, 1, 2, 0), (2, 1, 0, 1))]
    together = embed(sounds)
    both = np.concatenate([together, embed(long)])
    alone = np.concatenate([embed([waveform]) for waveform in (*sounds, *long)])
    beside = embed([sounds[1][: len(sounds[1]) // 2], sounds[0], np.tile(sounds[2], 2)])[1:2]
    yield _same("the same twice", np.concatenate([embed(sounds), embed(long)]), both)
    yield _same("alone as in a batch", alone, both)
    yield _same("in any order", embed(sounds[::-1])[::-1], together)
    yield _same("beside clips of other lengths", beside, together[:1])
    # An encoder that says the same of every sound says nothing.
    least = min(_error(first[None], second[None]) for first, second in itertools.combinations(together, 2))
    yield Property("different sounds differ", least > SAME, f"relative difference {least:.1e} or more")


def _finite(embed: Embed, first: Array, min_samples: int) -> Iterator[Property]:
    """Whether clips that break many encoders give finite numbers, and NaN is refused."""
    rate = len(first)
    extremes = {
        "1 sample": first[:1],
        "0.1 s": first[: rate // 10],
        "30 s": np.tile(first, 30),
        "silence": np.zeros(rate, np.float32),
        "full scale": np.where(first > 0, 1.0, -1.0).astype(np.float32),
    }
    for name, waveform in extremes.items():
        try:
            is_finite = bool(np.isfinite(embed([waveform])).all())
            measured = "finite" if is_finite else "NaN or infinity"
        except UserError as error:
            is_finite, measured = False, str(error)
        padded = f"padded to {min_samples:,} samples, " if len(waveform) < min_samples else ""
        yield Property(f"{name}: finite numbers", is_finite, padded + measured)
    try:
        embed([np.append(first, np.float32(np.nan))])
        yield Property("NaN is refused", False, "embedded without a word")
    except ValueError as error:
        yield Property("NaN is refused", True, str(error))


def _changes(embed: Embed, sounds: list[Array]) -> Iterator[Property]:
    """What changes an embedding, where neither answer is wrong."""
    together, rate = embed(sounds), len(sounds[0])
    yield _change("half the amplitude", embed([0.5 * sound for sound in sounds]), together)
    padded = [np.pad(sound, (0, rate)) for sound in sounds]
    yield _change("1 s of silence appended", embed(padded), together)
    # Some models cut a clip after some seconds.
    whole = np.tile(sounds[0], 30)
    both = embed([whole, np.concatenate([whole[:-rate], sounds[1]])])
    yield _change("another last second of 30 s", both[1:], both[:1])


def _error(embeddings: Array, reference: Array) -> float:
    """The largest relative L2 difference of a row; NaN if there is one."""
    difference = np.linalg.norm(embeddings - reference, axis=1)
    return float((difference / np.linalg.norm(reference, axis=1).clip(min=1e-12)).max())


def _same(name: str, embeddings: Array, reference: Array) -> Property:
    """Whether two (N, width) are the same; NaN is not."""
    error = _error(embeddings, reference)
    measured = "to the last bit" if error == 0 else f"relative difference {error:.1e}"
    return Property(name, error <= SAME, measured)


def _change(name: str, embeddings: Array, reference: Array) -> Property:
    error = _error(embeddings, reference)
    measured = "cannot be told: NaN" if np.isnan(error) else f"changes by {100 * error:.3g} %"
    return Property(name, None, "changes nothing" if error <= SAME else measured)
