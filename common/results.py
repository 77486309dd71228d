"""The record of a run: every printed number and what it was made from; result.json, result.csv, predictions."""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.features import FeatureSet
from common.files import OutputError, difference_in_words, save_torch, write_atomically, write_csv
from common.metrics import STRATA, confusion_matrix, per_class, scores
from common.tables import all_heads
from common.uncertainty import hits_interval, paired_p_value

MoreScores = Callable[[np.ndarray, np.ndarray], dict[str, float]]


@dataclass(frozen=True)
class Outcome:
    """What one fitted head says of its split's test clips.

    Attributes:
        seed, split: which fit it was.
        n_train: rows it learned from.
        rows: (M,) int64, the test rows.
        predictions: (M,) int64, classes.
        logits: (M, C) float32; None for what has none.
        facts: of the fit: epoch, curves, whatever belongs beside its scores.
    """

    seed: int
    split: str
    n_train: int
    rows: np.ndarray
    predictions: np.ndarray
    logits: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def head_record(
    outcomes: Sequence[Outcome],
    features: FeatureSet,
    more_scores: MoreScores | None = None,
) -> dict[str, Any]:
    """The scores of one head over all splits and seeds.

    Args:
        more_scores: (labels, predictions) -> scores beside those of `common.metrics.scores`.

    Returns:
        ``splits``: scores and facts of every split and seed. ``mean`` over all of them; ``std_over_folds``: of the
        folds' means over seeds, None with one fold; ``std_over_seeds``: of the seeds' means over folds, None with one
        seed (both population); ``interval``: 95 % of the mean accuracy, drawn by groups, None without enough of them;
        ``more_intervals``: of the other scores that have one.
        ``per_class`` (``clips``: of one seed) and ``confusion`` (counts, row: true class) over all splits and seeds.
    """
    labels, n_classes = features.labels.numpy(), len(features.class_names)
    rows = []
    for outcome in outcomes:
        truth = labels[outcome.rows]
        scored = scores(truth, outcome.predictions, n_classes, outcome.logits)
        scored |= more_scores(truth, outcome.predictions) if more_scores else {}
        fit = {"split": outcome.split, "seed": outcome.seed, "n_train": outcome.n_train, "n_test": len(truth)}
        rows.append({**fit, **scored, **outcome.facts})
    truth = labels[np.concatenate([outcome.rows for outcome in outcomes])]
    predictions = np.concatenate([outcome.predictions for outcome in outcomes])
    n_seeds = len({outcome.seed for outcome in outcomes})
    classes = per_class(truth, predictions, n_classes)
    hits = _hits(outcomes, features)
    means = {score: float(np.mean([row[score] for row in rows])) for score in scored}
    return {
        "mean": means,
        "std_over_folds": _std_between(rows, "split", list(scored)),
        "std_over_seeds": _std_between(rows, "seed", list(scored)),
        "interval": hits_interval(*hits),
        "more_intervals": {
            name: hits_interval(*hits, strata(truth))
            for name, strata in STRATA.items()
            if np.isfinite(means.get(name, np.nan))
        },
        "per_class": classes | {"clips": [clips / n_seeds for clips in classes["clips"]]},
        "confusion": confusion_matrix(truth, predictions, n_classes).tolist(),
        "splits": rows,
    }


def _std_between(rows: list[dict], key: str, names: list[str]) -> dict[str, float] | None:
    """Standard deviation of each score between the values of `key`, each the mean over all else."""
    values = sorted({row[key] for row in rows})
    if len(values) < 2:
        return None
    means = {name: [np.mean([row[name] for row in rows if row[key] == value]) for value in values] for name in names}
    return {name: float(np.std(each)) for name, each in means.items()}


