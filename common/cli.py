"""The mains of the tasks' scripts: clips -> feature file, and feature file -> scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.config import ConfigError, ExtractConfig, load_config
from common.datasets import Clip, Task, Variants
from common.encoder_name import EncoderKind, EncoderName
from common.entry import run
from common.flags import Arguments, parse_classify_flags, parse_extract_flags

# Modules that import torch are imported where they are used, so that --help does not take seconds.
if TYPE_CHECKING:
    from common.encoder import Encoder, Output
    from common.features import FeatureSet


def extract_main(task: Task | Variants, argv: Sequence[str] | None = None) -> None:
    """Run a task's extraction script: clips under the data root -> feature file."""

    def extract_all() -> None:
        arguments = parse_extract_flags(task, argv)
        if arguments.shard is not None:
            from common.extraction import Shard

            Shard.parse(arguments.shard)  # fails before the data are read
        config = arguments.config
        for variant in arguments.tasks:
            root = config.data_root or variant.default_data_root
            features_file = config.features or variant.features_of(EncoderName.parse(config.encoder).slug)
            extract_task(variant, variant.read_clips(root), root, features_file, arguments)

    run(extract_all)


def classify_main(task: Task | Variants, argv: Sequence[str] | None = None) -> None:
    """Run a task's classification script: feature file -> scores, figures, trained heads."""

    def classify_all() -> None:
        arguments = parse_classify_flags(task, "Train the linear and the three-layer head on embeddings", argv)
        from common.encoder.device import fitting_device
        from common.evaluation.results import classify

        device = fitting_device(arguments.config.device)
        config = arguments.config.model_copy(update={"device": str(device)})
        for variant in arguments.tasks:
            classify(variant, config, arguments.options, device, arguments.overwrite)

    run(classify_all)


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
    encoder, outputs = _load_encoder(config, processes)
    print(_describe_clips(task, clips, root))
    print(_describe_encoder(encoder, outputs))
    workers = config.workers or default_workers(processes)
    options = ExtractOptions(workers, arguments.overwrite, shard, config.allow_missing)
    source = ClipList(clips, root, task.name, task.class_names)
    return extract(source, encoder, features_file, outputs, options)


def _load_encoder(config: ExtractConfig, processes: int) -> tuple[Encoder, tuple[Output, ...]]:
    """The encoder that a configuration names, and the outputs to extract."""
    import torch

    from common.encoder import AudioSepEncoder, choose_outputs, new_encoder, resolve_device

    name = EncoderName.parse(config.encoder)
    if Path(config.checkpoint).name == "logmel" and not Path(config.checkpoint).exists():
        raise ConfigError("--checkpoint logmel is now --encoder logmel")
    if name.kind is EncoderKind.AUDIOSEP:  # a wrong layer is refused before the weights are read
        choose_outputs(AudioSepEncoder.outputs, AudioSepEncoder.default_output, config.layer, config.pool)
    device = resolve_device(config.device)
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
    classes, folds = len({clip.class_name for clip in clips} - {""}), len({clip.fold for clip in clips} - {None})
    parts = [f"{task.title}: {len(clips):,} clips", *[f"{classes} classes"] * bool(classes)]
    parts += [f"{folds} fold{'s' * (folds != 1)}"] * bool(folds)
    return f"{', '.join(parts)} in {root}"


def _describe_encoder(encoder: Encoder, outputs: Sequence[Output]) -> str:
    info, where = encoder.info, f"{encoder.info.precision} on {encoder.device}"
    what = ", ".join(output.name for output in outputs[:4])
    more = f" and {len(outputs) - 4} more" if len(outputs) > 4 else ""
    embedded = f"{what}{more}: {sum(output.width for output in outputs):,} numbers per clip"
    if info.kind is EncoderKind.LOGMEL:
        return f"no encoder: {info.encoder}, as a control; {embedded}"
    if info.kind.is_plug_in:
        weights = f"{info.encoder}, weights {info.checkpoint[:19]}, at {encoder.sample_rate:,} Hz"
        fixed = getattr(encoder, "is_fixed_length", False)
        note = "; its feature extractor pads or cuts every clip to one length" if fixed else ""
        return f"encoder: {weights}; {embedded}; {where}{note}"
    release = f"known release {info.release}"
    if info.kind is EncoderKind.UNTRAINED:
        release = "untrained: its scores say nothing about AudioSep"
    elif info.release == "unknown":
        release = "a checkpoint unknown to this project (not one of the published releases)"
    return f"encoder: {info.checkpoint[:19]}, {release}; {embedded}; condition {info.condition[:19]}, {where}"


def data_root_of(task: Task) -> Path:
    """Where a task's data set is, as configured."""
    return load_config(ExtractConfig, task.config_file).data_root or task.default_data_root
