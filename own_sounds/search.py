"""Collections of embedded clips, and what is found in them: the clips most like one, or a varied choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.arrays import Array
from common.config import ConfigError
from common.datasets import Clip
from common.features import SEGMENT, FeatureSet, Provenance
from common.heads.scalers import Scaler
from own_sounds.sounds import Source, absolute

BLOCK = 1 << 13  # rows compared at a time
MOST_CLUSTERED = 100_000  # clips from which a varied choice is made; of more, a random sample


class Match(NamedTuple):
    """A clip that was found or chosen."""

    clip: Clip  # of no label
    name: str  # its id in the file of embeddings
    label: str  # that it has there; empty without one
    similarity: float | None  # cosine; None for a varied choice


class Collection(NamedTuple):
    """Embeddings of clips in one or several files, all of one encoder and output."""

    embeddings: Array  # (N, D) float32; of a single folder, on the disk
    clips: list[tuple[Path, str, str]]  # of every clip the folder from which its path counts, its id, and its label
    made_by: Provenance

    @classmethod
    def load(cls, paths: Sequence[Path], audio: Path | None) -> Collection:
        """From files as `embed.py` and `probe.py` write them; `audio` is the folder of the sounds, if they do not tell. UserError:
        a file cannot be read, its sounds are not found, or it is of another encoder than the first."""
        sets = [FeatureSet.load(path).pick(None, None) for path in paths]
        clips: list[tuple[Path, str, str]] = []
        for path, features in zip(paths, sets, strict=True):
            features.require_same_encoder(sets[0], str(path), str(paths[0]))
            root = _root_of(path, features.clip_ids[0], audio)
            clips += zip([root] * len(features), features.clip_ids, features.label_texts, strict=True)
        values = [features.features.numpy() for features in sets]
        return cls(values[0] if len(values) == 1 else np.concatenate(values), clips, sets[0].meta)

    def match(self, row: int, similarity: float | None = None) -> Match:
        """The clip of a row."""
        root, name, label = self.clips[row]
        return Match(clip_of(name, root), name, label, similarity)


def clip_of(clip_id: str, root: Path) -> Clip:
    """The clip that an id means, such as ``night.wav#2.5-7.5``."""
    match = SEGMENT.search(clip_id)
    if match is None or (root / clip_id).exists():
        return Clip(root / clip_id)
    start_s, end_s = (None if text is None else float(text) for text in match.groups())
    return Clip(root / clip_id[: match.start()], start_s=start_s, end_s=end_s)


def _root_of(path: Path, clip_id: str, audio: Path | None) -> Path:
    """Where the sounds of a file of embeddings are; ConfigError if the first is not there."""
    probed = Source.load(path if path.is_dir() else path.parent)
    places = [audio] if audio else [*([probed[1]] if probed else []), path.parent, Path.cwd()]
    for place in places:
        if clip_of(clip_id, place).path.exists():
            return absolute(place)
    where = "say where the sounds are: --audio FOLDER"
    raise ConfigError(f"{path} is of clips such as {clip_id}, which is not in {places[0]}; {where}")


def _unit_rows(embeddings: Array, scaler: Scaler) -> Iterator[Array]:
    """Blocks of scaled rows, of length 1."""
    for start in range(0, len(embeddings), BLOCK):
        rows = scaler(embeddings[start : start + BLOCK])
        yield rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def nearest(query: Array, embeddings: Array, scaler: Scaler, count: int) -> tuple[Array, Array]:
    """The rows most like a query (D,) among (N, D) embeddings, exactly: (K,) int64 row numbers and (K,) cosines of scaled
    embeddings, best first, of equals the first."""
    ((target,),) = _unit_rows(query[None], scaler)
    cosines = np.concatenate([block @ target for block in _unit_rows(embeddings, scaler)])
    rows = np.argsort(-cosines, kind="stable")[:count]
    return rows, cosines[rows]


def varied(embeddings: Array, scaler: Scaler, count: int) -> Array:
    """(K,) int64 rows, one of every k-means cluster, the nearest to its centre; clusters with most clips first."""
    from sklearn.cluster import KMeans

    sample = np.arange(len(embeddings))
    if len(sample) > MOST_CLUSTERED:
        sample = np.sort(np.random.default_rng(0).choice(len(sample), MOST_CLUSTERED, replace=False))
    units = np.concatenate(list(_unit_rows(embeddings[sample], scaler)))
    clusters = KMeans(min(count, len(units)), n_init=1, random_state=0).fit(units)
    order = np.argsort(-np.bincount(clusters.labels_), kind="stable")
    chosen: Array = sample[clusters.transform(units).argmin(axis=0)[order]]
    return chosen