def _hits(outcomes: Sequence[Outcome], features: FeatureSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether each prediction is right, its group (the clip itself where groups are unknown), and its split."""
    rows = np.concatenate([outcome.rows for outcome in outcomes])
    predictions = np.concatenate([outcome.predictions for outcome in outcomes])
    groups = np.array(features.groups)[rows] if features.groups is not None else rows
    splits = np.concatenate([np.full(len(outcome.rows), outcome.split) for outcome in outcomes])
    return (predictions == features.labels.numpy()[rows]).astype(float), groups, splits


def comparison_record(first: Sequence[Outcome], second: Sequence[Outcome], features: FeatureSet) -> dict[str, Any]:
    """The difference in accuracy of two heads on the same test clips: second minus first.

    Returns:
        ``difference``, its 95 % ``interval``, and the ``p_value`` of a test that swaps the heads in whole ``units``
        (groups, or clips where groups are unknown).
    """
    hits, groups, splits = _hits(first, features)
    difference = _hits(second, features)[0] - hits
    _, fold, sizes = np.unique(splits, return_inverse=True, return_counts=True)
    weighted = difference / sizes[fold] / len(sizes)  # every fold counts alike
    return {
        "difference": float(weighted.sum()),
        "interval": hits_interval(difference, groups, splits),
        "p_value": paired_p_value(weighted, groups),
        "units": "clips" if features.groups is None else "groups",
    }


def run_record(
    task: str,
    config: dict[str, Any],
    features: dict[str, Any],
    protocols: dict[str, dict[str, Any]],
    files: list[str],
) -> dict[str, Any]:
    """Everything of a run: `config` is the effective configuration, `features` the feature file and its meta,
    `protocols` what `common.protocols.run_protocol` records, `files` what was written beside result.json."""
    return {
        "task": task,
        "config": config,
        "features": features,
        "protocols": protocols,
        "files": files,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "scikit-learn", "scipy")},
        },
    }


def earlier_record(
    folder: Path, task: str, config: dict[str, Any], features_sha256: str, overwrite: bool = False
) -> dict[str, Any] | None:
    """The record in `folder` if it is of the same task, features and configuration and its files are all there;
    None if there is none, or it may be replaced.

    Raises:
        OutputError: it is of another run, and `overwrite` is not set.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    settings = {key: value for key, value in config.items() if key not in ("features", "output_dir", "markdown")}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        before = {**record["config"], "task": record["task"], "features": record["features"]["sha256"]}
        complete = bool(record["protocols"]) and all((folder / name).is_file() for name in record["files"])
    except (ValueError, KeyError, TypeError) as error:
        if overwrite:
            return None
        raise OutputError(f"{path} is not a record of this project; --overwrite replaces it") from error
    different = difference_in_words(before, {"task": task, **settings, "features": features_sha256})
    if different and not overwrite:
        raise OutputError(
            f"{path} holds the results of another run ({different}); "
            "--overwrite replaces them, --output-dir writes elsewhere"
        )
    return record if complete and not different else None


def remove_record(folder: Path) -> None:
    """Remove the results of an earlier run with every file that it names, so that none of them passes for a new one's."""
    path = folder / "result.json"
    try:
        names = [*json.loads(path.read_text(encoding="utf-8"))["files"], "result.md"]
    except (OSError, ValueError, LookupError, TypeError):
        names = []  # there is none, or not ours
    path.unlink(missing_ok=True)
    for name in names:
        if Path(name).name == name:  # nothing outside the folder, whatever the record says
            (folder / name).unlink(missing_ok=True)


def save_record(record: dict[str, Any], folder: Path) -> None:
    """Write result.json, and result.csv with one row per protocol, head, split and seed."""
    rows = [
        {"protocol": name, "head": head, **{key: value for key, value in row.items() if not isinstance(value, list)}}
        for name, protocol in record["protocols"].items()
        for head, scored in all_heads(protocol).items()
        for row in scored["splits"]
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(folder / "result.csv", [columns, *([row.get(name) for name in columns] for row in rows)])
    # A score that is not defined (no clip of its kind) is null: JSON has no NaN.
    text = json.dumps(_nan_to_none(record), indent=1, allow_nan=False)
    write_atomically(folder / "result.json", (text + "\n").encode())


def save_predictions(
    outcomes: Mapping[str, Sequence[Outcome]], features: FeatureSet, folder: Path, prefix: str
) -> list[str]:
    """Write every prediction of every head, from which every score can be computed again; returns the files' names.

    ``predictions.csv``: one row a test clip, split and seed, with the true class and each head's. ``predictions.pt``:
    the same rows as tensors (``rows`` point into ``clip_ids``), with the ``logits`` (M, C) of each head.
    """
    names, first = features.class_names, next(iter(outcomes.values()))
    labels = features.labels.numpy()
    predicted = [np.concatenate([outcome.predictions for outcome in each]) for each in outcomes.values()]
    fits = [(outcome.seed, outcome.split, row) for outcome in first for row in outcome.rows.tolist()]
    table = [("seed", "split", "clip_id", "group", "class_name", *outcomes)]
    for index, (seed, split, row) in enumerate(fits):
        group = features.groups[row] if features.groups is not None else ""
        said = [names[each[index]] for each in predicted]
        table.append((seed, split, features.clip_ids[row], group, names[labels[row]], *said))
    write_csv(folder / f"{prefix}predictions.csv", table)
    logits = {
        head: torch.from_numpy(np.concatenate([outcome.logits for outcome in each])) for head, each in outcomes.items()
    }
    content = {
        "clip_ids": list(features.clip_ids),
        "class_names": list(names),
        "rows": torch.tensor([row for *_, row in fits]),
        "labels": torch.tensor([int(labels[row]) for *_, row in fits]),
        "seeds": torch.tensor([seed for seed, *_ in fits]),
        "splits": [split for _, split, _ in fits],
        "logits": logits,
    }
    save_torch(content, folder / f"{prefix}predictions.pt")
    return [f"{prefix}predictions.csv", f"{prefix}predictions.pt"]


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
