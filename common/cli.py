"""Entry points of the scripts, and their command-line flags, generated from the declared settings."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic

from common.config import (
    UNSET,
    Config,
    ConfigError,
    ExtractConfig,
    FitConfig,
    flag_of,
    is_list,
    load_config,
    metavar_of,
)
from common.datasets import Clip, Task, Variants
from common.encoder_name import EncoderKind, EncoderName
from common.entry import run
from common.flags import Parser

# Modules that import torch are imported where they are used, so that --help does not take seconds.
if TYPE_CHECKING:
    import torch

    from common.encoder import Encoder, Output
    from common.features import FeatureSet


def extract_main(task: Task | Variants, argv: Sequence[str] | None = None) -> None:
    """Run a task's extraction script: clips under the data root -> feature file."""
    run(lambda: _extract(task, argv))


def classify_main(task: Task | Variants, argv: Sequence[str] | None = None) -> None:
    """Run a task's classification script: feature file -> scores, figures, trained heads."""
    run(lambda: _classify(task, argv))


@dataclass(frozen=True)
class Arguments(Generic[Config]):
    """A script's parsed command line.

    Attributes:
        tasks: the tasks to run.
        config: the effective configuration.
        options: the values of the task's own flags.
        has_device: whether the device was given as a flag.
        overwrite: whether files made with other settings may be replaced.
        shard: ``i/n``, or None.
    """

    tasks: list[Task]
    config: Config
    options: dict[str, str | bool]
    has_device: bool
    overwrite: bool
    shard: str | None


def parse_extract_flags(task: Task | Variants, argv: Sequence[str] | None) -> Arguments[ExtractConfig]:
    """Parse the flags of an extraction script."""
    variants = _as_variants(task)
    parser = _new_parser("Extract embeddings", variants)
    add_settings(parser, ExtractConfig, variants.first, ExtractConfig.model_fields)
    add_shared(parser)
    text = "embed only shard i of n, for job arrays; the last shard to finish writes the file (default: all)"
    parser.add_argument("--shard", metavar="I/N", help=text)
    return _parsed(parser, variants, ExtractConfig, argv)


def parse_classify_flags(
    task: Task | Variants, what: str, argv: Sequence[str] | None, only: Collection[str] | None = None
) -> Arguments[FitConfig]:
    """Parse the flags of a classification script, or of another script that reads features.

    Args:
        what: what the script does, for --help.
        only: the settings to offer as flags; None: all.
    """
    variants = _as_variants(task)
    parser = _new_parser(what, variants)
    for flag in variants.first.flags:
        text = flag.help + (f" (default: {flag.choices[0]})" if flag.choices else "")
        if flag.choices:
            parser.add_argument(flag.name, choices=flag.choices, help=text)
        else:
            parser.add_argument(flag.name, action="store_true", default=None, help=text)
    add_settings(parser, FitConfig, variants.first, FitConfig.model_fields if only is None else only)
    add_shared(parser)
    return _parsed(parser, variants, FitConfig, argv)


def _as_variants(task: Task | Variants) -> Variants:
    return Variants({}, {(): task}) if isinstance(task, Task) else task


def _new_parser(what: str, variants: Variants) -> argparse.ArgumentParser:
    """A parser with the flags that choose among the variants."""
    titles = "; or of ".join(variant.title for variant in variants.tasks.values())
    parser = Parser(f"{what} of {titles}.")
    for place, (flag, text) in enumerate(variants.flags.items()):
        values = list(dict.fromkeys(values[place] for values in variants.tasks))
        default = f"{text} (default: {values[0]})"
        parser.add_argument(flag, dest=f"variant{place}", choices=[*values, "both"], default=values[0], help=default)
    return parser


