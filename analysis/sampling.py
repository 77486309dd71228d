"""Seeded samples of clips, stratified."""

from __future__ import annotations

import numpy as np

from common.arrays import Array


def seeded_rows(strata: Array, most: int, seed: int = 0) -> Array:
    """About `most` row numbers (all if 0), in order, from every stratum in proportion, and at least one of each."""
    if not most or len(strata) <= most:
        return np.arange(len(strata))
    rng = np.random.default_rng(seed)
    kept = []
    for stratum in np.unique(strata):
        of_stratum = np.flatnonzero(strata == stratum)
        kept.append(rng.choice(of_stratum, max(1, round(most * len(of_stratum) / len(strata))), replace=False))
    return np.sort(np.concatenate(kept))


def balanced_rows(labels: Array, sides: Array, most: int, seed: int = 0) -> Array:
    """The same, with equally many rows of every side (fold or split) as far as possible, so that small sides stay."""
    left, quotas = most or len(labels), {}
    counts = dict(zip(*np.unique(sides, return_counts=True), strict=True))
    for place, side in enumerate(sorted(counts, key=counts.__getitem__)):
        quotas[side] = min(counts[side], left // (len(counts) - place))
        left -= quotas[side]
    rows = []
    for side, quota in quotas.items():
        of_side = np.flatnonzero(sides == side)
        rows.append(of_side[seeded_rows(labels[of_side], quota, seed)])
    return np.sort(np.concatenate(rows))
