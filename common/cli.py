"""The mains of the tasks' scripts: clips -> feature file, and feature file -> scores."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common.config import ExtractConfig, FitConfig, load_config
from common.datasets import Clip, Sounds, Task, Variants
from common.encoder_name import EncoderKind, EncoderName
from common.flags import Arguments, parse_flags, run

# Modules that import torch are imported where they are used, so that --help does not take seconds.
if TYPE_CHECKING:
    import torch

    from common.encoder import Encoder, Output
    from common.extraction import ClipList

NOT_RELEASED = {
    "unknown": "a checkpoint unknown to this project (not one of the published releases)",
    "untrained": "untrained: its scores say nothing about AudioSep",
}


def extract_main(task: Task | Variants, argv: Sequence[str] | None = None) -> None:
    """Run a task's extraction script: clips under the data root -> feature file."""

    def extract_all() -> None:
        arguments = parse_flags(task, "Extract embeddings", argv, ExtractConfig)
        config = arguments.config
        from common.datasets.places import index_of, read_task

        for variant in arguments.tasks:
            root = config.data_root or variant.default_data_root
            features_file = config.features or variant.features_of(EncoderName.parse(config.encoder).slug)
            if arguments.launch.status:
                print_status(features_file, arguments.launch.status)
                continue
            sounds = read_task(variant, root, index_of(features_file))
            for remark in sounds.remarks:
                print(remark)
            if extract_task(variant, sounds, features_file, arguments) and variant.classify:
                script, *flags = variant.classify
                flags += [] if config.encoder == "audiosep" else ["--encoder", config.encoder]
                flags += ["--features", str(features_file)] if config.features and variant.head_files else []
                print(f"Next: python {shlex.join([os.path.relpath(variant.folder / script), *flags])}")

    run(extract_all)


def classify_main(task: Task | Variants, argv: Sequence[str] | None = None) -> None:
    """Run a task's classification script: feature file -> scores, figures, trained heads."""

    def classify_all() -> None:
        arguments = parse_flags(task, "Train the linear and the three-layer head on embeddings", argv, FitConfig)
        from common.encoder.device import fitting_device
        from common.evaluation.results import classify

        device = fitting_device(arguments.config.device)
        config = arguments.config.model_copy(update={"device": str(device)})
        for variant in arguments.tasks:
            classify(variant, config, arguments.options, device, arguments.overwrite)
        print("All tasks in one table: python analysis/summary.py; as a page: python analysis/report.py")

    run(classify_all)


def print_status(output: Path, form: str) -> None:
    """Print how far the extraction of an output is: as ``"text"`` or ``"json"``."""
    from common.extraction.work import read_status

    status = read_status(output)
    if form == "json":
        print(json.dumps(status._asdict()))
    elif status.clips is None:
        state = "finished" if status.is_finished else f"no part is made; {status.parts_in_work} in work"
        print(f"{output}: {state}")
    else:
        clips = f"{status.clips_done:,} of {status.clips:,} clips done, {status.clips_failed:,} failed"
        parts = f"{status.parts_done:,} done, {status.parts_in_work} in work, {status.parts_missing:,} missing"
        left = status.seconds_left
        speed = f"; {status.clips_per_s:.3g} clips/s, {left / 60:,.1f} min left" if left else ""
        print(f"{output}: {clips}; parts: {parts}{speed}{'; finished' * status.is_finished}")


def extract_task(
    task: Task, sounds: Sounds, output: Path, how: Arguments[ExtractConfig], clips: Iterable[Clip] | None = None
) -> bool:
    """Embed a task's clips, or `clips` cut from them, and print how; returns whether the output is finished."""
    config, launch, share = how.config, how.launch, how.launch.share
    from common.encoder import configured_encoder
    from common.extraction import ClipList, ExtractOptions, Threads, extract
    from common.extraction.launchers import OnDevices, on_ray

    if share.launcher not in ("", "--shard"):
        print(f"process {share} of {share.launcher}")
    # The processes of torchrun share a machine's cores and GPUs.
    is_torchrun = share.launcher == "torchrun"
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", share.count)) if is_torchrun else 1
    source = ClipList(
        clips or sounds.clips, sounds.root, task.name, task.class_names, task.is_multilabel, sounds.origin
    )
    print(_describe_clips(task, source))
    options = ExtractOptions(how.overwrite, share, config.allow_missing, config.part_size)
    load = partial(configured_encoder, config)
    if launch.ray:
        with on_ray(load, launch.ray, config.device) as actors:
            print(f"actors of Ray: {len(actors.actors)}")
            return extract(actors, source, output, options)
    devices = _devices(config, is_torchrun)
    encoder, outputs = load(devices[0])
    print(_describe_encoder(encoder, outputs))
    threads = Threads.shared(processes * len(devices), config.workers)
    if len(devices) > 1:
        print(f"one process for each of {len(devices)} GPUs")
    return extract(OnDevices(encoder, outputs, threads, load, devices[1:]), source, output, options)


def _devices(config: ExtractConfig, is_torchrun: bool) -> list[torch.device]:
    """Where to compute: every GPU, if no one of them is named, or this process's under torchrun."""
    import torch

    from common.encoder import resolve_device

    device = resolve_device(config.device)
    if device.type != "cuda" or device.index is not None:
        return [device]
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [gpus[int(os.environ.get("LOCAL_RANK", 0)) % len(gpus)]] if is_torchrun else gpus


def _describe_clips(task: Task, clips: ClipList) -> str:
    """What is there, and which of the data set's classes are not."""
    present, folds = clips.present_classes, len(set(clips.columns["fold"].unique().to_pylist()) - {None})
    whole = task.official_counts.clips or len(clips)
    count = f"{len(clips):,}" + f" of {whole:,}" * (len(clips) != whole)
    more = f", {len(present)} classes" * bool(present) + f", {folds} fold{'s' * (folds != 1)}" * bool(folds)
    absent = [name for name in task.class_names or () if name not in present]
    names = ", ".join(absent[:6]) + ", ..." * (len(absent) > 6)
    without = f"; no clips of {names} ({len(absent)} of {len(task.class_names or ())} classes)" * bool(absent)
    return f"{task.title}: {count} clips{more} in {clips.root}{without}"


def _describe_encoder(encoder: Encoder, outputs: Sequence[Output]) -> str:
    info, where = encoder.info, f"{encoder.info.precision} on {encoder.device}"
    what = ", ".join(output.name for output in outputs[:4]) + f" and {len(outputs) - 4} more" * (len(outputs) > 4)
    embedded = f"{what}: {sum(output.width for output in outputs):,} numbers per clip"
    if info.kind is EncoderKind.LOGMEL:
        return f"no encoder: {info.encoder}, as a control; {embedded}"
    if info.kind.is_plug_in:
        is_fixed = getattr(encoder, "is_fixed_length", False)
        note = "; its feature extractor pads or cuts every clip to one length" * is_fixed
        return f"encoder: {info.encoder}, weights {info.checkpoint[:19]}; {embedded}; {where}{note}"
    release = NOT_RELEASED.get(info.release, f"known release {info.release}")
    return f"encoder: {info.checkpoint[:19]}, {release}; {embedded}; condition {info.condition[:19]}, {where}"


def data_root_of(task: Task) -> Path:
    """Where a task's data set is, as configured."""
    return load_config(ExtractConfig, task.config_file).data_root or task.default_data_root
