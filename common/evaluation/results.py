"""A feature file -> scores, figures and trained heads: one run of a classification script, from end to end."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from common.config import ConfigError, FigureFormat, FitConfig, ProtocolName
from common.datasets import DivisionKind, Task
from common.evaluation.load_features import PreparedFeatures, load_controls, load_features
from common.evaluation.plots import plot_confusion, plot_curves, plot_label_efficiency, plot_per_class, plot_reliability
from common.evaluation.predictions import prefix_of, save_predictions
from common.evaluation.protocol import PROTOCOLS, plan_fits, run_protocol
from common.evaluation.record import (
    ConfigRecord,
    FeaturesRecord,
    ProtocolRecord,
    RunRecord,
    earlier_record,
    remove_record,
)
from common.evaluation.text import efficiency_table, remarks, score_table
from common.features import FeatureSet
from common.files import exclusive, refuse_unwritable, remove_leftovers, sha256_of, write_atomically
from common.heads import HEADS, head_title, recipe_for
from common.text_table import as_markdown, as_text, percent

COLUMNS = 100  # the width of printed text


def classify(
    task: Task, config: FitConfig, options: Mapping[str, str | bool], device: torch.device, overwrite: bool
) -> RunRecord:
    """Fit and score both heads by the task's protocol; print the scores, write every file, return the record.

    If there is a finished run of the same features and settings, it is printed again instead.

    Args:
        config: the effective configuration.
        options: values of the task's own flags.
        device: where to fit.
        overwrite: the results of another run may be replaced.

    Raises:
        ConfigError, FeatureFileError, FitError, SplitError, DatasetError, OutputError: all are UserErrors.
    """
    _refuse_contradictions(config)
    prepared = load_features(task, config, options)
    features = prepared.features
    folder = config.output_dir or task.output_dir_of(prepared.encoder)
    for name in _protocols(config):  # fails before anything is written
        plan_fits(name, prepared.prepared, config.train_test_split, [config.random_seed])
    refuse_unwritable(folder / "result.json")
    controls, control_sha256 = load_controls(task, features, config.control_features or ())
    settings = ConfigRecord.of(config, options, control_sha256)
    with exclusive(folder / f".{task.name}_results.lock", f"results into {folder}"):
        record = earlier_record(folder, task, settings, prepared.source.sha256, overwrite)
        if record is None:
            record = _fit_and_save(task, prepared, settings, device, controls, folder)
        else:
            print(f"{folder / 'result.json'} already exists, for the same features and settings. Nothing to do.")
        record = _with_figures(task, record, config.figure_format, folder)
        for written in ("result.json", "result.csv", "result.md", *record.files):
            remove_leftovers(folder / written)
    _print_scores(task, record)
    if config.markdown:
        write_atomically(folder / "result.md", _markdown(task, record).encode())
        print(f"-> {folder / 'result.md'}")
    print(f"-> {folder}: {', '.join(['result.json', *record.files])}")
    return record


def _refuse_contradictions(config: FitConfig) -> None:
    if config.random_seed + config.seeds > 2**32:
        raise ConfigError(f"--seeds {config.seeds} starting at seed {config.random_seed} exceeds 4294967295")
    if config.whiten_eps is not None and recipe_for("linear", config).scaler != "whiten":
        raise ConfigError("--whiten-eps is the strength of whitening; add --scaler whiten, or --recipe tuned")


def _protocols(config: FitConfig) -> tuple[ProtocolName, ...]:
    return PROTOCOLS if config.protocol == "both" else (config.protocol,)


def _fit_and_save(
    task: Task,
    prepared: PreparedFeatures,
    config: ConfigRecord,
    device: torch.device,
    controls: Mapping[str, FeatureSet],
    folder: Path,
) -> RunRecord:
    """Run the protocols, write scores, predictions and heads into `folder`, and return the record."""
    features = prepared.features
    # The record is written last: without it, the files of an interrupted fit are ignored.
    remove_record(folder)
    protocols: dict[str, ProtocolRecord] = {}
    files = ["result.csv"]
    for name in _protocols(config):
        if protocols and protocols["official"].kind is DivisionKind.RANDOM:
            print(f"{task.title} has no official division, so only the random protocol is run")
            break
        run = run_protocol(name, prepared.prepared, config.fit_config, device, task.scores, controls, task.name)
        protocols[name] = run.record
        files += save_predictions(run.outcomes, features, folder, prefix_of(name))
        if len(protocols) == 1:
            for kind, head in run.heads.items():
                head.save(folder / task.head_files[kind])
                files.append(task.head_files[kind])
    source = FeaturesRecord.of(features, prepared.source.files, prepared.source.sha256)
    checksums = {name: sha256_of(folder / name) for name in files if name.endswith("predictions.csv")}
    record = RunRecord.of(task, config, source, protocols, files, controls).model_copy(update={"checksums": checksums})
    record.save(folder)
    return record


def _with_figures(task: Task, record: RunRecord, figure_format: FigureFormat, folder: Path) -> RunRecord:
    """The record with the figures that are missing in this format drawn; a figure that fails is a warning."""
    files = list(record.files)
    for name, protocol in record.protocols.items():
        for figure, draw in _figures(task, record.features, protocol).items():
            file = f"{prefix_of(name)}{figure}.{figure_format}"
            if file in files:
                continue
            try:
                draw(folder / file)
            except Exception as error:  # noqa: BLE001 - whatever a drawing library raises: the results are there
                print(f"warning: {folder / file} was not drawn: {' '.join(str(error).split())[:200]}", file=sys.stderr)
                continue
            files.append(file)
    if files != record.files:
        print(f"figures drawn as {figure_format}")
        record = record.model_copy(update={"files": files})
        record.save(folder)
    return record


def _figures(task: Task, features: FeaturesRecord, protocol: ProtocolRecord) -> dict[str, Callable[[Path], None]]:
    """A protocol's figures: the name without ending -> what draws it into a file."""
    figures: dict[str, Callable[[Path], None]] = {}
    below, class_names = f"{features.title}\n{protocol.division}", features.class_names
    for kind in HEADS:
        scored = protocol.heads[kind]
        title = f"{task.title}, {head_title(kind)} head: {scored.accuracy:.1%}\n{below}"
        confusion = np.array(scored.confusion)
        figures[f"confusion_{kind}"] = partial(plot_confusion, confusion, class_names, title)
        figures[f"per_class_{kind}"] = partial(plot_per_class, scored.per_class, class_names, title)
        figures[f"curves_{kind}"] = partial(plot_curves, scored.splits, title)
        if scored.calibration is not None:
            figures[f"reliability_{kind}"] = partial(plot_reliability, scored.calibration, title)
    if protocol.label_efficiency:
        title = f"{task.title}: how many labels are needed\n{below}"
        figures["label_efficiency"] = partial(plot_label_efficiency, protocol.label_efficiency, title)
    return figures


