"""What every script shares: its flags, its messages, and errors as one line with exit status 2."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.clips import DatasetError, DatasetNote, Task, Variants
from common.config import PROJECT_ROOT, ConfigError, load_config, read_config
from common.files import OutputError
from common.shards import Shard

# The rest of common imports torch and is imported where it is used: --help should not take seconds.
if TYPE_CHECKING:
    import torch


# configuration key -> flag, metavar, help
EXTRACT_FLAGS = {
    "data_root": ("--data-root", "FOLDER", "the unpacked data set"),
    "checkpoint": (
        "--checkpoint",
        "FILE",
        "AudioSep weights; controls: random:SEED (untrained encoder), logmel (no encoder)",
    ),
    "features": ("--output", "FILE", "the feature file to write"),
    "layer": ("--layer", "NAME", "pre_conv, encoder_block1 to encoder_block6, or bottleneck"),
    "pool": ("--pool", "NAME", "mean, std or max over time and frequency"),
    "condition": ("--condition", "WHAT", "none, zero, or a .npy or .pt file of a 512-d CLAP embedding"),
    "precision": ("--precision", "NAME", "fp32, bf16, auto; on a GPU also tf32, fp16"),
    "device": ("--device", "NAME", "auto, cpu, cuda or cuda:N"),
    "workers": ("--workers", "N", "threads that decode audio; 0 is one a core"),
}
CLASSIFY_FLAGS = {
    "features": ("--features", "FILE", "the feature file to read"),
    "output_dir": ("--output-dir", "FOLDER", "where results, pictures and trained heads go"),
    "epochs": ("--epochs", "N", "epochs; the best on validation clips is kept, or the last where there are none"),
    "batch_size": ("--batch-size", "N", "clips a step"),
    "learning_rate": ("--learning-rate", "X", "Adam's learning rate"),
    "protocol": ("--protocol", "NAME", "official, random (leaks related clips), or both"),
    "recipe": ("--recipe", "NAME", "paper, or tuned: this project's best with the same heads"),
    "scaler": ("--scaler", "NAME", "standard, whiten or none; the recipe's where not given"),
    "whiten_eps": (
        "--whiten-eps",
        "X",
        "whitening's shrinkage, 0 to 1; the recipe's, or chosen on validation clips where not given",
    ),
    "seeds": ("--seeds", "N", "repeat with N seeds"),
    "hidden_dim": ("--hidden-dim", "N", "width of the three-layer head"),
    "feature_dim": ("--feature-dim", "N", "numbers a clip that the feature file must have"),
    "train_test_split": ("--train-test-split", "X", "share of test clips where there are no official folds or splits"),
    "random_seed": ("--seed", "N", "seed of weights, order and random splits"),
    "device": ("--device", "NAME", "auto, cpu, cuda or cuda:N"),
}
CLASSIFY_SWITCHES = {
    "refit": ("--no-refit", False, "keep the head that chose its epoch, without fitting on validation clips too"),
    "probes": ("--probes", True, "logistic regression, nearest neighbours and nearest centroid beside the heads"),
    "controls": ("--controls", True, "the heads on shuffled labels beside those on true ones"),
    "markdown": ("--markdown", True, "write the table as Markdown too"),
}
CLASSIFY_LISTS = {
    "control_features": ("--control-features", "FILE", "other features of the same clips, judged beside these"),
    "label_fractions": ("--label-fractions", "X", "shares of the labels to learn from, such as 0.01 0.1 1"),
}
# What the tuned recipe brings itself, unless a flag says otherwise.
RECIPE_KEYS = ("epochs", "batch_size", "learning_rate", "hidden_dim")


def extract_main(task: Task | Variants, argv: Sequence[str] | None = None) -> None:
    """Run a task's extraction script: clips of the data root -> feature file."""
    run(lambda: _extract(task, argv))


def classify_main(task: Task | Variants, argv: Sequence[str] | None = None) -> None:
    """Run a task's classification script: feature file -> scores, pictures, trained heads."""
    run(lambda: _classify(task, argv))


def run(main: Callable[[], None]) -> None:
    """Call `main`; what a user can mend ends as one line on stderr and exit status 2, Ctrl-C with 130."""
    # A job scheduler's polite stop deserves the same care as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):  # a terminal of few letters is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", DatasetNote)
            warnings.showwarning = _show_warning
            main()
    except SystemExit:  # --help, or a flag that argparse refuses
        raise
    except KeyboardInterrupt as interrupt:
        text = str(interrupt) or "interrupted"
        status = 130
    except _expected_errors() as error:
        text = f"error: {error}"
        status = 2
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        text = f"error: {what}{error.strerror or error}"
        status = 2
    else:
        return
    print(" ".join(text.split()), file=sys.stderr)
    sys.exit(status)


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    """A note about the data as one line; any other warning with its place, as Python shows it."""
    place = "note: " if issubclass(category, DatasetNote) else f"{filename}:{lineno}: {category.__name__}: "
    print(f"{place}{message}", file=sys.stderr)


