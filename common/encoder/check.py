"""What holds of an encoder, measured: python -m common.encoder.check NAME, such as logmel or hear:my_encoder.py.

Status 1 if a property that every encoder here needs does not hold.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.config import DEVICES, ConfigError, ExtractConfig, extra_of
from common.encoder_name import FORMS, EncoderName
from common.entry import run
from common.files import write_json
from common.flags import Parser, user_path
from common.text_table import as_text

if TYPE_CHECKING:  # --help should not wait for torch
    from common.encoder.measure import CheckRecord

ENDS = {True: "holds", False: "DOES NOT HOLD", None: "-"}


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
    return [["", "property", "measured"], *rows, *(["", name, value] for name, value in facts.items())]


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
    from common.encoder.measure import check_encoder

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
    print(as_text(as_table(record), left=3))
    if arguments.json:
        write_json(arguments.json, record.model_dump_json())
        print(f"-> {arguments.json}")
    if not record.holds:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
