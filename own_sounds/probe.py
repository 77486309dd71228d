"""Any folder or table of sounds, or file of embeddings, as a task: features, both heads, scores: python own_sounds/probe.py PLACE."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import extract_task, print_status
from common.config import ConfigError, ExtractConfig, FitConfig, load_config
from common.encoder_name import FORMS, EncoderName, file_of
from common.flags import Arguments, Launch, Parser, add_launch, add_settings, add_shared, run, user_path
from common.scripts import call, flags, measure_encoders
from own_sounds.sounds import Source, absolute, add_columns, chosen_columns
from own_sounds.windows import BACKGROUND

EXTRACT = [key for key in ExtractConfig.model_fields if key not in ("data_root", "features")]
# What both kinds of settings have is asked for once, and what follows from the extraction not at all.
FOLLOWS = ("use_layer", "use_pool", "feature_dim")
FIT = [key for key in FitConfig.model_fields if key not in (*ExtractConfig.model_fields, *FOLLOWS)]


def probe_main(argv: Sequence[str] | None = None) -> None:
    run(lambda: _probe(_parser().parse_args(argv)))


def _probe(arguments: argparse.Namespace) -> None:
    if (arguments.source is None) == (arguments.features is None):
        raise ConfigError("give a folder or table of sounds, or embeddings of them with --features")
    source = Source(
        absolute(arguments.source or arguments.features),
        arguments.label_regex,
        arguments.group_regex,
        arguments.label_separator,
        arguments.encoding,
        tuple(chosen_columns(arguments).items()),
        arguments.background,
        has_audio=arguments.features is None,
    )
    names = [EncoderName.parse(name).resolved(Path.cwd()) for name in arguments.encoders or ()]
    extract, fit = _settings(arguments, source.task().config_file)
    slug = "audiosep" if names else EncoderName.parse(extract.encoder).slug
    folder = fit.output_dir or source.task().output_dir_of(slug)
    if folder.is_file():
        raise ConfigError(f"--output-dir {folder} is a file; give a folder")
    if source.has_audio:
        _probe_sounds(source, names, folder, extract, fit, arguments)
        return
    if names or source.as_flags():
        what = "--encoders" if names else " ".join(source.as_flags())
        raise ConfigError(f"{what} is about sounds; with --features, columns are called label, group and so on")
    from common.features import FeatureSet

    features = FeatureSet.load(source.place)
    print(f"{source.place}: {features!r}; without audio the report cannot play clips, and there is no ablation")
    source = replace(source, is_multilabel=features.is_multilabel)
    _classify(source, source.place.parent, source.place, folder, fit, arguments.overwrite)


def _settings(arguments: argparse.Namespace, config_file: Path) -> tuple[ExtractConfig, FitConfig]:
    """The settings of extraction and heads. Of the layers and pools that a head joins by "+", the extraction writes all."""
    flag_values = {key: value for key, value in vars(arguments).items() if value is not None}
    names = {key: flag_values[key] for key in ("layer", "pool") if key in flag_values}
    separate = {key: name.replace("+", ",") for key, name in names.items()}
    joined = {f"use_{key}": name for key, name in names.items() if "+" in name}
    extract = {key: flag_values[key] for key in EXTRACT if key in flag_values} | separate
    fit = {key: flag_values[key] for key in FIT if key in flag_values} | joined
    extract_config = load_config(ExtractConfig, config_file, arguments.config, extract)
    return extract_config, load_config(FitConfig, config_file, arguments.config, fit)


def _probe_sounds(
    source: Source,
    names: Sequence[EncoderName],
    folder: Path,
    extract: ExtractConfig,
    fit: FitConfig,
    arguments: argparse.Namespace,
) -> None:
    """Extract the features of the encoders `names`, or of the one that the settings name, and train heads on them; those of an
    encoder that another process finishes are left to it."""
    from common.datasets.places import index_of
    from common.evaluation.protocol import check_clips

    launch, files = Launch.of(arguments), {}
    for name in names or [EncoderName.parse(extract.encoder)]:
        place = folder / name.slug if names and name.slug != "audiosep" else folder
        files[name] = place / file_of(source.task().features_file, name.slug)
    if launch.status:
        for features_file in files.values():
            print_status(features_file, launch.status)
        return
    sounds = source.read(index_of(next(iter(files.values()))))
    for remark in sounds.remarks:
        print(remark)
    source = replace(source, is_multilabel=sounds.is_multilabel)
    task, are_done = source.task(), True
    check_clips(task, sounds, fit)  # before any encoder is loaded
    if names:
        chosen = {key: getattr(extract, key) for key in ("checkpoint", "device", "trust_remote_code")}
        measure_encoders(names, folder, arguments.overwrite, *flags(**chosen))
    for name, features_file in files.items():
        if names:
            print(f"\n{name.label}")
        of_encoder = {"encoder": str(name)}
        how = Arguments([task], extract.model_copy(update=of_encoder), {}, arguments.overwrite, launch)
        if not extract_task(task, sounds, features_file, how):
            are_done = False  # another process joins the parts
            continue
        settings = fit.model_copy(update=of_encoder)
        _classify(source, sounds.root, features_file, features_file.parent, settings, arguments.overwrite)
    if names and are_done:
        call("analysis/summary.py", "--results", folder)
        call("analysis/report.py", "--results", folder)


def _classify(source: Source, root: Path, features: Path, folder: Path, fit: FitConfig, overwrite: bool) -> None:
    from common.encoder.device import fitting_device
    from common.evaluation.results import classify

    source.save(folder, root)
    device = fitting_device(fit.device)
    places = {"features": features, "output_dir": folder, "device": str(device)}
    task = source.task()
    classify(task, fit.model_copy(update=places), {}, device, overwrite)
    if source.has_audio:
        print(f"Try it: python own_sounds/predict.py {folder / task.head_files['three_layer']} FILE_OR_FOLDER")


def _parser() -> Parser:
    parser = Parser(__doc__)
    text = "a folder with a sub-folder per class; a table with the columns path and label, and maybe fold, split, group, start, end; "
    text += "labels of Raven or Audacity; Parquet files with audio; tars, as 'shards/{000..127}.tar'; or hf:OWNER/NAME"
    parser.add_argument("source", nargs="?", type=user_path, metavar="PLACE", help=text)
    text = "embeddings with labels, in place of sounds: .pt, .npz, .npy (a table beside), .csv, .parquet, .arrow, or a folder of parts"
    parser.add_argument("--features", type=user_path, metavar="FILE", help=text)
    text = f"compare several encoders, {FORMS}: one ranking with intervals and costs, and a report"
    parser.add_argument("--encoders", nargs="+", metavar="NAME", help=text)
    text = "finds the class in a clip's path, such as '^(\\d)_'; then no sub-folders are needed"
    parser.add_argument("--label-regex", metavar="REGEX", help=text)
    text = "finds the group (speaker, recording) in a clip's path, such as '_(\\w+)_'; no group is on both sides"
    parser.add_argument("--group-regex", metavar="REGEX", help=text)
    text = f"of recordings with events, add up to N clips each from between the events, as the class {BACKGROUND!r}"
    parser.add_argument("--background", type=int, default=0, metavar="N", help=text)
    add_columns(parser)
    task = Source(Path("NAME")).task()
    add_settings(parser, ExtractConfig, task, EXTRACT)
    add_settings(parser, FitConfig, task, FIT)
    add_shared(parser)
    add_launch(parser)
    return parser


if __name__ == "__main__":
    probe_main()
