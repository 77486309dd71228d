"""The predictions of a run as files: predictions.csv for people and programs, predictions.pt with the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.arrays import Array
from common.evaluation.outcomes import Outcome
from common.evaluation.rankings import Rankings
from common.evaluation.record import Units
from common.evaluation.scores import Hits
from common.features import FeatureFileError, FeatureSet, label_texts
from common.files import load_torch, save_torch, sha256_of, write_csv
from common.heads import HeadKind

if TYPE_CHECKING:
    import pandas as pd


def prefix_of(protocol: str) -> str:
    return "" if protocol == "official" else f"{protocol}_"


def save_predictions(
    outcomes: Mapping[HeadKind, Sequence[Outcome]], features: FeatureSet, folder: Path, prefix: str
) -> list[str]:
    """Write all predictions, from which every score can be computed again; returns the files' names.

    ``predictions.csv``: one row per test clip, split and seed, with the true class and each head's prediction; with several
    labels a clip, all of them, and those whose probability is above one half.
    ``predictions.pt``: the same rows as tensors (``rows`` index ``clip_ids``), with the ``logits`` (M, C) of each head.
    """
    first = next(iter(outcomes.values()))
    rows = torch.from_numpy(np.concatenate([outcome.rows for outcome in first]))
    content = {
        "clip_ids": list(features.clip_ids),
        "groups": features.groups,
        "class_names": list(features.class_names),
        "rows": rows,
        "labels": features.labels[rows],
        "seeds": torch.tensor([outcome.seed for outcome in first for _ in outcome.rows]),
        "splits": [outcome.split for outcome in first for _ in outcome.rows],
        "logits": {
            head: torch.from_numpy(np.concatenate([outcome.logits for outcome in fitted if outcome.logits is not None]))
            for head, fitted in outcomes.items()
        },
    }
    save_torch(content, folder / f"{prefix}predictions.pt")
    columns = _columns(content)
    write_csv(folder / f"{prefix}predictions.csv", [list(columns), *zip(*columns.values(), strict=True)])
    return [f"{prefix}predictions.csv", f"{prefix}predictions.pt"]


def _columns(content: Mapping[str, Any]) -> dict[str, list[Any]]:
    rows, names, labels = content["rows"].tolist(), content["class_names"], content["labels"].numpy()
    columns = {
        "seed": content["seeds"].tolist(),
        "split": content["splits"],
        "clip_id": [content["clip_ids"][row] for row in rows],
        "group": [content["groups"][row] if content["groups"] else "" for row in rows],
        "class_name": label_texts(labels, names),
    }
    for head, tensor in content["logits"].items():
        logits = tensor.numpy()  # of equal logits, NumPy takes the first
        columns[head] = label_texts(logits > 0 if labels.ndim == 2 else logits.argmax(axis=1), names)
    return columns


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of all splits and seeds, ordered by seed, split and clip."""

    table: pd.DataFrame  # the columns of predictions.csv
    labels: Array  # (M,), or (M, C) bool with several labels a clip
    logits: dict[HeadKind, Array]  # (M, C)

    @classmethod
    def read(cls, path: Path, checksum: str | None) -> Predictions:
        """Read a predictions.pt; FeatureFileError if it is missing, or not the file with this SHA-256."""
        import pandas as pd

        if not path.exists():
            raise FeatureFileError(f"{path} is missing; classify again")
        if sha256_of(path) != checksum:
            raise FeatureFileError(f"{path} is damaged (not what was written); classify again with --overwrite")
        content: Any = load_torch(path)
        table = pd.DataFrame(_columns(content)).sort_values(["seed", "split", "clip_id"])
        order = table.index.to_numpy()
        logits = {head: values.numpy()[order] for head, values in content["logits"].items()}
        return cls(table.reset_index(drop=True), content["labels"].numpy()[order], logits)

    def judged(self, units: Units) -> dict[HeadKind, Hits] | dict[HeadKind, Rankings]:
        """What is right of each head's predictions; `units` are the protocol's."""
        groups = self.table["group"].where(self.table["group"] != "", self.table["clip_id"]).to_numpy()
        if self.labels.ndim == 2:
            fits = self.table.groupby(["seed", "split"]).ngroup().to_numpy()
            return {head: Rankings(self.labels, ranks, fits, groups, units) for head, ranks in self.logits.items()}
        splits = self.table["split"].to_numpy()
        right = {head: logits.argmax(axis=1) == self.labels for head, logits in self.logits.items()}
        return {head: Hits(hits.astype(float), groups, splits, units) for head, hits in right.items()}
