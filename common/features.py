"""FeatureSet: the embeddings of a data set's clips with their labels, folds and provenance; one .pt file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
import torch
from pydantic import BeforeValidator, InstanceOf, JsonValue, TypeAdapter
from typing_extensions import TypedDict

from common.arrays import Array
from common.datasets.clip import LABEL_SEPARATOR
from common.encoder_name import EncoderKind, slug_of
from common.errors import UserError
from common.files import save_torch

if TYPE_CHECKING:  # they take a second to import
    import pandas as pd
    from sklearn.utils import Bunch

# The part of a file's provenance that says how its embeddings were computed.
ENCODER_SETTINGS = (
    *("kind", "encoder", "checkpoint", "code", "release", "condition", "padding", "precision"),
    *("layer", "pool", "sample_rate"),
)
# The part that several files of one encoder share.
SHARED = (*ENCODER_SETTINGS, "outputs", "default_output", "parameters", "min_samples")
PER_CLIP = ("failed", "samples", "audio_checksums", "peaks")  # the part that has an entry per clip
# At the end of a clip's id, in seconds.
SEGMENT = re.compile(r"#(?:None|(?P<start>[\d.e+-]+))-(?:None|(?P<end>[\d.e+-]+))$")
SEVERAL = "several"  # stands for the layer and the pool of a file with several outputs


class FeatureFileError(UserError):
    """A feature file cannot be used."""


class Counts(TypedDict, total=False):
    """Clips of an extraction."""

    clips: int
    extracted: int
    failed: int
    missing: int  # of those that failed, because there is no file
    padded: int  # of those that were embedded, to the encoder's minimum


class Provenance(TypedDict, total=False, extra_items=JsonValue):  # type: ignore[call-arg] # PEP 728
    """How a feature file was made, as the file records it; empty for the original project's files. Its entries are also those
    of `common.encoder.EncoderInfo`; results record those of other versions too, as JSON."""

    dataset: str
    origin: str  # the data set of the hub and its revision
    kind: Annotated[str, BeforeValidator(lambda kind: EncoderKind(kind).value)]
    encoder: str
    checkpoint: str
    release: str
    code: str
    condition: str
    padding: str
    precision: str
    parameters: int | None
    min_samples: int
    layer: str
    pool: str
    sample_rate: int
    outputs: list[tuple[str, str, int]]  # (layer, pool, width) of each part of a row, if there are several
    default_output: tuple[str, str]  # the one that is meant if none is named
    clips: int  # requested
    clip_list: str  # their fingerprint
    device: str
    counts: Counts
    failed: list[tuple[str, str]]  # (clip id, reason)
    samples: InstanceOf[torch.Tensor]  # (N,) int64, each waveform's length
    audio_checksums: InstanceOf[torch.Tensor]  # (N,) int64, of each clip's whole file
    peaks: InstanceOf[torch.Tensor]  # (N,) float32, the largest value of each waveform
    versions: dict[str, str]


PROVENANCE = TypeAdapter(Provenance)  # reads what a file says of how its embeddings were made


@dataclass(frozen=True, eq=False, repr=False)
class FeatureSet:
    """Embeddings of a data set's clips, and what later steps need to know about them; None: unknown."""

    features: torch.Tensor  # (N, D) float32
    labels: torch.Tensor  # (N,) int64, indices into `class_names`, all -1 without labels; or (N, C) bool
    class_names: list[str]  # C
    clip_ids: Sequence[str]  # N paths relative to the data root (with the segment, if a clip is one)
    folds: torch.Tensor | None = None  # (N,) int64, official folds from 1
    splits: Sequence[str] | None = None  # N of "train", "valid", "test"
    groups: Sequence[str] | None = None  # N names of the recording, patient or speaker
    meta: Provenance = field(default_factory=Provenance)

    @property
    def is_multilabel(self) -> bool:
        """Whether a clip has a set of labels, and not one class."""
        return self.labels.ndim == 2

    @property
    def label_texts(self) -> list[str]:
        """Of every clip its class, or its labels joined by ``;``."""
        return label_texts(self.labels.numpy(), self.class_names)

    @property
    def strata(self) -> Array:
        """(N,) int64: of every clip its class, or its rarest label; -1 without any."""
        labels = self.labels.numpy()
        if not self.is_multilabel:
            return labels
        counts = np.where(labels, labels.sum(axis=0), len(labels) + 1)
        return np.where(labels.any(axis=1), counts.argmin(axis=1), -1)

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        """A line for notebooks."""
        rows, width = self.features.shape
        made_by = f", {self.meta['encoder']}" if "encoder" in self.meta else ""
        return f"FeatureSet({rows:,} clips x {width:,} numbers, {len(self.class_names)} classes{made_by})"

    def to_pandas(self) -> pd.DataFrame:
        """One row per clip: what `about_clips` says, then the numbers.

        The numbers are called ``f0``, ``f1``...; of a file with several outputs, ``encoder_block6_mean_0`` and so on.
        """
        import pandas as pd

        numbers = [f"f{place}" for place in range(self.features.shape[1])]
        for name, columns in self.output_columns.items():
            numbers[columns] = [f"{name.replace(' ', '_')}_{place}" for place in range(columns.stop - columns.start)]
        return pd.concat([self.about_clips(), pd.DataFrame(self.features.numpy(), columns=numbers)], axis=1)

    def about_clips(self) -> pd.DataFrame:
        """One row per clip: ``clip_id``, ``start`` and ``end`` (seconds), ``class_name``, ``fold``, ``split``, ``group``, as far as
        known."""
        import pandas as pd

        spans = pd.Series(self.clip_ids).str.extract(SEGMENT).astype(float)
        about = {
            "clip_id": self.clip_ids,
            **(dict(spans.items()) if spans.notna().any(axis=None) else {}),
            "class_name": self.label_texts if self.class_names else None,
            "fold": None if self.folds is None else self.folds.numpy(),
            "split": self.splits,
            "group": self.groups,
        }
        return pd.DataFrame({name: values for name, values in about.items() if values is not None})

    def to_sklearn(self) -> Bunch:
        """As scikit-learn's data sets: ``data`` (N, D), ``target`` (N,), ``target_names``, and ``groups`` and ``folds`` (N,) or None;
        folds suit its ``PredefinedSplit``."""
        from sklearn.utils import Bunch

        data, target = self.features.numpy(), self.labels.numpy()
        groups = None if self.groups is None else np.array(self.groups)
        folds = None if self.folds is None else self.folds.numpy()
        return Bunch(data=data, target=target, target_names=list(self.class_names), groups=groups, folds=folds)

    @classmethod
    def join(cls, parts: Sequence[FeatureSet], names: Sequence[str], class_order: Sequence[str] | None) -> FeatureSet:
        """Join the rows of several files, called `names` in errors. FeatureFileError: their encoders or classes differ."""
        for part, name in zip(parts, names, strict=True):
            part.require_same_encoder(parts[0], name, names[0])
            if strangers := ", ".join(sorted(set(part.class_names) - set(class_order or part.class_names))[:5]):
                raise FeatureFileError(f"{name} has classes that are not this data set's ({strangers}); extract again")
        present = {name for part in parts for name in part.class_names}
        class_names = [name for name in class_order or sorted(present) if name in present]
        meta: dict[str, Any] = {key: value for key, value in parts[0].meta.items() if key in SHARED}
        counts = [Counter(part.meta.get("counts")) for part in parts]
        if all(counts):
            meta["counts"] = {key: sum(count[key] for count in counts) for key in chain(*counts)}
        splits, groups = ([getattr(part, name) for part in parts] for name in ("splits", "groups"))
        return cls(
            torch.cat([part.features for part in parts]),
            torch.cat([part.in_order(class_names).labels for part in parts]),
            class_names,
            [clip_id for part in parts for clip_id in part.clip_ids],
            splits=None if None in splits else list(chain(*splits)),
            groups=None if None in groups else list(chain(*groups)),
            meta=cast("Provenance", meta),
        )

    def require_same_encoder(self, other: FeatureSet, name: str, other_name: str) -> None:
        """FeatureFileError, naming the two files, if their embeddings cannot be compared."""
        for key in (*ENCODER_SETTINGS, "outputs"):
            if self.meta.get(key) != other.meta.get(key):
                raise FeatureFileError(
                    f"{name} and {other_name} were made with different settings ({key}: {self.meta.get(key)} and "
                    f"{other.meta.get(key)}); extract both with the same ones"
                )

    def in_order(self, class_names: Sequence[str]) -> FeatureSet:
        """The FeatureSet with these classes, among which are all that occur, in this order."""
        if self.is_multilabel:
            labels = self.labels[:, [self.class_names.index(name) for name in class_names]]
        else:
            numbers = {name: number for number, name in enumerate(class_names)}
            labels = torch.tensor([*(numbers.get(name, -1) for name in self.class_names), -1])[
                self.labels
            ]  # -1: no label
        return replace(self, labels=labels, class_names=list(class_names))

    def subset(self, rows: Array) -> FeatureSet:
        """The FeatureSet of only these rows; classes that no longer occur are dropped, and labels renumbered."""
        picked = torch.as_tensor(np.ascontiguousarray(rows))
        labels = self.labels[picked]
        present = labels.any(dim=0).nonzero().ravel() if self.is_multilabel else labels[labels >= 0].unique()
        some = replace(
            self,
            features=self.features[picked],
            labels=labels,
            clip_ids=[self.clip_ids[row] for row in rows],
            folds=None if self.folds is None else self.folds[picked],
            splits=None if self.splits is None else [self.splits[row] for row in rows],
            groups=None if self.groups is None else [self.groups[row] for row in rows],
        )
        return some.in_order([self.class_names[label] for label in present.tolist()])

    @property
    def provenance(self) -> Provenance:
        """`meta` without the entries that have a value per clip: what results and heads record of their features."""
        return cast("Provenance", {key: value for key, value in self.meta.items() if key not in PER_CLIP})

    @property
    def encoder_slug(self) -> str:
        """A short form of the encoder's name for file names; that of AudioSep if the file does not say."""
        kind = self.meta.get("kind")
        return slug_of(EncoderKind(kind) if kind else None, self.meta.get("encoder", ""))

    @property
    def output_columns(self) -> dict[str, slice]:
        """Name of each output -> its columns in the rows; empty if there is only one."""
        names = [f"{layer} {pool}".strip() for layer, pool, _ in self.meta.get("outputs", [])]
        starts = accumulate((width for _, _, width in self.meta.get("outputs", [])), initial=0)
        return {name: slice(*columns) for name, columns in zip(names, pairwise(starts), strict=True)}

    def pick(self, layers: str | None, pools: str | None) -> FeatureSet:
        """The FeatureSet of one output, or of several side by side; of a file with one output, itself. `layers` and `pools` are
        names with ``+`` between them; every layer is taken with every pool that it has. None: those of the encoder's default
        output. FeatureFileError: the file has no such output."""
        whole = self.meta.get("layer", ""), self.meta.get("pool", "")
        outputs = [(layer, pool) for layer, pool, _ in self.meta.get("outputs", [])] or [whole]
        picked = _choose_outputs(outputs, self.meta.get("default_output", outputs[0]), layers, pools)
        if "outputs" not in self.meta:
            return self
        columns = [self.output_columns[f"{layer} {pool}".strip()] for layer, pool in picked]
        meta = {key: value for key, value in self.meta.items() if key not in ("outputs", "default_output")}
        meta["layer"] = "+".join(dict.fromkeys(layer for layer, _ in picked))
        meta["pool"] = "+".join(dict.fromkeys(pool for _, pool in picked if pool))
        features = torch.cat([self.features[:, part] for part in columns], dim=1)
        return replace(self, features=features, meta=cast("Provenance", meta))

    def save(self, path: str | Path) -> None:
        """Write atomically, as a plain dict that ``torch.load(path, weights_only=True)`` opens."""

        def plain(value: object) -> object:
            if isinstance(value, torch.Tensor):
                return value.contiguous()
            return list(value) if isinstance(value, Sequence) else value

        save_torch({name: plain(value) for name, value in vars(self).items()}, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> FeatureSet:
        """Read and check a file written by `save`, a folder of parts, embeddings in another format
        (`common.feature_formats`), or a file of the original project's: ``features`` and ``labels``, or ``features`` and
        ``keys``, whose classes are named by number, and whose clips by key or row. FeatureFileError: it is missing, damaged or
        not a feature file."""
        from common.feature_formats import read_features

        return read_features(Path(path))


def label_texts(labels: Array, class_names: Sequence[str]) -> list[str]:
    """(N,) labels, or (N, C) bool, as text: class names, several joined by ``;``; empty without any."""
    if labels.ndim == 1:
        texts = [*class_names, ""]  # -1 is no label
        return [texts[label] for label in labels.tolist()]
    names = np.array(class_names, dtype=object)
    return [LABEL_SEPARATOR.join(names[row]) for row in labels]


def _choose_outputs(
    outputs: Sequence[tuple[str, str]], default: tuple[str, str], layers: str | None, pools: str | None
) -> list[tuple[str, str]]:
    """The (layer, pool) pairs that ``--layer`` and ``--pool`` of a classification name, in order."""
    known = ", ".join(f"{layer} {pool}".strip() for layer, pool in outputs)
    chosen = []
    for name in [name.strip() for name in (default[0] if layers is None else layers).split("+")]:
        of_layer = [pool for layer, pool in outputs if layer == name]
        if not of_layer:
            hint = "; join several with +" if "," in name or name == "all" else ""
            raise FeatureFileError(f"--layer {name} is not in the feature file, which holds: {known}{hint}")
        if pools is None or of_layer == [""]:  # nothing to pool
            wanted = [default[1] if default[1] in of_layer else of_layer[0]]
        else:  # one name may have a + in it
            wanted = [pools] if pools in of_layer else [pool.strip() for pool in pools.split("+")]
        for pool in wanted:
            if pool not in of_layer:
                raise FeatureFileError(f"--pool {pool} of {name} is not in the feature file, which holds: {known}")
            chosen.append((name, pool))
    return chosen
