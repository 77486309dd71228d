"""The predictions of a run as files: predictions.csv for people and programs, predictions.pt with the logits."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.evaluation.outcomes import Outcome
from common.features import FeatureFileError, FeatureSet
from common.files import save_torch, sha256_of, write_csv
from common.heads import HeadKind

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("seed", "split", "clip_id")


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
    first, labels = next(iter(outcomes.values())), features.labels.numpy()
    fits = [(outcome.seed, outcome.split, row) for outcome in first for row in outcome.rows.tolist()]
    predicted = zip(
        *(np.concatenate([outcome.predictions for outcome in fitted]) for fitted in outcomes.values()), strict=True
    )
    table: list[tuple[object, ...]] = [(*KEYS, "group", "class_name", *outcomes)]
    for (seed, split, row), classes in zip(fits, predicted, strict=True):
        group = features.groups[row] if features.groups is not None else ""
        names = (features.class_names[label] for label in (labels[row], *classes))
        table.append((seed, split, features.clip_ids[row], group, *names))
    write_csv(folder / f"{prefix}predictions.csv", table)
    content = {
        "clip_ids": list(features.clip_ids),
        "class_names": list(features.class_names),
        "rows": torch.tensor([row for *_, row in fits]),
        "labels": torch.tensor([int(labels[row]) for *_, row in fits]),
        "seeds": torch.tensor([seed for seed, *_ in fits]),
        "splits": [split for _, split, _ in fits],
        "logits": {
            head: torch.from_numpy(np.concatenate([outcome.logits for outcome in fitted if outcome.logits is not None]))
            for head, fitted in outcomes.items()
        },
    }
    save_torch(content, folder / f"{prefix}predictions.pt")
    return [f"{prefix}predictions.csv", f"{prefix}predictions.pt"]


def read_predictions(path: Path, heads: Sequence[str], checksum: str | None) -> pd.DataFrame:
    """Every row of a predictions.csv as text (``seed`` is a number), ordered by seed, split and clip.

    Args:
        heads: whose columns it must have.
        checksum: SHA-256 of the file as it was written; None: not compared.

    Raises:
        FeatureFileError: the file is missing, damaged or changed, or lacks a column.
    """
    import pandas as pd

    if not path.exists():
        raise FeatureFileError(f"{path} is missing; classify again")
    if checksum is not None and sha256_of(path) != checksum:
        raise FeatureFileError(f"{path} is damaged (not what was written); classify again with --overwrite")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, quoting=csv.QUOTE_MINIMAL)
        table["seed"] = table["seed"].astype(int)
        return table[[*KEYS, "group", "class_name", *heads]].sort_values(list(KEYS), ignore_index=True)
    except (KeyError, ValueError, OverflowError) as error:  # pandas' errors and UnicodeDecodeError are ValueErrors
        raise FeatureFileError(f"{path} is damaged ({error}); classify again with --overwrite") from error
