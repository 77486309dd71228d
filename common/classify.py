"""A feature file -> scores, pictures and trained heads: one run of a classification script, from end to end."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.clips import Task
from common.config import ConfigError
from common.features import FeatureSet
from common.files import exclusive, write_atomically
from common.heads import HEADS
from common.inputs import Inputs, read_controls, read_inputs
from common.plots import plot_confusion, plot_curves, plot_label_efficiency, plot_per_class
from common.protocols import PROTOCOLS, ProtocolRun, run_protocol
from common.recipes import recipe_for
from common.results import earlier_record, remove_record, run_record, save_predictions, save_record
from common.splits import make_splits, random_split
from common.tables import as_markdown, as_text, efficiency_table, percent, remarks, score_table

COLUMNS = 100  # of a terminal
# What a feature file's record says clip by clip; a result's record points to the file instead.
PER_CLIP = ("failed", "samples", "audio_stamps")


def classify(task: Task, config: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """Fit and score both heads by the task's protocol; print the scores, write every file, return the record.

    A finished run of the same features and settings is printed again instead.

    Args:
        config: the effective configuration, with the values of the task's own flags and the device to use.
        overwrite: the results of another run may be replaced.

    Raises:
        ConfigError, FeatureFileError, FitError, SplitError, DatasetError, OutputError: each with one line.
    """
    if config["random_seed"] + config["seeds"] > 2**32:
        raise ConfigError(f"--seeds {config['seeds']} from seed {config['random_seed']} on end beyond 4294967295")
    if config["whiten_eps"] is not None and recipe_for("linear", config).scaler != "whiten":
        raise ConfigError("--whiten-eps is the strength of whitening; add --scaler whiten, or --recipe tuned")
    # In numbers, since a later version's recipe of the same name may be another.
    config = config | {f"recipe_{kind}": asdict(recipe_for(kind, config)) for kind in HEADS}
    folder = Path(config["output_dir"] or task.results_folder or task.folder)
    inputs = read_inputs(task, config)
    features = inputs.features
    for name in _protocols(config):  # refused before anything is written
        divide = make_splits if name == "official" else random_split
        divide(features, config["train_test_split"], config["random_seed"])
    controls, config["control_sha256"] = read_controls(task, features, config)
    with exclusive(folder / f".{task.name}_results.lock", f"results into {folder}"):
        record = earlier_record(folder, task.name, config, inputs.source["sha256"], overwrite)
        if record is None:
            record = _fit_and_save(task, inputs, config, controls, folder)
        else:
            print(f"{folder / 'result.json'} is there already, of the same features and settings. Nothing to do.")
    _print_scores(task, record)
    if config["markdown"]:
        write_atomically(folder / "result.md", _markdown(task, record).encode())
        print(f"-> {folder / 'result.md'}")
    print(f"-> {folder}: {', '.join(['result.json', *record['files']])}")
    return record


def _protocols(config: dict[str, Any]) -> tuple[str, ...]:
    return PROTOCOLS if config["protocol"] == "both" else (config["protocol"],)


def _fit_and_save(
    task: Task,
    inputs: Inputs,
    config: dict[str, Any],
    controls: dict[str, FeatureSet],
    folder: Path,
) -> dict[str, Any]:
    """Run the protocols, write all of a run's files into `folder`, and return its record."""
    features = inputs.features
    # The record comes last: without it, files of a fit that was cut short pass for nothing.
    remove_record(folder)
    provenance = {key: value for key, value in features.meta.items() if key not in PER_CLIP}
    protocols, files = {}, ["result.csv"]
    for name in _protocols(config):
        if protocols and not protocols["official"]["is_official"]:
            print(f"{task.title} has no official division: its own protocol is the random one")
            break
        run = run_protocol(name, features, config, inputs.own_words, task.scores, controls, provenance)
        protocols[name] = run.record
        files += _save_run(task, name, run, features, folder)
        if len(protocols) == 1:
            for kind, head in run.heads.items():
                head.save(folder / task.head_files[kind])
                files.append(task.head_files[kind])
    meta = {**provenance, **inputs.source, "clips": len(features), "class_names": features.class_names}
    record = run_record(task.name, config, meta, protocols, files)
    save_record(record, folder)
    return record


def _save_run(task: Task, name: str, run: ProtocolRun, features: FeatureSet, folder: Path) -> list[str]:
    """Write a protocol's predictions and pictures; the files of the random one say so in their names."""
    prefix = "" if name == "official" else f"{name}_"
    files = save_predictions(run.outcomes, features, folder, prefix)
    for kind in HEADS:
        scored = run.record["heads"][kind]
        accuracy = f"{scored['mean']['accuracy']:.1%}"
        title = f"{task.title}, {kind.replace('_', '-')} head: {accuracy}\n{run.record['protocol']}"
        names = features.class_names
        plot_confusion(np.array(scored["confusion"]), names, title, folder / f"{prefix}confusion_{kind}.png")
        plot_per_class(scored["per_class"], names, title, folder / f"{prefix}per_class_{kind}.png")
        plot_curves(scored["splits"], title, folder / f"{prefix}curves_{kind}.png")
        files += [f"{prefix}{picture}_{kind}.png" for picture in ("confusion", "per_class", "curves")]
    if run.record["label_efficiency"]:
        file = f"{prefix}label_efficiency.png"
        title = f"{task.title}: how many labels are needed\n{run.record['protocol']}"
        plot_label_efficiency(run.record["label_efficiency"], title, folder / file)
        files.append(file)
    return files


def run_title(task: Task, record: dict[str, Any], protocol: dict[str, Any]) -> str:
    """What stands above a table: the task, its clips, the protocol, the recipe, the seeds."""
    seeds = len(protocol["seeds"])
    return (
        f"{task.title}: {record['features']['clips']:,} clips, {len(record['features']['class_names'])} classes, "
        f"{protocol['protocol']}; {record['config']['recipe']} recipe, "
        + (f"{seeds} seeds" if seeds > 1 else f"seed {protocol['seeds'][0]}")
    )


def _print_scores(task: Task, record: dict[str, Any]) -> None:
    for protocol in record["protocols"].values():
        print("\n" + textwrap.fill(run_title(task, record, protocol), COLUMNS))
        print(as_text(score_table(protocol)))
        for line in remarks(protocol):
            print(textwrap.fill(line, COLUMNS))
        if protocol["label_efficiency"]:
            print(as_text(efficiency_table(protocol)))
    if len(record["protocols"]) == 2:
        print(f"\n{_difference(record)}")


def _difference(record: dict[str, Any]) -> str:
    official, random = (record["protocols"][name]["heads"] for name in PROTOCOLS)
    table = [["head", "official", "random", "difference"]]
    for kind in official:
        scores = official[kind]["mean"]["accuracy"], random[kind]["mean"]["accuracy"]
        flattery = f"{100 * (scores[1] - scores[0]):+.1f}"
        table.append([kind.replace("_", "-"), percent(scores[0]), percent(scores[1]), flattery])
    return as_text(table)


def _markdown(task: Task, record: dict[str, Any]) -> str:
    parts = []
    for protocol in record["protocols"].values():
        parts += [f"**{run_title(task, record, protocol)}** (percent)", as_markdown(score_table(protocol))]
        parts.append("\n".join(f"- {line}" for line in remarks(protocol)))
        if protocol["label_efficiency"]:
            parts.append(as_markdown(efficiency_table(protocol)))
    return "\n\n".join(parts) + "\n"
