"""What holds of an encoder, measured: python -m common.encoder.check NAME, such as logmel or hear:my_encoder.py.

Status 1 if a property that every encoder here needs does not hold.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from common.config import DEVICES, ConfigError, ExtractConfig, extra_of
from common.encoder_name import FORMS, EncoderName
from common.entry import run
from common.errors import UserError
from common.files import read_record, write_json
from common.flags import Parser, user_path
from common.text_table import as_text

if TYPE_CHECKING:  # --help should not wait for torch
    from common.encoder import Encoder, Output

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
        return read_record(
            path, cls, lambda _: UserError(f"{path} is damaged; run python -m common.encoder.check again")
        )


def check_encoder(encoder: Encoder, output: Output | None = None) -> CheckRecord:
    """Measure an encoder's properties with noise, silence and tones.

    Args:
        output: of the encoder's outputs; None: the default one.
    """
    from common.encoder.device import describe_cpu
    from common.encoder.measure import Measurement

    output = output or encoder.default_output
    measurement = Measurement(encoder, output)
    return CheckRecord(
        encoder=encoder.info.encoder,
        checkpoint=encoder.info.checkpoint,
        sample_rate=encoder.sample_rate,
        output=output.name,
        width=output.width,
        parameters=encoder.info.parameters,
        min_samples=encoder.info.min_samples,
        speed=measurement.speed(),
        device=str(encoder.device),
        cpu=describe_cpu(),
        properties=[Property(name=name, holds=holds, measured=seen) for name, holds, seen in measurement.seen()],
    )


def as_table(record: CheckRecord) -> list[list[str]]:
    """The record as text, header first."""
    least = "1 sample"
    if record.min_samples > 1:
        least = f"{record.min_samples:,} samples ({record.min_samples / record.sample_rate:.3f} s)"
    facts = {
        "sample rate": f"{record.sample_rate:,} Hz",
        "output": f"{record.output}, {record.width:,} numbers",
        "parameters": "unknown" if record.parameters is None else f"{record.parameters:,}",
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
