"""Any folder or table of sounds, or file of embeddings, as a task: features, both heads, scores: python own_sounds/probe.py PLACE."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import extract_task, print_status
from common.config import ConfigError, ExtractConfig, FitConfig, load_config
from common.datasets import Sounds
from common.encoder_name import FORMS, EncoderName, file_of
from common.flags import Arguments, Launch, Parser, add_launch, add_settings, add_shared, run, user_path
from common.scripts import call, flags, measure_encoders
from own_sounds.sounds import Source, absolute, add_source

EXTRACT = [key for key in ExtractConfig.model_fields if key not in ("data_root", "features")]
# What both kinds of settings have is asked for once, and what follows from the extraction not at all.
FOLLOWS = ("use_layer", "use_pool", "feature_dim")
FIT = [key for key in FitConfig.model_fields if key not in (*ExtractConfig.model_fields, *FOLLOWS)]


def probe_main(argv: Sequence[str] | None = None) -> None:
    run(lambda: _probe(_parser().parse_args(argv)))


def _probe(arguments: argparse.Namespace) -> None:
    if (arguments.source is None) == (arguments.features is None):
        raise ConfigError("give a folder or table of sounds, or embeddings of them with --features")
    place = absolute(arguments.source or arguments.features)
    source = replace(Source.of(place, arguments), has_audio=arguments.features is None)
    names = [EncoderName.parse(name).resolved(Path.cwd()) for name in arguments.encoders or ()]
    flag_values = {key: value for key, value in vars(arguments).items() if value is not None}
    extract, fit = _settings(flag_values, source.task().config_file)
    slug = "audiosep" if names else EncoderName.parse(extract.encoder).slug
    folder = fit.output_dir or source.task().output_dir_of(slug)
    if folder.is_file():
        raise ConfigError(f"--output-dir {folder} is a file; give a folder")
    if arguments.features is not None:
        if names or source.as_flags():
            what = "--encoders" if names else " ".join(source.as_flags())
            raise ConfigError(f"{what} is about sounds; with --features, columns are called label, group and so on")
        _probe_features(source, folder, fit, arguments.overwrite)
        return
    if not names:
        _probe_sounds(source, None, folder, extract, fit, arguments)
        return
    sounds = _read(source, folder / source.task().features_file, fit)  # before any encoder is loaded
    how = {key: getattr(extract, key) for key in ("checkpoint", "device", "trust_remote_code")}
    measure_encoders(names, folder, arguments.overwrite, *flags(**how))
    are_done = True
    for name in names:
        of_encoder = folder if name.slug == "audiosep" else folder / name.slug
        print(f"\n{name.label}")
        settings = extract.model_copy(update={"encoder": str(name)})
        are_done &= _probe_sounds(source, sounds, of_encoder, settings, fit, arguments)
    if are_done:
        call("analysis/summary.py", "--results", folder)
        call("analysis/report.py", "--results", folder)


def _settings(flag_values: Mapping[str, object], config_file: Path) -> tuple[ExtractConfig, FitConfig]:
    """The settings of extraction and heads. Of the layers and pools that a head joins by "+", the extraction writes all."""
    names = {key: str(flag_values[key]) for key in ("layer", "pool") if key in flag_values}
    separate = {key: name.replace("+", ",") for key, name in names.items()}
    joined = {f"use_{key}": name for key, name in names.items() if "+" in name}
    user_file = flag_values.get("config")
    assert user_file is None or isinstance(user_file, Path)
    extract = {key: flag_values[key] for key in EXTRACT if key in flag_values} | separate
    fit = {key: flag_values[key] for key in FIT if key in flag_values} | joined
    extract_config = load_config(ExtractConfig, config_file, user_file, extract)
    return extract_config, load_config(FitConfig, config_file, user_file, fit)


def _read(source: Source, features_file: Path, fit: FitConfig) -> Sounds:
    """The clips, which can be divided; otherwise an error before any is embedded."""
    from common.datasets.places import index_of
    from common.evaluation.protocol import check_clips

    sounds = source.read(index_of(features_file))
    for remark in sounds.remarks:
        print(remark)
    check_clips(replace(source, is_multilabel=sounds.is_multilabel).task(), sounds, fit)
    return sounds


def _probe_sounds(
    source: Source,
    sounds: Sounds | None,
    folder: Path,
    extract: ExtractConfig,
    fit: FitConfig,
    arguments: argparse.Namespace,
) -> bool:
    """Extract the features of one encoder, and train heads on them, unless another process does that; returns whether it was
    this one. `sounds` are the source's, if they were read before."""
    encoder, launch = EncoderName.parse(extract.encoder).slug, Launch.of(arguments)
    features_file = folder / file_of(source.task().features_file, encoder)
    if launch.status:
        print_status(features_file, launch.status)
        return False
    sounds = sounds or _read(source, features_file, fit)
    source = replace(source, is_multilabel=sounds.is_multilabel)
    task = source.task()
    how = Arguments([task], extract, {}, arguments.overwrite, launch)
    if not extract_task(task, sounds, features_file, how):
        return False  # another process joins the parts
    source.save(folder, sounds.root)
    _classify(source, features_file, folder, fit.model_copy(update={"encoder": extract.encoder}), arguments.overwrite)
    return True


def _probe_features(source: Source, folder: Path, fit: FitConfig, overwrite: bool) -> None:
    """Train heads on embeddings that another program has made, or this one before."""
    from common.features import FeatureSet

    features = FeatureSet.load(source.place)
    source = replace(source, is_multilabel=features.is_multilabel)
    print(f"{source.place}: {features!r}; without audio the report cannot play clips, and there is no ablation")
    folder.mkdir(parents=True, exist_ok=True)
    source.save(folder, source.place.parent)
    _classify(source, source.place, folder, fit, overwrite)


def _classify(source: Source, features: Path, folder: Path, fit: FitConfig, overwrite: bool) -> None:
    from common.encoder.device import fitting_device
    from common.evaluation.results import classify

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
    add_source(parser)
    task = Source(Path("NAME")).task()
    add_settings(parser, ExtractConfig, task, EXTRACT)
    add_settings(parser, FitConfig, task, FIT)
    add_shared(parser)
    add_launch(parser)
    return parser


if __name__ == "__main__":
    probe_main()
