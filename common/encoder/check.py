"""What holds of an encoder, measured: python -m common.encoder.check NAME, such as logmel or hear:my_encoder.py.

Status 1 if a property that every encoder here needs does not hold.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from common.config import DEVICES, ConfigError, ExtractConfig, extra_of
from common.encoder_name import FORMS, EncoderName
from common.entry import run
from common.errors import UserError
from common.flags import Parser, user_path

if TYPE_CHECKING:  # --help should not wait for torch
    import torch

    from common.arrays import Array
    from common.encoder import Encoder, Output

SAME = 1e-5  # relative L2 error up to which two embeddings are the same
TIMED_S = 5.0  # seconds of a clip whose embedding is timed
TIMES = 3
COLUMNS = ("", "property", "measured")
ENDS = {True: "holds", False: "DOES NOT HOLD", None: "-"}


class Property(BaseModel):
    """One measured property.

    Attributes:
        name: what is asked.
        holds: whether it does; None where neither answer is wrong.
        measured: what was seen.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    holds: bool | None
    measured: str


class CheckRecord(BaseModel):
    """What was measured of an encoder.

    Attributes:
        encoder, checkpoint: as feature files record them.
        sample_rate: in Hz.
        output: the default output.
        width: its numbers per clip.
        parameters: None if unknown.
        min_samples: shorter clips are padded to this.
        speed: seconds of audio per second, for clips of 5 s, one after the other.
        device, cpu: what it was measured on.
        properties: in the order of the table.
    """

    model_config = ConfigDict(frozen=True)

    encoder: str
    checkpoint: str
    sample_rate: int
    output: str
    width: int
    parameters: int | None
    min_samples: int
    speed: float
    device: str
    cpu: str
    properties: list[Property]

    @property
    def holds(self) -> bool:
        """Whether every property that is needed does."""
        return all(item.holds is not False for item in self.properties)

    @classmethod
    def load(cls, path: Path) -> CheckRecord:
        """Read what ``--json`` wrote; UserError if it is damaged."""
        from pydantic import ValidationError

        from common.files import DamagedFileError, read_json

        try:
            return cls.model_validate_json(read_json(path))
        except (ValidationError, DamagedFileError) as error:
            raise UserError(f"{path} is damaged; run python -m common.encoder.check again") from error


def check_encoder(encoder: Encoder, output: Output | None = None) -> CheckRecord:
    """Measure an encoder's properties with noise, silence and tones.

    Args:
        output: of the encoder's outputs; None: the default one.
    """
    from common.encoder.device import describe_cpu

    output = output or encoder.default_output
    measured = _Measurement(encoder, output)
    properties = [
        measured.deterministic(),
        measured.alone_and_batched(),
        measured.any_order(),
        measured.other_lengths(),
        measured.differ(),
        *(measured.finite(*extreme) for extreme in measured.extremes()),
        measured.refuses_nan(),
        measured.gain(),
        measured.trailing_silence(),
        measured.hears_the_end(),
    ]
    return CheckRecord(
        encoder=encoder.info.encoder,
        checkpoint=encoder.info.checkpoint,
        sample_rate=encoder.sample_rate,
        output=output.name,
        width=output.width,
        parameters=encoder.info.parameters,
        min_samples=encoder.info.min_samples,
        speed=measured.speed(),
        device=str(encoder.device),
        cpu=describe_cpu(),
        properties=properties,
    )


