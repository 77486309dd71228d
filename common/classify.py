"""A feature file -> scores, pictures and trained heads: one run of a classification script, from end to end."""

from __future__ import annotations

import hashlib
import textwrap
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.clips import Task
from common.config import ConfigError
from common.features import FeatureSet
from common.files import exclusive, sha256_of, write_atomically
from common.heads import HEADS
from common.plots import plot_confusion, plot_curves, plot_label_efficiency, plot_per_class
from common.protocols import PROTOCOLS, SHUFFLED, ProtocolRun, run_protocol
from common.recipes import recipe_for
from common.results import earlier_record, remove_record, run_record, save_predictions, save_record
from common.splits import make_splits, random_split
from common.tables import as_markdown, as_text, efficiency_table, percent, remarks, score_table
from common.train import check_fittable

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
    features, path, source = _load_features(task, config)
    features = _recognise(task, features, path, config)
    features, own_words = task.prepare(features, config, config["random_seed"])
    check_fittable(features, str(path))
    for name in _protocols(config):  # refused before anything is written
        divide = make_splits if name == "official" else random_split
        divide(features, config["train_test_split"], config["random_seed"])
    controls, config["control_sha256"] = _controls(task, features, config)
    with exclusive(folder / f".{task.name}_results.lock", f"results into {folder}"):
        record = earlier_record(folder, task.name, config, source["sha256"], overwrite)
        if record is None:
            record = _fit_and_save(task, features, own_words, config, source, controls, folder)
        else:
            print(f"{folder / 'result.json'} is there already, of the same features and settings. Nothing to do.")
    _print_scores(task, record)
    if config["markdown"]:
        write_atomically(folder / "result.md", _markdown(task, record).encode())
        print(f"-> {folder / 'result.md'}")
    print(f"-> {folder}: {', '.join(['result.json', *record['files']])}")
    return record


def _load_features(task: Task, config: dict[str, Any]) -> tuple[FeatureSet, Path, dict[str, str]]:
    """The features to classify, the path that names them in messages, and where they come from.

    A task of several files takes those that are there, from the folder that --features names.
    """
    if not task.parts:
        path = Path(config["features"] or task.folder / task.features_file)
        features = FeatureSet.load(path)
        return features, path, {"file": str(path), "sha256": sha256_of(path)}
    folder = Path(config["features"] or task.folder)
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; {task.title} takes several from one folder: --features {folder.parent}")
    there = {dataset: folder / name for dataset, name in task.parts.items() if (folder / name).exists()}
    paths = list(there.values())
    if not paths:
        names = ", ".join(task.parts.values())
        raise ConfigError(
            f"{folder} holds none of {names}; run the task's extract_*.py first, or give --features FOLDER"
        )
    parts = [FeatureSet.load(path) for path in paths]
    for part, (dataset, path) in zip(parts, there.items(), strict=True):
        if part.meta.get("dataset", dataset) != dataset:
            raise stranger(task, path, part.meta["dataset"], dataset)
    together = hashlib.sha256("".join(map(sha256_of, paths)).encode()).hexdigest()
    features = FeatureSet.join(parts, [str(path) for path in paths], task.class_names)
    return features, folder, {"file": ", ".join(map(str, paths)), "sha256": together}


def _protocols(config: dict[str, Any]) -> tuple[str, ...]:
    return PROTOCOLS if config["protocol"] == "both" else (config["protocol"],)


def _controls(task: Task, features: FeatureSet, config: dict[str, Any]) -> tuple[dict[str, FeatureSet], dict[str, str]]:
    """The control features by name, and the checksums of their files."""
    controls, checksums = {}, {}
    for file in config["control_features"] or ():
        control, path, source = _control(task, features, file, config)
        name = path.stem if path.stem not in (*controls, SHUFFLED) else f"{path.parent.name}/{path.stem}"
        if name in controls:
            raise ConfigError(f"--control-features: two are called {name}; rename one")
        controls[name], checksums[name] = control, source["sha256"]
    return controls, checksums


