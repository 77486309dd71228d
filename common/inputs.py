"""What a classification reads: a task's feature files, recognised, joined and prepared; and the controls' beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.clips import Task
from common.config import ConfigError
from common.features import FeatureSet
from common.files import sha256_of
from common.protocols import SHUFFLED
from common.train import check_fittable


@dataclass(frozen=True)
class Inputs:
    """The rows to fit and score.

    Attributes:
        features: chosen and divided as the task prepares them.
        own_words: the task's name for its division, where it has one.
        path: the file, or the folder of several; names them in messages.
        source: ``file``: the path or paths; ``sha256``: of all of them.
    """

    features: FeatureSet
    own_words: str
    path: Path
    source: dict[str, str]


def read_inputs(task: Task, config: Mapping[str, Any]) -> Inputs:
    """The rows that a configuration means.

    Raises:
        ConfigError, FeatureFileError, FitError, DatasetError: each with one line.
    """
    features, path, source = _load(task, config)
    features = _recognise(task, features, path, config)
    features, own_words = task.prepare(features, config, config["random_seed"])
    check_fittable(features, str(path))
    return Inputs(features, own_words, path, source)


def _load(task: Task, config: Mapping[str, Any]) -> tuple[FeatureSet, Path, dict[str, str]]:
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


def read_controls(
    task: Task, features: FeatureSet, config: Mapping[str, Any]
) -> tuple[dict[str, FeatureSet], dict[str, str]]:
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
    task: Task, features: FeatureSet, file: str, config: Mapping[str, Any]
) -> tuple[FeatureSet, Path, dict[str, str]]:
    """Other features of the same clips, in the same order and with the same division."""
    other, path, source = _load(task, {**config, "features": file})
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


def _recognise(task: Task, features: FeatureSet, path: Path, config: Mapping[str, Any]) -> FeatureSet:
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
