"""The predictions of a run as files: predictions.csv for people and programs, predictions.pt with the logits."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.arrays import Array
from common.evaluation.outcomes import Outcome
from common.evaluation.rankings import Rankings
from common.evaluation.record import Units
from common.features import FeatureFileError, FeatureSet, label_texts
from common.files import load_torch, save_torch, sha256_of, write_csv
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
    """Write all predictions, from which every score can be computed again; returns the files' names.

    ``predictions.csv``: one row per test clip, split and seed, with the true class and each head's prediction; with several
    labels a clip, all of them, and those whose probability is above one half.
    ``predictions.pt``: the same rows as tensors (``rows`` index ``clip_ids``), with the ``logits`` (M, C) of each head.
    """
    first, names = next(iter(outcomes.values())), features.class_names
    rows = np.concatenate([outcome.rows for outcome in first])
    labels = features.labels.numpy()[rows]
    seeds = [outcome.seed for outcome in first for _ in outcome.rows]
    splits = [outcome.split for outcome in first for _ in outcome.rows]
    clip_ids = [features.clip_ids[row] for row in rows]
    groups = ["" if features.groups is None else features.groups[row] for row in rows]
    classes = [labels, *(np.concatenate([outcome.predictions for outcome in fitted]) for fitted in outcomes.values())]
    columns = [seeds, splits, clip_ids, groups, *(label_texts(of_rows, names) for of_rows in classes)]
    header = (*KEYS, "group", "class_name", *outcomes)
    write_csv(folder / f"{prefix}predictions.csv", [header, *zip(*columns, strict=True)])
    content = {
        "clip_ids": list(features.clip_ids),
        "class_names": list(names),
        "rows": torch.from_numpy(rows),
        "labels": torch.from_numpy(labels),
        "seeds": torch.tensor(seeds),
        "splits": splits,
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


def read_rankings(folder: Path, protocol: str, groups: Array, units: Units) -> dict[HeadKind, Rankings]:
    """Each head's rankings in a predictions.pt of a task with several labels a clip, in the order of `read_predictions`.

    Args:
        groups, units: as for `Rankings`, in that order.

    Raises:
        FeatureFileError: the file is missing or damaged.
    """
    import pandas as pd

    path = folder / f"{prefix_of(protocol)}predictions.pt"
    try:
        content: Any = load_torch(path)
        clips = [content["clip_ids"][row] for row in content["rows"].tolist()]
        keys = pd.DataFrame(dict(zip(KEYS, (content["seeds"].numpy(), content["splits"], clips), strict=True)))
        order = keys.sort_values(list(KEYS)).index.to_numpy()
        fits = keys.loc[order].groupby(list(KEYS[:2]), sort=True).ngroup().to_numpy()
        labels = content["labels"].numpy()[order]
        return {
            head: Rankings(labels, logits.numpy()[order], fits, groups, units)
            for head, logits in content["logits"].items()
        }
    except (OSError, KeyError, ValueError, IndexError, TypeError) as error:
        raise FeatureFileError(f"{path} is missing or damaged ({error}); classify again with --overwrite") from error
