"""FeatureSet: the embeddings of a data set's clips with their labels, folds and provenance; one .pt file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from common.arrays import Array
from common.feature_files import (
    FeatureFileError,
    class_names_of,
    folds_of,
    labels_of,
    names_of,
    optional_names,
    provenance_of,
    read_content,
    splits_of,
    uneven,
)
from common.files import save_torch
from common.provenance import ENCODER_SETTINGS, PER_CLIP, SEVERAL, SHARED, Counts, Provenance, read_provenance

if TYPE_CHECKING:  # they take a second to import
    import pandas as pd
    from sklearn.utils import Bunch

__all__ = ["ENCODER_SETTINGS", "SEVERAL", "Counts", "FeatureFileError", "FeatureSet", "Provenance"]


@dataclass(frozen=True, eq=False, repr=False)
class FeatureSet:
    """Embeddings of a data set's clips, and what later steps need to know about them.

    Attributes:
        features: (N, D) float32.
        labels: (N,) int64, indices into `class_names`; all -1 if the file holds none.
        class_names: C names.
        clip_ids: N paths relative to the data root (with the segment, if a clip is one).
        folds: (N,) int64, official folds from 1; None if there are none.
        splits: N of ``"train"``, ``"valid"``, ``"test"``; None if there are none.
        groups: N names of the recording, patient or speaker; None if unknown.
        meta: provenance.
    """

    features: torch.Tensor
    labels: torch.Tensor
    class_names: list[str]
    clip_ids: list[str]
    folds: torch.Tensor | None = None
    splits: list[str] | None = None
    groups: list[str] | None = None
    meta: Provenance = field(default_factory=Provenance)

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        """A line for notebooks."""
        rows, width = self.features.shape
        made_by = f", {self.meta['encoder']}" if "encoder" in self.meta else ""
        return f"FeatureSet({rows:,} clips x {width:,} numbers, {len(self.class_names)} classes{made_by})"

    def to_pandas(self) -> pd.DataFrame:
        """One row per clip: ``clip_id``, ``class_name``, ``fold``, ``split``, ``group`` as far as known, then the numbers.

        The numbers are called ``f0``, ``f1``...; of a file with several outputs, ``encoder_block6_mean_0`` and so on.
        """
        import pandas as pd

        numbers = [f"f{place}" for place in range(self.features.shape[1])]
        for name, columns in self.output_columns.items():
            own = range(columns.stop - columns.start)
            numbers[columns] = [f"{name.replace(' ', '_')}_{place}" for place in own]
        known: dict[str, object] = {"clip_id": self.clip_ids}
        if self.class_names:
            known["class_name"] = [self.class_names[label] for label in self.labels.tolist()]
        known |= {} if self.folds is None else {"fold": self.folds.numpy()}
        known |= {
            name: values for name, values in (("split", self.splits), ("group", self.groups)) if values is not None
        }
        return pd.concat([pd.DataFrame(known), pd.DataFrame(self.features.numpy(), columns=numbers)], axis=1)

    def to_sklearn(self) -> Bunch:
        """As scikit-learn's own data sets: ``data`` (N, D), ``target`` (N,), ``target_names`` and ``groups`` (N,) or None."""
        from sklearn.utils import Bunch

        return Bunch(
            data=self.features.numpy(),
            target=self.labels.numpy(),
            target_names=list(self.class_names),
            groups=None if self.groups is None else np.array(self.groups),
        )

    @classmethod
    def join(cls, parts: Sequence[FeatureSet], names: Sequence[str], class_order: Sequence[str] | None) -> FeatureSet:
        """Join the rows of several files of one encoder and one set of classes; `names` are for error messages.

        Raises:
            FeatureFileError: their settings differ, or one has classes of another data set.
        """
        for part, name in zip(parts, names, strict=True):
            part.require_same_encoder(parts[0], name, names[0])
            strangers = set(part.class_names) - set(class_order or part.class_names)
            if strangers:
                raise FeatureFileError(
                    f"{name} has classes that are not this data set's ({', '.join(sorted(strangers)[:5])}); extract it "
                    "with this project"
                )
        present = {name for part in parts for name in part.class_names}
        class_names = [name for name in class_order or sorted(present) if name in present]

        return cls(
            torch.cat([part.features for part in parts]),
            torch.cat(
                [torch.tensor([class_names.index(name) for name in part.class_names])[part.labels] for part in parts]
            ),
            class_names,
            [clip_id for part in parts for clip_id in part.clip_ids],
            None,
            _chained([part.splits for part in parts]),
            _chained([part.groups for part in parts]),
            _joined_provenance(parts),
        )

    def require_same_encoder(self, other: FeatureSet, name: str, other_name: str) -> None:
        """Raise FeatureFileError, naming the two files, if their embeddings cannot be compared."""
        for key in (*ENCODER_SETTINGS, "outputs"):
            if self.meta.get(key) != other.meta.get(key):
                raise FeatureFileError(
                    f"{name} and {other_name} were made with different settings ({key}: {self.meta.get(key)} and "
                    f"{other.meta.get(key)}); extract both with the same ones"
                )

    def subset(self, rows: Array) -> FeatureSet:
        """The FeatureSet of only these rows; classes that no longer occur are dropped, and labels renumbered."""
        picked = torch.as_tensor(np.ascontiguousarray(rows))
        present = self.labels[picked].unique()
        return replace(
            self,
            features=self.features[picked],
            labels=torch.searchsorted(present, self.labels[picked]),
            class_names=[self.class_names[label] for label in present.tolist()],
            clip_ids=[self.clip_ids[row] for row in rows],
            folds=None if self.folds is None else self.folds[picked],
            splits=None if self.splits is None else [self.splits[row] for row in rows],
            groups=None if self.groups is None else [self.groups[row] for row in rows],
        )

    @property
    def provenance(self) -> Provenance:
        """`meta` without the entries that have a value per clip: what results and heads record of their features."""
        return read_provenance({key: value for key, value in self.meta.items() if key not in PER_CLIP})

    @property
    def output_columns(self) -> dict[str, slice]:
        """Name of each output (`common.encoder.Output.name`) -> its columns in the rows; empty if there is only one."""
        columns, start = {}, 0
        for layer, pool, width in self.meta.get("outputs", []):
            columns[f"{layer} {pool}".strip()] = slice(start, start + width)
            start += width
        return columns

    def pick(self, layers: str | None, pools: str | None) -> FeatureSet:
        """The FeatureSet of one output, or of several side by side; of a file with one output, itself.

        Args:
            layers, pools: names with ``+`` between them; every layer is taken with every pool that it has. None: those of
                the encoder's default output.

        Raises:
            FeatureFileError: the file has no such output.
        """
        outputs = self.meta.get("outputs") or [(self.meta.get("layer", ""), self.meta.get("pool", ""), 0)]
        known = ", ".join(f"{layer} {pool}".strip() for layer, pool, _ in outputs)
        default_layer, default_pool = self.meta.get("default_output", outputs[0][:2])
        names = [name.strip() for name in (default_layer if layers is None else layers).split("+")]
        picked: list[tuple[str, str]] = []
        for name in names:
            own = [pool for layer, pool, _ in outputs if layer == name]
            if not own:
                hint = "; join several with +" if "," in name or name == "all" else ""
                raise FeatureFileError(f"--layer {name} is not in the feature file, which holds: {known}{hint}")
            if pools is None:
                wanted = [default_pool if default_pool in own else own[0]]
            elif own == [""]:  # nothing to pool
                wanted = own
            else:
                wanted = [pools] if pools in own else [pool.strip() for pool in pools.split("+")]
            for pool in wanted:
                if pool not in own:
                    raise FeatureFileError(f"--pool {pool} of {name} is not in the feature file, which holds: {known}")
                picked.append((name, pool))
        if "outputs" not in self.meta:
            return self
        columns = self.output_columns
        kept = [columns[f"{layer} {pool}".strip()] for layer, pool in picked]
        meta = {key: value for key, value in self.meta.items() if key not in ("outputs", "default_output")}
        meta |= {
            "layer": "+".join(dict.fromkeys(layer for layer, _ in picked)),
            "pool": "+".join(dict.fromkeys(pool for _, pool in picked if pool)),
        }
        features = torch.cat([self.features[:, each] for each in kept], dim=1)
        return replace(self, features=features, meta=cast("Provenance", meta))

    def save(self, path: str | Path) -> None:
        """Write atomically, as a plain dict that ``torch.load(path, weights_only=True)`` opens."""
        content = {
            "features": self.features.contiguous(),
            "labels": self.labels.contiguous(),
            "class_names": list(self.class_names),
            "clip_ids": list(self.clip_ids),
            "folds": self.folds,
            "splits": self.splits,
            "groups": self.groups,
            "meta": self.meta,
        }
        save_torch(content, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> FeatureSet:
        """Read and check a file written by `save`, or one of the original project's.

        The latter hold only ``features`` and ``labels``, or ``features`` and ``keys``; their classes are named by
        number, and their clips by key or row.

        Raises:
            FeatureFileError: the file is missing, damaged or not a feature file, or its parts do not match.
        """
        path = Path(path)
        content = read_content(path)
        features = content.get("features")
        if (
            not torch.is_tensor(features)
            or features.ndim != 2
            or not features.is_floating_point()
            or not features.shape[1]
        ):
            raise FeatureFileError(f"{path} is not a feature file: it has no 2-D floating-point tensor 'features'")
        rows = len(features)
        if not rows:
            raise FeatureFileError(f"{path} holds no clips; extract the features again")
        labels = content.get("labels", content.get("label"))
        if labels is None and "keys" not in content:
            raise FeatureFileError(f"{path} is not a feature file: it has neither 'labels' nor 'keys'")
        labels = torch.full((rows,), -1) if labels is None else labels_of(labels, path)
        if len(labels) != rows:
            raise uneven(path, rows, len(labels), "labels")
        class_names = content.get("class_names")
        if class_names is None:  # numbers that may leave gaps, such as speaker ids
            present = labels[labels >= 0].unique()
            class_names = [str(label) for label in present.tolist()]
            labels = torch.where(labels < 0, labels, torch.searchsorted(present, labels))
        clip_ids = content.get("clip_ids", content.get("keys", [f"row {row}" for row in range(rows)]))
        ids = names_of(clip_ids, "clip_ids", rows, path)
        if len(set(ids)) < rows:
            twice = next(each for each, count in Counter(ids).items() if count > 1)
            raise FeatureFileError(f"{path} is damaged: clip {twice} is in it more than once; extract again")
        folds = content.get("folds")
        return cls(
            features.detach().to(torch.float32),
            labels,
            class_names_of(class_names, int(labels.max()) + 1, path),
            ids,
            None if folds is None else folds_of(folds, rows, path),
            splits_of(content, rows, path),
            optional_names(content, "groups", rows, path),
            provenance_of(content.get("meta"), path),
        )


def _chained(lists: Sequence[list[str] | None]) -> list[str] | None:
    """The lists concatenated; None if one is missing."""
    there = [values for values in lists if values is not None]
    return [value for values in there for value in values] if len(there) == len(lists) else None


def _joined_provenance(parts: Sequence[FeatureSet]) -> Provenance:
    """How the embeddings were computed, and the sums of the clip counts if every file has them."""
    meta: dict[str, Any] = {key: value for key, value in parts[0].meta.items() if key in SHARED}
    counts = [part.meta["counts"] for part in parts if "counts" in part.meta]
    if len(counts) == len(parts):
        missing = sum(count.get("missing", 0) for count in counts)
        meta["counts"] = Counts(
            clips=sum(count.get("clips", 0) for count in counts),
            extracted=sum(count.get("extracted", 0) for count in counts),
            failed=sum(count.get("failed", 0) for count in counts),
            padded=sum(count.get("padded", 0) for count in counts),
        )
        if missing:
            meta["counts"]["missing"] = missing
    return read_provenance(meta)
