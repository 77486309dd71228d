"""The record of a run: every printed number and what it was made from; result.json and result.csv."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from common.files import OutputError, difference_in_words, write_atomically
from common.metrics import confusion_matrix, scores

CSV_COLUMNS = ("head", "split", "seed", "n_train", "n_test")


def head_record(
    splits: list[tuple[str, int, np.ndarray]],
    labels: np.ndarray,
    n_classes: int,
    more_scores: Callable[[np.ndarray, np.ndarray], dict[str, float]] | None = None,
) -> dict[str, Any]:
    """The scores of one head.

    Args:
        splits: (name, training rows, predicted class of each test row) with the true ones in `labels`.
        labels: true classes of all test rows, split after split.
        more_scores: (labels, predictions) -> scores beside accuracy and macro-F1.

    Returns:
        ``splits``: scores of each; ``mean`` and ``std`` (population) over them; ``confusion``: counts over
        all splits, row: true class.
    """
    rows, start = [], 0
    for name, n_train, predictions in splits:
        truth = labels[start : start + len(predictions)]
        start += len(predictions)
        scored = scores(truth, predictions, n_classes) | (more_scores(truth, predictions) if more_scores else {})
        rows.append({"split": name, "n_train": n_train, "n_test": len(truth), **scored})
    values = {score: [row[score] for row in rows] for score in scored}
    predicted = np.concatenate([predictions for _, _, predictions in splits])
    return {
        "splits": rows,
        "mean": {score: float(np.mean(values[score])) for score in values},
        "std": {score: float(np.std(values[score])) for score in values},
        "confusion": confusion_matrix(labels, predicted, n_classes).tolist(),
    }


def run_record(
    task: str,
    protocol: str,
    config: dict[str, Any],
    features: dict[str, Any],
    heads: dict[str, dict[str, Any]],
    majority_class: dict[str, Any],
    files: list[str],
) -> dict[str, Any]:
    """Everything of a run: `config` is the effective configuration, `features` the feature file and its meta,
    `majority_class` the scores of always naming the most frequent training class, `files` what was written beside
    result.json."""
    return {
        "task": task,
        "protocol": protocol,
        "config": config,
        "features": features,
        "heads": heads,
        "majority_class": majority_class,
        "files": files,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "scikit-learn")},
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
    settings = {key: value for key, value in config.items() if key not in ("features", "output_dir")}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        before = {**record["config"], "task": record["task"], "features": record["features"]["sha256"]}
        complete = bool(record["heads"]) and all((folder / name).is_file() for name in record["files"])
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


def save_record(record: dict[str, Any], folder: Path) -> None:
    """Write result.json, and result.csv with one row per head and split."""
    text = io.StringIO()
    scores_of_all = next(iter(record["heads"].values()))["mean"]
    table = csv.DictWriter(text, (*CSV_COLUMNS, *scores_of_all), extrasaction="ignore")
    table.writeheader()
    for head, scored in (*record["heads"].items(), ("majority_class", record["majority_class"])):
        for row in scored["splits"]:
            table.writerow({"head": head, "seed": record["config"]["random_seed"], **row})
    write_atomically(folder / "result.csv", text.getvalue().encode())
    # A score that is not defined (no clip of its kind) is null: JSON has no NaN.
    text = json.dumps(_nan_to_none(record), indent=1, allow_nan=False)
    write_atomically(folder / "result.json", (text + "\n").encode())


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