def _control(
    task: Task, features: FeatureSet, file: str, config: dict[str, Any]
) -> tuple[FeatureSet, Path, dict[str, str]]:
    """Other features of the same clips, in the same order and with the same division."""
    other, path, source = _load_features(task, {**config, "features": file})
    if other.meta.get("dataset", task.name) != features.meta.get("dataset", task.name):
        raise stranger(task, path, str(other.meta.get("dataset")), str(features.meta.get("dataset", task.name)))
    place = {clip_id: row for row, clip_id in enumerate(other.clip_ids)}
    missing = [clip_id for clip_id in features.clip_ids if clip_id not in place]
    if missing:
        raise ConfigError(
            f"--control-features {path} lacks {len(missing)} of the clips (first: {missing[0]}); extract it from the "
            "same data"
        )
    rows = [place[clip_id] for clip_id in features.clip_ids]
    control = replace(features, features=other.features[rows])
    check_fittable(control, str(path))
    return control, path, source


def _fit_and_save(
    task: Task,
    features: FeatureSet,
    own_words: str,
    config: dict[str, Any],
    source: dict[str, str],
    controls: dict[str, FeatureSet],
    folder: Path,
) -> dict[str, Any]:
    """Run the protocols, write all of a run's files into `folder`, and return its record."""
    # The record comes last: without it, files of a fit that was cut short pass for nothing.
    remove_record(folder)
    provenance = {key: value for key, value in features.meta.items() if key not in PER_CLIP}
    protocols, files = {}, ["result.csv"]
    for name in _protocols(config):
        if protocols and not protocols["official"]["is_official"]:
            print(f"{task.title} has no official division: its own protocol is the random one")
            break
        run = run_protocol(name, features, config, own_words, task.scores, controls, provenance)
        protocols[name] = run.record
        files += _save_run(task, name, run, features, folder)
        if len(protocols) == 1:
            for kind, head in run.heads.items():
                head.save(folder / task.head_files[kind])
                files.append(task.head_files[kind])
    meta = {**provenance, **source, "clips": len(features), "class_names": features.class_names}
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


def _recognise(task: Task, features: FeatureSet, path: Path, config: dict[str, Any]) -> FeatureSet:
    """Check that the features belong to this task; complete a file of the original project's where possible."""
    if features.meta.get("dataset", task.name) != task.name:
        raise stranger(task, path, features.meta["dataset"], task.name)
    if features.features.shape[1] != config["feature_dim"]:
        raise ConfigError(
            f"{path} has {features.features.shape[1]} numbers a clip, the configuration says "
            f"{config['feature_dim']}; if that is meant, give --feature-dim {features.features.shape[1]}"
        )
    if not features.meta:
        recognised = task.recognise(features)
        print(f"{path} holds no provenance: which encoder made it, and from what audio, is not recorded")
        if recognised is not None:
            features, sentence = recognised
            print(sentence)
    return features


def stranger(task: Task, path: Path, found: str, wanted: str) -> ConfigError:
    """The error for features of another data set than the task's."""
    akin = found.partition("_")[0] == wanted.partition("_")[0]
    because = f": {task.only_its_own}" if task.only_its_own and akin else ""
    return ConfigError(f"{path} holds features of {found}, not of {wanted}{because}; give others with --features")


def _titles(task: Task, record: dict[str, Any], protocol: dict[str, Any]) -> str:
    seeds = len(protocol["seeds"])
    return (
        f"{task.title}: {record['features']['clips']:,} clips, {len(record['features']['class_names'])} classes, "
        f"{protocol['protocol']}; {record['config']['recipe']} recipe, "
        + (f"{seeds} seeds" if seeds > 1 else f"seed {protocol['seeds'][0]}")
    )


def _print_scores(task: Task, record: dict[str, Any]) -> None:
    for protocol in record["protocols"].values():
        print("\n" + textwrap.fill(_titles(task, record, protocol), COLUMNS))
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
        parts += [f"**{_titles(task, record, protocol)}** (percent)", as_markdown(score_table(protocol))]
        parts.append("\n".join(f"- {line}" for line in remarks(protocol)))
        if protocol["label_efficiency"]:
            parts.append(as_markdown(efficiency_table(protocol)))
    return "\n\n".join(parts) + "\n"
