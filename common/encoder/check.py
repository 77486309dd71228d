"""What holds of an encoder, measured: python -m common.encoder.check NAME, such as logmel or hear:my_encoder.py.

Status 1 if a property that every encoder here needs does not hold.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from common.config import COMMON_CONFIG, ConfigError, ExtractConfig, load_config
from common.encoder_name import FORMS
from common.files import write_json
from common.flags import Parser, add_settings, run, user_path
from common.text_table import as_text

SETTINGS = ("checkpoint", "layer", "pool", "padding", "device", "trust_remote_code")
ENDS = {True: "holds", False: "DOES NOT HOLD", None: "-"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__, prog="python -m common.encoder.check")
    parser.add_argument("name", metavar="NAME", help=FORMS)
    add_settings(parser, ExtractConfig, None, SETTINGS)
    parser.add_argument("--json", type=user_path, metavar="FILE", help="also write what was measured")
    arguments = parser.parse_args(argv)
    # --help should not wait for torch
    from common.encoder import configured_encoder, resolve_device
    from common.encoder.measure import check_encoder

    flags = {key: value for key in SETTINGS if (value := getattr(arguments, key)) is not None}
    config = load_config(ExtractConfig, COMMON_CONFIG, flags=flags | {"encoder": arguments.name})
    encoder, outputs = configured_encoder(config, resolve_device(config.device))
    if len(outputs) > 1:
        raise ConfigError(f"{len(outputs)} outputs are asked for; check one at a time: --layer {outputs[0].layer} ...")
    record = check_encoder(encoder, outputs[0])
    rows = [[ENDS[item.holds], item.name, item.measured] for item in record.properties]
    facts = {
        "sample rate": f"{record.sample_rate:,} Hz",
        "output": f"{record.output}, {record.width:,} numbers",
        "parameters": "unknown" if record.parameters is None else f"{record.parameters:,}",
        "shortest clip without padding": f"{record.min_samples:,} samples ({record.min_samples / record.sample_rate:.3f} s)",
        "speed": f"{record.speed:.1f} s of audio per second: clips of 5 s, one by one, {record.device} ({record.cpu})",
    }
    rows += [["", name, value] for name, value in facts.items()]
    print(f"{record.encoder}, {record.checkpoint[:19]}\n")
    print(as_text([["", "property", "measured"], *rows], left=3))
    if arguments.json:
        write_json(arguments.json, record.model_dump_json())
        print(f"-> {arguments.json}")
    if record.failing:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