def add_settings(parser: argparse.ArgumentParser, kind: type[Config], task: Task, keys: Collection[str]) -> None:
    """Add a flag for each setting, with its current default in the help text; values are not converted here."""
    defaults = load_config(kind, task.config_file)
    for key in keys:
        field, default = kind.model_fields[key], getattr(defaults, key)
        text = field.description or ""
        if field.annotation is bool:
            is_on = field.default
            text = f"no {text}" if is_on else text
            parser.add_argument(flag_of(field), dest=key, action="store_const", const=not is_on, help=text)
            continue
        metavar = metavar_of(field)
        if key == "features" and task.parts and kind is FitConfig:
            metavar, text, default = "FOLDER", f"where {', '.join(task.parts.values())} are", task.folder
        if default is None:
            default = _unset(key, task)
        parser.add_argument(
            flag_of(field),
            dest=key,
            metavar=metavar,
            nargs="+" if is_list(field) else None,
            help=f"{text} (default: {default})".replace("%", "%%"),
        )


def _unset(key: str, task: Task) -> Path | str:
    """What a setting without a value means, for --help."""
    places = {
        "data_root": task.default_data_root,
        "features": task.default_features,
        "output_dir": task.default_output_dir,
    }
    return places[key] if key in places else UNSET[key]


def add_shared(parser: argparse.ArgumentParser) -> None:
    """Add the flags ``--config`` and ``--overwrite``."""
    text = "your own YAML file, which overrides common/config.yaml and the task's"
    parser.add_argument("--config", type=Path, metavar="FILE", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace files that were made with other settings")


def _parsed(
    parser: argparse.ArgumentParser, variants: Variants, kind: type[Config], argv: Sequence[str] | None
) -> Arguments[Config]:
    given = vars(parser.parse_args(argv))
    flags = {key: given[key] for key in kind.model_fields if given.get(key) is not None}
    config = load_config(kind, variants.first.config_file, given["config"], flags)
    options = {
        flag.key: flag.default if given.get(flag.key) is None else given[flag.key] for flag in variants.first.flags
    }
    wanted = [given[f"variant{place}"] for place in range(len(variants.flags))]
    tasks = [
        task
        for values, task in variants.tasks.items()
        if all(choice in (value, "both") for choice, value in zip(wanted, values, strict=True))
    ]
    if len(tasks) > 1:
        both = next(flag for flag, choice in zip(variants.flags, wanted, strict=True) if choice == "both")
        _refuse_one_place_for_several(config, tasks, both)
    return Arguments(tasks, config, options, "device" in flags, given["overwrite"], given.get("shard"))


def _refuse_one_place_for_several(config: ExtractConfig | FitConfig, tasks: Sequence[Task], flag: str) -> None:
    has_one_data_folder = len({task.data_folder for task in tasks}) == 1
    for key in ("features", "output_dir", "data_root"):
        if key == "data_root" and has_one_data_folder:
            continue
        if getattr(config, key, None) is not None:
            own_flag = flag_of(type(config).model_fields[key])
            raise ConfigError(
                f"{own_flag} (or {key}) names one location, but {flag} both needs several; give only one of them"
            )


def _extract(variants: Task | Variants, argv: Sequence[str] | None) -> None:
    arguments = parse_extract_flags(variants, argv)
    if arguments.shard is not None:
        from common.extraction import Shard

        Shard.parse(arguments.shard)  # fails before the data are read
    for task in arguments.tasks:
        _extract_one(task, arguments)


def _extract_one(task: Task, arguments: Arguments[ExtractConfig]) -> None:
    config = arguments.config
    root = config.data_root or task.default_data_root
    features_file = config.features or task.features_of(EncoderName.parse(config.encoder).slug)
    extract_task(task, task.read_clips(root), root, features_file, arguments)


def extract_task(
    task: Task, clips: Sequence[Clip], root: Path, features_file: Path, arguments: Arguments[ExtractConfig]
) -> FeatureSet | None:
    """Embed a task's clips as the flags say, and print how; returns as `extract`."""
    config = arguments.config
    from common.extraction import ClipList, ExtractOptions, Shard, default_workers, extract

    shard = Shard.parse(arguments.shard)
    processes = 1
    if arguments.shard is None and shard.count > 1:  # torchrun: the processes of a machine share its cores and GPUs
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", shard.count))
    encoder, outputs = _load_encoder(config, arguments.has_device, processes)
    print(_describe_clips(task, clips, root))
    print(_describe_encoder(encoder, outputs))
    options = ExtractOptions(
        config.workers or default_workers(processes), arguments.overwrite, shard, config.allow_missing
    )
    source = ClipList(clips, root, task.name, task.class_names)
    return extract(source, encoder, features_file, outputs, options)


def _load_encoder(config: ExtractConfig, has_device: bool, processes: int) -> tuple[Encoder, tuple[Output, ...]]:
    """The encoder that a configuration names, and the outputs to extract."""
    import torch

    from common.encoder import AudioSepEncoder, choose_outputs, new_encoder

    name = EncoderName.parse(config.encoder)
    if Path(config.checkpoint).name == "logmel" and not Path(config.checkpoint).exists():
        raise ConfigError("--checkpoint logmel is now --encoder logmel")
    if name.kind is EncoderKind.AUDIOSEP:  # a wrong layer is refused before the weights are read
        choose_outputs(AudioSepEncoder.outputs, AudioSepEncoder.default_output, config.layer, config.pool)
    device = pick_device(config.device, has_device)
    if processes > 1 and device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    encoder = new_encoder(
        name,
        config.checkpoint,
        device,
        precision=config.precision,
        condition=config.condition,
        padding=config.padding,
        trust_remote_code=config.trust_remote_code,
    )
    return encoder, choose_outputs(encoder.outputs, encoder.default_output, config.layer, config.pool)


def _describe_clips(task: Task, clips: Sequence[Clip], root: Path) -> str:
    classes, folds = len({clip.class_name for clip in clips} - {""}), {clip.fold for clip in clips} - {None}
    in_folds = f", {len(folds)} fold{'s' * (len(folds) != 1)}" if folds else ""
    labelled = f", {classes} classes" if classes else ""
    return f"{task.title}: {len(clips):,} clips{labelled}{in_folds} in {root}"


def _describe_encoder(encoder: Encoder, outputs: Sequence[Output]) -> str:
    info = encoder.info
    what = ", ".join(output.name for output in outputs[:4])
    more = f" and {len(outputs) - 4} more" if len(outputs) > 4 else ""
    width = sum(output.width for output in outputs)
    embedded = f"{what}{more}: {width:,} numbers per clip"
    if info.kind is EncoderKind.LOGMEL:
        return f"no encoder: {info.encoder}, as a control; {embedded}"
    if info.kind.is_plug_in:
        fixed = getattr(encoder, "is_fixed_length", False)
        note = "; its feature extractor pads or cuts every clip to one length" if fixed else ""
        return (
            f"encoder: {info.encoder}, weights {info.checkpoint[:19]}, at {encoder.sample_rate:,} Hz; {embedded}; "
            f"{info.precision} on {encoder.device}{note}"
        )
    release = f"known release {info.release}"
    if info.kind is EncoderKind.UNTRAINED:
        release = "untrained: its scores say nothing about AudioSep"
    elif info.release == "unknown":
        release = "a checkpoint unknown to this project (not one of the published releases)"
    return (
        f"encoder: {info.checkpoint[:19]}, {release}; {embedded}; "
        f"condition {info.condition[:19]}, {info.precision} on {encoder.device}"
    )


def pick_device(name: str, is_required: bool) -> torch.device:
    """The named device; the CPU if it is a CUDA GPU that no flag requires, and there is none."""
    import torch

    from common.encoder import resolve_device

    if not is_required and name.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA GPU found: using the CPU")
        return torch.device("cpu")
    return resolve_device(name)


def _classify(variants: Task | Variants, argv: Sequence[str] | None) -> None:
    what = "Train the linear and the three-layer head on embeddings"
    arguments = parse_classify_flags(variants, what, argv)
    from common.encoder.device import fitting_device
    from common.evaluation.results import classify

    device = fitting_device(pick_device(arguments.config.device, arguments.has_device))
    config = arguments.config.model_copy(update={"device": str(device)})
    for task in arguments.tasks:
        classify(task, config, arguments.options, device, arguments.overwrite)


def data_root_of(task: Task) -> Path:
    """Where a task's data set is, as configured."""
    return load_config(ExtractConfig, task.config_file).data_root or task.default_data_root
