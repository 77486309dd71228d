"""Compile the loops that numba compiles, and keep them for later commands on such a CPU: python -m common.precompile.

Without it, the first embedding and the first fit do so, and take some seconds longer. `make install` runs it.
"""

from __future__ import annotations

import argparse
import time

from common.flags import run


def main() -> None:
    """Embed a second of noise, and take one step of a head of each kind, with one label a clip and with several."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False).parse_args()
    import torch

    from common.encoder import load_encoder
    from common.features import FeatureSet
    from common.heads import HEADS, Job, Recipe, Split, fit_heads

    started = time.perf_counter()
    encoder = load_encoder("random:0", device="cpu")
    encoder.embed([torch.randn(encoder.sample_rate)])
    rows = torch.arange(4)
    job = Job(Split("all", rows.numpy(), rows.numpy()), seed=0)
    for labels in (rows % 2, torch.eye(4, 2, dtype=torch.bool)):
        features = FeatureSet(torch.eye(4), labels, ["0", "1"], ["a", "b", "c", "d"])
        for kind in HEADS:
            fit_heads(kind, features, [job], Recipe(1, 8, 1e-3, scaler="none"), torch.device("cpu"))
    print(f"compiled in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    run(main)
