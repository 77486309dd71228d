"""The predictions of a run as files: predictions.csv for people, predictions.pt with the logits."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from common.evaluation.outcomes import Outcome
from common.features import FeatureFileError, FeatureSet
from common.files import plain_cell, save_torch, write_csv
from common.heads import HeadKind


def prefix_of(protocol: str) -> str:
    """The prefix of the names of a protocol's files."""
    return "" if protocol == "official" else f"{protocol}_"


def save_predictions(
    outcomes: Mapping[HeadKind, Sequence[Outcome]], features: FeatureSet, folder: Path, prefix: str
) -> list[str]:
    """Write every prediction of every head, from which every score can be computed again; returns the files' names.

    ``predictions.csv``: one row per test clip, split and seed, with the true class and each head's prediction.
    ``predictions.pt``: the same rows as tensors (``rows`` point into ``clip_ids``), with the ``logits`` (M, C) of each
    head.
    """
    names, first = features.class_names, next(iter(outcomes.values()))
    labels = features.labels.numpy()
    predicted = [np.concatenate([outcome.predictions for outcome in each]) for each in outcomes.values()]
    fits = [(outcome.seed, outcome.split, row) for outcome in first for row in outcome.rows.tolist()]
    table: list[tuple[object, ...]] = [("seed", "split", "clip_id", "group", "class_name", *outcomes)]
    for index, (seed, split, row) in enumerate(fits):
        group = features.groups[row] if features.groups is not None else ""
        said = [names[each[index]] for each in predicted]
        table.append((seed, split, features.clip_ids[row], group, names[labels[row]], *said))
    write_csv(folder / f"{prefix}predictions.csv", table)
    logits = {
        head: torch.from_numpy(np.concatenate([outcome.logits for outcome in each if outcome.logits is not None]))
        for head, each in outcomes.items()
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


def read_predictions(path: Path, heads: Sequence[str], seed: int) -> dict[str, dict[str, str]]:
    """For one seed: head -> clip id -> predicted class, for every clip that was tested.

    Raises:
        FeatureFileError: the file is missing, or is not a predictions.csv of these heads.
    """
    predicted: dict[str, dict[str, str]] = {head: {} for head in heads}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["seed"] == str(seed):
                    for head, by_clip in predicted.items():
                        by_clip[plain_cell(row["clip_id"])] = plain_cell(row[head])
    except FileNotFoundError as error:
        raise FeatureFileError(f"{path} is missing; classify again") from error
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, csv.Error) as error:  # half a row holds None
        raise FeatureFileError(f"{path} is damaged ({error}); classify again with --overwrite") from error
    return predicted