def run_title(task: Task, record: RunRecord, protocol: ProtocolRecord) -> str:
    """The line above a table: the task, the encoder, the clips, the division, the recipe, the seeds."""
    seeds, dataset = len(protocol.seeds), record.features.dataset
    is_other = dataset not in (None, task.name, *task.parts)  # recognised as part of another
    return (
        f"{dataset if is_other else task.title}, {record.features.title}: {record.features.clips:,} clips, "
        f"{len(record.features.class_names)} classes, {protocol.division}; {record.config.recipe} recipe, "
        + (f"{seeds} seeds" if seeds > 1 else f"seed {protocol.seeds[0]}")
    )


def _print_scores(task: Task, record: RunRecord) -> None:
    features = record.features
    output = f", {features.layer} {features.pool}".rstrip() if features.layer else ""
    print(f"features of {features.title}{output}: {features.width:,} numbers per clip")
    for protocol in record.protocols.values():
        print("\n" + textwrap.fill(run_title(task, record, protocol), COLUMNS))
        print(as_text(score_table(protocol)))
        for line in remarks(protocol):
            print(textwrap.fill(line, COLUMNS))
        if protocol.label_efficiency:
            print(as_text(efficiency_table(protocol)))
    if len(record.protocols) == 2:
        print(f"\n{_difference(record)}")


def _difference(record: RunRecord) -> str:
    official, random = (record.protocols[name].heads for name in PROTOCOLS)
    table = [["head", record.protocols["official"].kind.label, "random", "difference"]]
    for kind in official:
        scores = official[kind].accuracy, random[kind].accuracy
        table.append([head_title(kind), *map(percent, scores), f"{100 * (scores[1] - scores[0]):+.1f}"])
    return as_text(table)


def _markdown(task: Task, record: RunRecord) -> str:
    parts = []
    for protocol in record.protocols.values():
        parts += [f"**{run_title(task, record, protocol)}** (percent)", as_markdown(score_table(protocol))]
        parts.append("\n".join(f"- {line}" for line in remarks(protocol)))
        if protocol.label_efficiency:
            parts.append(as_markdown(efficiency_table(protocol)))
    return "\n\n".join(parts) + "\n"
