"""Any folder or table of sounds as a task: features, both heads, scores: python own_sounds/probe.py FOLDER_OR_CSV."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import extract_task, print_status
from common.config import ConfigError, ExtractConfig, FitConfig, load_config
from common.datasets.labels import ONE_CLASS
from common.encoder_name import EncoderName, file_of
from common.flags import Arguments, Launch, Parser, add_launch, add_settings, add_shared, run, user_path
from own_sounds.sounds import Source, refuse_unlearnable

EXTRACT = [key for key in ExtractConfig.model_fields if key not in ("data_root", "features")]
# What both kinds of settings have is asked for once, and what follows from the extraction not at all.
FOLLOWS = ("use_layer", "use_pool", "feature_dim")
FIT = [key for key in FitConfig.model_fields if key not in (*ExtractConfig.model_fields, *FOLLOWS)]


def probe_main(argv: Sequence[str] | None = None) -> None:
    run(lambda: _probe(argv))


def _probe(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    place, separator = Path(os.path.realpath(arguments.source)), arguments.label_separator
    source = Source(place, arguments.label_regex, arguments.group_regex, separator)
    task = source.task()
    flags = {key: value for key, value in vars(arguments).items() if value is not None}
    # Of the layers and pools that a head joins by "+", the extraction writes all.
    separate = {key: flags[key].replace("+", ",") for key in ("layer", "pool") if key in flags}
    joined = {f"use_{key}": flags[key] for key in separate if "+" in flags[key]}
    settings = {key: flags[key] for key in EXTRACT if key in flags} | separate
    extract = load_config(ExtractConfig, task.config_file, arguments.config, settings)
    settings = {key: flags[key] for key in FIT if key in flags} | joined
    fit = load_config(FitConfig, task.config_file, arguments.config, settings)
    encoder = EncoderName.parse(extract.encoder).slug
    folder = fit.output_dir or task.output_dir_of(encoder)
    if folder.is_file():
        raise ConfigError(f"--output-dir {folder} is a file; give a folder")
    features_file = folder / file_of(task.features_file, encoder)
    launch = Launch.of(arguments)
    if launch.status:
        print_status(features_file, launch.status)
        return
    sounds = source.read()
    if sounds.remark:
        print(sounds.remark)
    refuse_unlearnable(sounds)
    source = replace(source, is_multilabel=sounds.is_multilabel)
    task = source.task()
    how = Arguments([task], extract, {}, arguments.overwrite, launch)
    if not extract_task(task, sounds.clips, sounds.root, features_file, how):
        return  # another process joins the parts, and trains the heads
    source.save(folder, sounds.root)
    from common.encoder.device import fitting_device
    from common.evaluation.results import classify

    device = fitting_device(extract.device)
    places = {"features": features_file, "output_dir": folder, "encoder": extract.encoder, "device": str(device)}
    classify(task, fit.model_copy(update=places), {}, device, arguments.overwrite)


def _parser() -> Parser:
    parser = Parser(__doc__)
    text = (
        "a folder with a sub-folder per class; or a CSV or TSV with the columns path and label, and maybe fold, split, "
    )
    text += "group, start, end (seconds); label may hold several, or be a column of 0 and 1 for every class"
    parser.add_argument("source", type=user_path, metavar="FOLDER_OR_CSV", help=text)
    text = "finds the class in a clip's path, such as '^(\\d)_'; then no sub-folders are needed"
    parser.add_argument("--label-regex", metavar="REGEX", help=text)
    text = f"what separates several labels in a cell of the table, such as ';'; '{ONE_CLASS}': nothing (default: by the cells)"
    parser.add_argument("--label-separator", metavar="TEXT", help=text)
    text = "finds the group (speaker, recording) in a clip's path, such as '_(\\w+)_'; no group is on both sides"
    parser.add_argument("--group-regex", metavar="REGEX", help=text)
    task = Source(Path("NAME")).task()
    add_settings(parser, ExtractConfig, task, EXTRACT)
    add_settings(parser, FitConfig, task, FIT)
    add_shared(parser)
    add_launch(parser)
    return parser


if __name__ == "__main__":
    probe_main()
