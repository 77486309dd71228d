"""Samples of clips, and maps of embeddings: where t-SNE or UMAP puts clips, and how well classes are separated."""

from __future__ import annotations

import warnings
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from common.arrays import Array
from common.config import ScalerName
from common.features import FeatureSet
from common.heads.scalers import DEFAULT_SHRINKAGE, fit_scaler

TITLES = {"tsne": "t-SNE", "umap": "UMAP"}
NEIGHBOURS = 10  # of a clip, for purity
PRINCIPAL = 50  # components that t-SNE sees, as its authors advise (van der Maaten & Hinton 2008)
MOST_FOR_SILHOUETTE = 10_000  # clips, since every pair is compared


class FeatureMap(NamedTuple):
    """Some clips of a FeatureSet in the plane, with what a reader must know."""

    rows: Array  # (M,) row numbers of the FeatureSet, in order
    points: Array  # (M, 2) float32
    caption: str


def seeded_rows(strata: Array, most: int, seed: int = 0) -> Array:
    """About `most` row numbers (all if 0), in order, from every stratum in proportion, and at least one of each."""
    if not most or len(strata) <= most:
        return np.arange(len(strata))
    share, rng = Fraction(most, len(strata)), np.random.default_rng(seed)
    parts = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    kept = [rng.choice(part, max(1, round(share * len(part))), replace=False) for part in parts]
    return np.sort(np.concatenate(kept))


def balanced_rows(labels: Array, sides: Array, most: int) -> Array:
    """The same, with equally many rows of every side (fold or split) as far as possible, so that small sides stay."""
    rows_of = [np.flatnonzero(sides == side) for side in np.unique(sides)]
    left, rows = most or len(labels), []
    for place, of_side in enumerate(sorted(rows_of, key=len)):
        quota = min(len(of_side), left // (len(rows_of) - place))
        left -= quota
        rows.append(of_side[seeded_rows(labels[of_side], quota)])
    return np.sort(np.concatenate(rows))


def make_map(features: FeatureSet, method: str, scaler: ScalerName, most: int, seed: int) -> FeatureMap:
    """Project at most so many clips (0: all), sampled by class; the scaler is fitted on them, since a map is not a score."""
    rows = seeded_rows(features.strata, most, seed)
    raw, labels = features.features.numpy()[rows], features.strata[rows]
    scaled = fit_scaler(scaler, raw, DEFAULT_SHRINKAGE)(raw)
    shown = f"all {len(rows):,} clips"
    if len(rows) < len(features):
        shown = f"{len(rows):,} of {len(features):,} clips (sampled by class, seed {seed})"
    preparation = {"standard": "standardised", "whiten": "whitened", "none": "unscaled"}[scaler]
    caption = f"{TITLES[method]} of {shown}, {preparation} features, seed {seed}."
    # With several labels, a clip is of no one class; with as many classes as clips, neighbours are of others.
    if not features.is_multilabel and 1 < len(np.unique(labels)) < len(labels):
        chance = float(np.square(np.bincount(labels) / len(labels)).sum())
        caption += (
            f" In the {raw.shape[1]} dimensions: {100 * knn_purity(scaled, labels):.0f} % of a clip's "
            f"{min(NEIGHBOURS, len(rows) - 1)} nearest neighbours are of its class (by chance {100 * chance:.0f} %); "
            f"silhouette {silhouette(scaled, labels, seed):.2f}."
        )
    return FeatureMap(rows, project(scaled, method, seed), caption)


def project(values: Array, method: str, seed: int) -> Array:
    """(N, D) -> (N, 2) float32; the same for the same seed on one machine."""
    if len(values) < 3:
        return np.zeros((len(values), 2), np.float32)
    if method == "tsne":
        components = min(PRINCIPAL, *values.shape)
        reduced = PCA(components, random_state=seed).fit_transform(values)
        perplexity = min(30.0, (len(values) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numba's warnings, and the one that a seed means a single thread
            from common.compiled import import_compiled

            umap = import_compiled("umap")
            points = umap.UMAP(n_neighbors=min(15, len(values) - 1), random_state=seed).fit_transform(values)
    return np.asarray(points, np.float32)


def silhouette(values: Array, labels: Array, seed: int) -> float:
    """Mean silhouette of the classes (Rousseeuw 1987), on a sample of a large set."""
    most = min(len(labels), MOST_FOR_SILHOUETTE)
    return float(silhouette_score(values, labels, sample_size=most, random_state=seed))


def knn_purity(values: Array, labels: Array) -> float:
    """The share of each row's nearest other rows (Euclidean) that are of its class, on average."""
    neighbours = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(values) - 1)).fit(values)
    nearest = neighbours.kneighbors(return_distance=False)  # without the rows themselves
    return float((labels[nearest] == labels[:, None]).mean())