def _expected_errors() -> tuple[type[Exception], ...]:
    """The errors that say what a user can do; any other is a defect, and shows its traceback."""
    from common.checkpoint import CheckpointError
    from common.extract import ExtractionError
    from common.features import FeatureFileError
    from common.fetch import DownloadError
    from common.splits import SplitError
    from common.stack import FitError
    from common.unpack import UnpackError

    own = (ConfigError, DatasetError, OutputError, DownloadError, UnpackError)
    return (*own, CheckpointError, ExtractionError, FeatureFileError, SplitError, FitError)


def parse_flags(
    variants: Task | Variants, what: str, flags: dict[str, tuple[str, str, str]], argv: Sequence[str] | None
) -> tuple[list[Task], dict[str, Any], argparse.Namespace]:
    """The tasks that are meant, the effective configuration, and the flags as given (None where not).

    The configuration holds the values of a task's own flags too.
    """
    if isinstance(variants, Task):
        variants = Variants({}, {(): variants})
    task = next(iter(variants.tasks.values()))
    task_config = task.folder / "config.yaml"
    defaults = load_config(task_config)
    titles = "; or of ".join(variant.title for variant in variants.tasks.values())
    parser = argparse.ArgumentParser(description=f"{what} of {titles}.", allow_abbrev=False)
    for place, (flag, text) in enumerate(variants.flags.items()):
        values = list(dict.fromkeys(values[place] for values in variants.tasks))
        default = f"{text} (default: {values[0]})"
        parser.add_argument(flag, dest=f"variant{place}", choices=[*values, "both"], default=values[0], help=default)
    own_flags = () if flags is EXTRACT_FLAGS else task.flags
    for flag in own_flags:
        kind = {"choices": flag.choices} if flag.choices else {"action": "store_true"}
        default = f" (default: {flag.choices[0]})" if flag.choices else ""
        parser.add_argument(flag.name, help=flag.help + default, **kind)
    for key, (flag, metavar, text) in flags.items():
        default = default_path(task, key) if defaults[key] is None else defaults[key]
        if key == "features" and task.parts:
            metavar, text, default = "FOLDER", f"where {', '.join(task.parts.values())} lie", task.folder
        parser.add_argument(flag, dest=key, metavar=metavar, help=f"{text} (default: {default})".replace("%", "%%"))
    is_classification = flags is CLASSIFY_FLAGS
    for key, (flag, value, text) in CLASSIFY_SWITCHES.items() if is_classification else ():
        parser.add_argument(flag, dest=key, action="store_const", const=value, help=text)
    for key, (flag, metavar, text) in CLASSIFY_LISTS.items() if is_classification else ():
        parser.add_argument(flag, dest=key, nargs="+", metavar=metavar, help=f"{text} (default: none)")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="one's own YAML over common/config.yaml and the task's"
    )
    parser.add_argument("--overwrite", action="store_true", help="files made with other settings may be replaced")
    if flags is EXTRACT_FLAGS:
        text = "embed part i of n alone, for job arrays; the last part to be done writes the file (default: all)"
        parser.add_argument("--shard", metavar="I/N", help=text)
    given = parser.parse_args(argv)
    keys = [*flags, *CLASSIFY_SWITCHES, *CLASSIFY_LISTS] if is_classification else list(flags)
    flag_values = {key: getattr(given, key) for key in keys if getattr(given, key) is not None}
    config = load_config(task_config, given.config, flag_values)
    given.chosen_keys = {*flag_values, *(read_config(given.config) if given.config else ())}
    for flag in own_flags:
        value = getattr(given, flag.key)
        config[flag.key] = flag.default if value is None else value
    wanted = [getattr(given, f"variant{place}") for place in range(len(variants.flags))]
    tasks = [
        variant
        for values, variant in variants.tasks.items()
        if all(choice in (value, "both") for choice, value in zip(wanted, values, strict=True))
    ]
    if len(tasks) > 1:
        one_folder = len({variant.data_folder for variant in tasks}) == 1
        flag = next(flag for flag, choice in zip(variants.flags, wanted, strict=True) if choice == "both")
        for key in ("features", "output_dir") if one_folder else ("features", "output_dir", "data_root"):
            if key in flags and config[key] is not None:
                raise ConfigError(f"{flags[key][0]} (or {key}) names one place, {flag} both means several; drop one")
    return tasks, config, given


