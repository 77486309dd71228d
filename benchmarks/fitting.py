"""How much faster heads are fitted together than one at a time, as by the original project: python benchmarks/fitting.py.

Both ways fit the same heads on the same generated features of ESC-50's size, and take turns.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

import common  # noqa: F401  # first: it says what is missing

if TYPE_CHECKING:
    import torch

    from common.features import FeatureSet
    from common.heads import HeadKind, Split

EPOCHS, CLIPS, CLASSES, FOLDS = 20, 2000, 50, 5  # of ESC-50's size


def main() -> None:
    """Fit both ways in turns; print a line per kind and number of heads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of both ways (default: 3)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds fitted together with 5 folds (default: 5)")
    arguments = parser.parse_args()
    import numpy as np
    import torch
    from measuring import medians_in_turns
    from sklearn.datasets import make_blobs

    from common.encoder import resolve_device
    from common.features import FeatureSet
    from common.heads import HEADS, Job, Recipe, Split, fit_heads

    device, rows = resolve_device(arguments.device), np.arange(CLIPS)
    values, labels = make_blobs(CLIPS, 384, centers=CLASSES, cluster_std=3.0, center_box=(-2, 2), random_state=0)
    names, clip_ids = [str(label) for label in range(CLASSES)], [str(row) for row in rows]
    features = FeatureSet(torch.from_numpy(values).float(), torch.from_numpy(labels), names, clip_ids)
    of_fold = rows // (CLIPS // FOLDS)
    splits = [Split(f"fold {fold}", rows[of_fold != fold], rows[of_fold == fold]) for fold in range(FOLDS)]
    for kind, n_seeds in itertools.product(HEADS, sorted({1, arguments.seeds})):
        jobs = [Job(split, seed) for seed in range(n_seeds) for split in splits]
        together = partial(fit_heads, kind, features, jobs, Recipe(EPOCHS, 8, 1e-3), device)
        ways = [partial(fit_plainly, kind, features, splits[0], device), together]
        plain_s, together_s = medians_in_turns(ways, arguments.rounds, device)
        plain_ms, together_ms = 1000 * plain_s / EPOCHS, 1000 * together_s / EPOCHS / len(jobs)
        print(
            f"{kind:<12} {len(jobs):>3} heads together: {together_ms:7.1f} ms per head and epoch, "
            f"plain {plain_ms:7.1f} ms: {plain_ms / together_ms:5.1f} times as fast",
            flush=True,
        )


def fit_plainly(kind: HeadKind, features: FeatureSet, split: Split, device: torch.device) -> None:
    """Fit a head the plain way, with predictions for the test rows after every epoch, as `fit_heads` makes them."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from common.heads import new_head

    train = TensorDataset(features.features[split.train], features.labels[split.train])
    test = TensorDataset(features.features[split.test], features.labels[split.test])
    module = new_head(kind, features.features.shape[1], len(features.class_names)).to(device)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        total = 0.0
        for batch, labels in DataLoader(train, batch_size=8, shuffle=True):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(module(batch.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        with torch.no_grad():
            for batch, _ in DataLoader(test, batch_size=8):
                module(batch.to(device)).argmax(dim=1).cpu()


if __name__ == "__main__":
    main()
