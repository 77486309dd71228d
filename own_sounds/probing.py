"""From one's own sounds to scores in one command: extraction, then heads, with the flags of both."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from common.cli import extract_task
from common.config import ConfigError, ExtractConfig, FitConfig, load_config
from common.encoder_name import EncoderName, file_of
from common.entry import run
from common.flags import Arguments, Parser, add_settings, add_shared, user_path
from own_sounds.sounds import Source

EXTRACT = [key for key in ExtractConfig.model_fields if key not in ("data_root", "features")]
# What both configurations have, and what follows from the extraction, is asked for once.
FIT = [
    key
    for key in FitConfig.model_fields
    if key not in (*ExtractConfig.model_fields, "use_layer", "use_pool", "feature_dim")
]


def probe_main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    run(lambda: _probe(argv))


def _probe(argv: Sequence[str] | None) -> None:
    given = vars(_parser().parse_args(argv))
    source = Source(Path(os.path.realpath(given["source"].expanduser())), given["label_regex"], given["group_regex"])
    task = source.task()
    flags = {key: given[key] for key in (*EXTRACT, *FIT) if given.get(key) is not None}
    joined = {key: str(flags[key]).replace("+", ",") for key in ("layer", "pool") if key in flags}
    extract = load_config(
        ExtractConfig, task.config_file, given["config"], {key: flags[key] for key in EXTRACT if key in flags} | joined
    )
    fit = load_config(FitConfig, task.config_file, given["config"], {key: flags[key] for key in FIT if key in flags})
    root, clips = source.read()
    slug = EncoderName.parse(extract.encoder).slug
    folder = fit.output_dir or task.output_dir_of(slug)
    if folder.is_file():
        raise ConfigError(f"--output-dir {folder} is a file; give a folder")
    features_file = folder / file_of(task.features_file, slug)
    arguments = Arguments([task], extract, {}, given["overwrite"], given["shard"])
    if extract_task(task, clips, root, features_file, arguments) is None:
        return  # other shards are not done yet
    source.save(folder, root)
    picked = {f"use_{key}": flags.get(key) if "+" in str(flags.get(key, "")) else None for key in ("layer", "pool")}
    from common.encoder.device import fitting_device

    device = fitting_device(extract.device)
    own = {"features": features_file, "output_dir": folder, "encoder": extract.encoder, "device": str(device), **picked}
    from common.evaluation.results import classify

    classify(task, fit.model_copy(update=own), {}, device, given["overwrite"])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument(
        "source",
        type=user_path,
        metavar="FOLDER_OR_CSV",
        help="a folder with a sub-folder per class; or a CSV or TSV with the columns path, label and, if you like, fold, split, "
        "group, start, end (seconds)",
    )
    text = "finds each clip's class in its path, such as '^(\\d)_'; then no sub-folders are needed"
    parser.add_argument("--label-regex", metavar="REGEX", help=text)
    text = (
        "finds each clip's group (speaker, recording) in its path, such as '_(\\w+)_'; groups are never on both sides"
    )
    parser.add_argument("--group-regex", metavar="REGEX", help=text)
    task = Source(Path("NAME")).task()
    add_settings(parser, ExtractConfig, task, EXTRACT)
    add_settings(parser, FitConfig, task, FIT)
    add_shared(parser)
    parser.add_argument(
        "--shard", metavar="I/N", help="embed only shard i of n, for job arrays; the last shard goes on"
    )
    return parser