def default_path(task: Task, key: str) -> Path:
    """Where a task's `data_root`, `features` or `output_dir` is where nothing else is configured."""
    if key == "data_root":
        return PROJECT_ROOT / "data" / task.data_folder
    return task.folder / task.features_file if key == "features" else task.results_folder or task.folder


def data_root_of(task: Task) -> Path:
    """Where a task's data set lies, as configured."""
    return Path(load_config(task.folder / "config.yaml")["data_root"] or default_path(task, "data_root"))


def _device(config: dict[str, Any], given: argparse.Namespace) -> torch.device:
    """The device to use: one asked for by flag must exist, the configuration's CUDA is a wish."""
    import torch

    from common.encoder import resolve_device

    if given.device is None and config["device"].startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA GPU here: computing on the CPU")
        return torch.device("cpu")
    try:
        return resolve_device(config["device"])
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _extract(variants: Task | Variants, argv: Sequence[str] | None) -> None:
    tasks, config, given = parse_flags(variants, "Extract AudioSep embeddings", EXTRACT_FLAGS, argv)
    for task in tasks:
        _extract_one(task, config, given)


def _extract_one(task: Task, config: dict[str, Any], given: argparse.Namespace) -> None:
    try:
        shard = Shard.of(given.shard)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
    root = Path(config["data_root"] or default_path(task, "data_root"))
    clips = task.read_clips(root)
    import torch

    from common import logmel
    from common.checkpoint import CheckpointError
    from common.encoder import CHANNELS, POOLS, load_encoder
    from common.extract import default_workers, extract

    for key, known in (("layer", tuple(CHANNELS)), ("pool", POOLS)):
        if config[key] not in known:
            raise ConfigError(f"--{key} {config[key]} is unknown; choose one of {', '.join(known)}")
    is_logmel = config["checkpoint"] == logmel.NAME
    if is_logmel:
        config = {**config, "layer": logmel.NAME, "pool": "mean+std", "device": "cpu"}
    device = torch.device("cpu") if is_logmel else _device(config, given)
    processes = 1
    if given.shard is None and shard.count > 1:
        # torchrun: every process of a machine takes a GPU and a share of the cores
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", shard.count))
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    classes, folds = len({clip.class_name for clip in clips}), {clip.fold for clip in clips} - {None}
    in_folds = f", {len(folds)} fold{'s' * (len(folds) != 1)}" if folds else ""
    print(f"{task.title}: {len(clips):,} clips, {classes} classes{in_folds} in {root}")
    try:
        options = (config["checkpoint"], device, config["precision"], config["condition"])
        encoder = logmel.LogMelStatistics() if is_logmel else load_encoder(*options)
    except CheckpointError:
        raise
    except ValueError as error:  # the condition or the precision
        raise ConfigError(str(error)) from error
    info = encoder.info
    print(
        f"encoder: {info['checkpoint'][:19]}, {_release(info['release'])}; {config['layer']}, {config['pool']} pool, "
        f"condition {info['condition'][:19]}, {info['precision']} on {device}"
    )
    extract(
        clips,
        root,
        encoder,
        Path(config["features"] or default_path(task, "features")),
        dataset=task.name,
        class_order=task.class_names,
        layer=config["layer"],
        pool=config["pool"],
        workers=config["workers"] or default_workers(processes),
        overwrite=given.overwrite,
        shard=shard,
    )


def _release(release: str) -> str:
    return {
        "untrained": "untrained: its scores say nothing about AudioSep",
        "unknown": "a checkpoint unknown to this project (not one of the published releases)",
    }.get(release, f"known release {release}")


def _classify(variants: Task | Variants, argv: Sequence[str] | None) -> None:
    what = "Train the linear and the three-layer head on AudioSep embeddings"
    tasks, config, given = parse_flags(variants, what, CLASSIFY_FLAGS, argv)
    for task in tasks:
        _classify_one(task, dict(config), given)


def leave_to_recipe(config: dict[str, Any], chosen: Collection[str]) -> None:
    """Where the recipe is the tuned one, drop what it brings itself, but for the keys that a user chose."""
    if config["recipe"] == "tuned":
        config |= {key: None for key in RECIPE_KEYS if key not in chosen}


def _classify_one(task: Task, config: dict[str, Any], given: argparse.Namespace) -> None:
    from common.classify import classify

    config["device"] = str(_device(config, given))
    leave_to_recipe(config, given.chosen_keys)
    # What the encoder was is in the features' own record, not in today's configuration.
    about_encoder = EXTRACT_FLAGS.keys() - CLASSIFY_FLAGS.keys()
    classify(task, {key: value for key, value in config.items() if key not in about_encoder}, given.overwrite)
