"""Collections of embedded clips, and what is found in them: the clips most like one, or a varied choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.arrays import Array
from common.config import ConfigError
from common.datasets import Clip
from common.features import SEGMENT, FeatureSet, label_texts
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


@dataclass(frozen=True, eq=False)
class Collection:
    """Embeddings of clips in one or several files, all of one encoder and output."""

    sets: list[FeatureSet]
    roots: list[Path]  # of every set, the folder from which the paths of its clips count

    @classmethod
    def load(cls, paths: Sequence[Path], audio: Path | None) -> Collection:
        """From files as `embed.py` and `probe.py` write them; `audio` is the folder of the sounds, if they do not tell. UserError:
        a file cannot be read, its sounds are not found, or it is of another encoder than the first."""
        sets = [FeatureSet.load(path).pick(None, None) for path in paths]
        for path, other in zip(paths[1:], sets[1:], strict=True):
            other.require_same_encoder(sets[0], str(path), str(paths[0]))
        return cls(sets, [_root_of(path, one.clip_ids[0], audio) for path, one in zip(paths, sets, strict=True)])

    @property
    def embeddings(self) -> Array:
        """(N, D) float32, of all sets one after another; of a single folder, on the disk."""
        values = [one.features.numpy() for one in self.sets]
        return values[0] if len(values) == 1 else np.concatenate(values)

    def match(self, row: int, similarity: float | None = None) -> Match:
        """The clip of a row."""
        ends = np.cumsum([len(one) for one in self.sets])
        place = int(np.searchsorted(ends, row, side="right"))
        one, row = self.sets[place], row - int(ends[place])  # from the end
        (label,) = label_texts(one.labels[row][None].numpy(), one.class_names)
        return Match(clip_of(one.clip_ids[row], self.roots[place]), one.clip_ids[row], label, similarity)


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


def _unit_rows(embeddings: Array, scaler: Scaler) -> Iterator[tuple[int, Array]]:
    """Blocks of scaled rows, of length 1, each with the number of its first row."""
    for start in range(0, len(embeddings), BLOCK):
        rows = scaler(embeddings[start : start + BLOCK])
        yield start, rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def nearest(query: Array, embeddings: Array, scaler: Scaler, count: int) -> tuple[Array, Array]:
    """The rows most like a query (D,) among (N, D) embeddings, exactly: (K,) int64 row numbers and (K,) cosines of scaled
    embeddings, best first, of equals the first."""
    ((_, (target,)),) = _unit_rows(query[None], scaler)
    rows, cosines = np.empty(0, np.int64), np.empty(0, np.float32)
    for start, block in _unit_rows(embeddings, scaler):
        rows = np.concatenate([rows, np.arange(start, start + len(block))])
        cosines = np.concatenate([cosines, block @ target])
        best = np.argsort(-cosines, kind="stable")[:count]
        rows, cosines = rows[best], cosines[best]
    return rows, cosines


def varied(embeddings: Array, scaler: Scaler, count: int) -> Array:
    """(K,) int64 rows, one of every k-means cluster, the nearest to its centre; clusters with most clips first."""
    from sklearn.cluster import KMeans

    sample = np.arange(len(embeddings))
    if len(sample) > MOST_CLUSTERED:
        sample = np.sort(np.random.default_rng(0).choice(len(sample), MOST_CLUSTERED, replace=False))
    units = np.concatenate([block for _, block in _unit_rows(embeddings[sample], scaler)])
    clusters = KMeans(min(count, len(units)), n_init=1, random_state=0).fit(units)
    order = np.argsort(-np.bincount(clusters.labels_), kind="stable")
    chosen: Array = sample[clusters.transform(units).argmin(axis=0)[order]]
    return chosen