class _Measurement:
    """One encoder and output, and the sounds they are tried on."""

    def __init__(self, encoder: Encoder, output: Output) -> None:
        import numpy as np

        self.encoder, self.output, self.rate = encoder, output, encoder.sample_rate
        rng = np.random.default_rng(0)
        self.sounds = [_sound(rng, self.rate) for _ in range(3)]  # 1 s each
        self.together = self.embed(self.sounds)
        # Some encoders treat long clips in another way.
        self.long = [
            np.concatenate([self.sounds[place] for place in order] * 2) for order in ((0, 1, 2, 0), (2, 1, 0, 1))
        ]
        self.long_together = self.embed(self.long)

    def embed(self, waveforms: Sequence[Array]) -> torch.Tensor:
        """(N, width)."""
        return self.encoder.embed_outputs(waveforms, [self.output])[self.output]

    def deterministic(self) -> Property:
        return _same(
            "the same twice", [(self.embed(self.sounds), self.together), (self.embed(self.long), self.long_together)]
        )

    def alone_and_batched(self) -> Property:
        import torch

        alone, long_alone = (
            torch.cat([self.embed([sound]) for sound in sounds]) for sounds in (self.sounds, self.long)
        )
        return _same("alone as in a batch", [(alone, self.together), (long_alone, self.long_together)])

    def any_order(self) -> Property:
        return _same("in any order", [(self.embed(self.sounds[::-1]).flip(0), self.together)])

    def differ(self) -> Property:
        """An encoder that says the same of every sound says nothing."""
        import itertools

        pairs = itertools.combinations(self.together, 2)
        least = min(_error(first[None], other[None]) for first, other in pairs)
        return Property(
            name="different sounds differ", holds=least > SAME, measured=f"relative difference {least:.1e} or more"
        )

    def other_lengths(self) -> Property:
        """Beside clips of other lengths."""
        import numpy as np

        others = [self.sounds[1][: self.rate // 2], np.tile(self.sounds[2], 2)]
        beside = self.embed([others[0], self.sounds[0], others[1]])[1:2]
        return _same("beside clips of other lengths", [(beside, self.together[:1])])

    def extremes(self) -> list[tuple[str, Array]]:
        """Clips that break many encoders, by name."""
        import numpy as np

        full = np.where(self.sounds[0] > 0, 1.0, -1.0).astype(np.float32)
        return [
            ("1 sample", self.sounds[0][:1]),
            ("0.1 s", self.sounds[0][: self.rate // 10]),
            ("30 s", np.tile(self.sounds[0], 30)),
            ("silence", np.zeros(self.rate, np.float32)),
            ("full scale", full),
        ]

    def finite(self, name: str, waveform: Array) -> Property:
        """Whether a clip gives finite numbers."""
        try:
            is_finite = bool(self.embed([waveform]).isfinite().all())
        except UserError as error:
            return Property(name=f"{name}: finite numbers", holds=False, measured=str(error))
        padded = len(waveform) < self.encoder.info.min_samples
        least = f"padded to {self.encoder.info.min_samples:,} samples, " if padded else ""
        return Property(
            name=f"{name}: finite numbers",
            holds=is_finite,
            measured=least + ("finite" if is_finite else "NaN or infinity"),
        )

    def refuses_nan(self) -> Property:
        import numpy as np

        broken = self.sounds[0].copy()
        broken[len(broken) // 2] = np.nan
        try:
            self.embed([broken])
        except ValueError as error:
            return Property(name="NaN is refused", holds=True, measured=str(error))
        return Property(name="NaN is refused", holds=False, measured="embedded without a word")

    def gain(self) -> Property:
        quieter = self.embed([0.5 * sound for sound in self.sounds])
        return _change("half the amplitude", quieter, self.together)

    def trailing_silence(self) -> Property:
        """So that nothing is padded that need not be."""
        import numpy as np

        longer = self.embed([np.pad(sound, (0, self.rate)) for sound in self.sounds])
        return _change("1 s of silence appended", longer, self.together)

    def hears_the_end(self) -> Property:
        """Some models cut a clip after some seconds."""
        import numpy as np

        whole = np.tile(self.sounds[0], 30)
        other = whole.copy()
        other[-self.rate :] = self.sounds[1]
        both = self.embed([whole, other])
        return _change("another last second of 30 s", both[1:], both[:1])

    def speed(self) -> float:
        """Seconds of audio per second; the fastest of a few, so that a busy moment does not matter."""
        import numpy as np

        clip = np.tile(self.sounds[0], int(TIMED_S))
        self.embed([clip])
        taken = []
        for _ in range(TIMES):
            started = time.perf_counter()
            self.embed([clip])
            taken.append(time.perf_counter() - started)
        return len(clip) / self.rate / min(taken)


def _sound(rng: object, rate: int) -> Array:
    """A second of a few tones with noise."""
    import numpy as np

    assert isinstance(rng, np.random.Generator)
    seconds = np.arange(rate) / rate
    tones = sum(np.sin(2 * np.pi * hertz * seconds + phase) for hertz, phase in rng.uniform(80, 3000, (4, 2)))
    waveform: Array = (0.05 * (tones + rng.standard_normal(rate))).astype(np.float32)
    return waveform


def _error(embeddings: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest relative L2 difference of a row."""
    difference = (embeddings.double() - reference.double()).norm(dim=1)
    return float((difference / reference.double().norm(dim=1).clamp(min=1e-12)).max())


def _same(name: str, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Property:
    """Whether all pairs of (N, width) are the same; NaN is not."""
    errors = [_error(embeddings, reference) for embeddings, reference in pairs]
    error = next((error for error in errors if error != error), max(errors))
    measured = "to the last bit" if error == 0 else f"relative difference {error:.1e}"
    return Property(name=name, holds=error <= SAME, measured=measured)


def _change(name: str, embeddings: torch.Tensor, reference: torch.Tensor) -> Property:
    error = _error(embeddings, reference)
    measured = "changes nothing" if error <= SAME else f"changes by {100 * error:.3g} %"
    if error != error:
        measured = "cannot be told: NaN"
    return Property(name=name, holds=None, measured=measured)


def as_table(record: CheckRecord) -> list[list[str]]:
    """The record as text, header first."""
    parameters = "unknown" if record.parameters is None else f"{record.parameters:,}"
    least = f"{record.min_samples:,} samples ({record.min_samples / record.sample_rate:.3f} s)"
    if record.min_samples == 1:
        least = "1 sample"
    facts = {
        "sample rate": f"{record.sample_rate:,} Hz",
        "output": f"{record.output}, {record.width:,} numbers",
        "parameters": parameters,
        "shortest clip without padding": least,
        "speed": f"{record.speed:.1f} s of audio per second: clips of 5 s, one by one, {record.device} ({record.cpu})",
    }
    rows = [[ENDS[item.holds], item.name, item.measured] for item in record.properties]
    return [list(COLUMNS), *rows, *(["", name, value] for name, value in facts.items())]


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(__doc__, prog="python -m common.encoder.check")
    parser.add_argument("name", metavar="NAME", help=FORMS)
    fields = ExtractConfig.model_fields
    for key in ("checkpoint", "layer", "pool", "padding"):
        default = fields[key].default
        shown = "the encoder's own" if default is None else default
        text = f"{fields[key].description} (default: {shown})"
        parser.add_argument(f"--{key}", default=default, metavar=extra_of(fields[key])["metavar"], help=text)
    parser.add_argument("--device", default="auto", metavar="NAME", help=f"{DEVICES} (default: auto)")
    parser.add_argument("--trust-remote-code", action="store_true", help=fields["trust_remote_code"].description)
    parser.add_argument("--json", type=user_path, metavar="FILE", help="also write what was measured")
    arguments = parser.parse_args(argv)
    from common.encoder import choose_outputs, new_encoder, resolve_device
    from common.files import write_json
    from common.text_table import as_text

    name = EncoderName.parse(arguments.name).resolved(Path.cwd())
    encoder = new_encoder(
        name,
        arguments.checkpoint,
        resolve_device(arguments.device),
        padding=arguments.padding,
        trust_remote_code=arguments.trust_remote_code,
    )
    outputs = choose_outputs(encoder.outputs, encoder.default_output, arguments.layer, arguments.pool)
    if len(outputs) > 1:
        raise ConfigError(f"{len(outputs)} outputs are asked for; check one at a time: --layer {outputs[0].layer} ...")
    record = check_encoder(encoder, outputs[0])
    print(f"{record.encoder}, {record.checkpoint[:19]}\n")
    print(as_text(as_table(record), left=len(COLUMNS)))
    if arguments.json:
        write_json(arguments.json, record.model_dump_json())
        print(f"-> {arguments.json}")
    if not record.holds:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
