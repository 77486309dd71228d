"""A feature file -> scores, pictures and trained heads: one run of a classification script, from end to end."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.clips import Task
from common.config import ConfigError
from common.features import FeatureSet
from common.files import exclusive, sha256_of
from common.heads import HEADS, TrainedHead
from common.metrics import majority_predictions
from common.plots import plot_confusion
from common.results import earlier_record, head_record, run_record, save_record
from common.splits import Split, make_splits
from common.train import check_fittable, fit_heads

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
    folder = Path(config["output_dir"] or task.results_folder or task.folder)
    features, path, source = _load_features(task, config)
    features = _recognise(task, features, path, config)
    features, own_protocol = task.prepare(features, config, config["random_seed"])
    check_fittable(features, str(path))
    splits, protocol = make_splits(features, config["train_test_split"], config["random_seed"])
    protocol = own_protocol or protocol
    with exclusive(folder / f".{task.name}_results.lock", f"results into {folder}"):
        record = earlier_record(folder, task.name, config, source["sha256"], overwrite)
        if record is None:
            record = _fit_and_save(task, features, splits, protocol, config, source, folder)
        else:
            print(f"{folder / 'result.json'} is there already, of the same features and settings. Nothing to do.")
    _print_scores(task, record)
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


def _fit_and_save(
    task: Task,
    features: FeatureSet,
    splits: list[Split],
    protocol: str,
    config: dict[str, Any],
    source: dict[str, str],
    folder: Path,
) -> dict[str, Any]:
    """Fit both heads on every split, write all of a run's files into `folder`, and return its record."""
    # The record comes last: without it, files of a fit that was cut short pass for nothing.
    (folder / "result.json").unlink(missing_ok=True)
    # Beside heads that each miss a fold, one that learns from every clip: the head to keep and use.
    everything = Split("all clips", np.arange(len(features)), np.arange(0))
    fits = [*splits, everything] if len(splits) > 1 else splits
    settings = {key: config[key] for key in ("epochs", "batch_size", "learning_rate", "hidden_dim")}
    provenance = {key: value for key, value in features.meta.items() if key not in PER_CLIP}
    labels = np.concatenate([features.labels.numpy()[split.test] for split in splits])
    records = {}
    for kind in HEADS:
        device = torch.device(config["device"])
        fitted = fit_heads(kind, features, fits, **settings, seed=config["random_seed"], device=device)
        scored, final = fitted[: len(splits)], fitted[-1]
        predictions = [
            (head.split.name, len(head.split.train), head.test_logits.argmax(dim=1).numpy()) for head in scored
        ]
        records[kind] = head_record(predictions, labels, len(features.class_names), task.scores)
        for row, head in zip(records[kind]["splits"], scored, strict=True):
            row |= {"epoch": head.epoch, "train_loss": head.train_loss, "valid_accuracy": head.valid_accuracy}
        trained = TrainedHead(kind, final.module, final.mean, final.scale, features.class_names, provenance)
        trained.save(folder / task.head_files[kind])
        title = f"{task.title}, {kind.replace('_', '-')} head: {records[kind]['mean']['accuracy']:.1%} ({protocol})"
        confusion = np.array(records[kind]["confusion"])
        plot_confusion(confusion, features.class_names, title, folder / f"confusion_{kind}.png")
    always = [
        (split.name, len(split.train), majority_predictions(features.labels.numpy()[split.train], len(split.test)))
        for split in splits
    ]
    majority = head_record(always, labels, len(features.class_names), task.scores)
    meta = {**provenance, **source, "clips": len(features), "class_names": features.class_names}
    files = ["result.csv", *(f"confusion_{kind}.png" for kind in HEADS), *task.head_files.values()]
    record = run_record(task.name, protocol, config, meta, records, majority, files)
    save_record(record, folder)
    return record


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


def _print_scores(task: Task, record: dict[str, Any]) -> None:
    n_splits = len(record["heads"]["linear"]["splits"])
    print(
        f"\n{task.title}: {record['features']['clips']:,} clips, {len(record['features']['class_names'])} classes, "
        f"{record['protocol']}"
    )
    names = list(record["majority_class"]["mean"])
    print(f"{'head':<15}" + "".join(f"{_score_title(name):>16}" for name in names))
    for kind, scored in (*record["heads"].items(), ("majority_class", record["majority_class"])):
        cells = [_percent(scored["mean"][name]) for name in names]
        if n_splits > 1:
            cells = [f"{cell} ± {_percent(scored['std'][name])}" for cell, name in zip(cells, names, strict=True)]
        print(f"{kind.replace('_', '-'):<15}" + "".join(f"{cell:>16}" for cell in cells))
    spread = f"mean ± standard deviation over {n_splits} folds; " if n_splits > 1 else ""
    epochs = f"last of {record['config']['epochs']} epochs"
    if record["heads"]["linear"]["splits"][0]["valid_accuracy"]:
        chosen = " and ".join(
            f"{head['splits'][0]['epoch']} ({kind.replace('_', '-')})" for kind, head in record["heads"].items()
        )
        epochs = f"of {record['config']['epochs']} epochs, {chosen} chosen on validation clips"
    print(f"({spread}{epochs}; scaler and head see training clips only)")


def _percent(score: float | None) -> str:
    return "undefined" if score is None or score != score else f"{100 * score:.1f}"


def _score_title(name: str) -> str:
    return {"macro_f1": "macro-F1", "icbhi_score": "ICBHI score"}.get(name, name) + " %"
