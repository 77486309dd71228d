"""Compile the loops that numba compiles, and keep them for later commands on such a CPU: python -m common.precompile.

Without it, the first embedding and the first fit do so, and take some seconds longer. `make install` runs it.
"""

from __future__ import annotations

import argparse
import time

from common.entry import run


def main() -> None:
    """Embed a second of noise, and take one step of a head of each kind."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False).parse_args()
    import torch

    from common.encoder import load_encoder
    from common.heads.compiled_fit import CompiledFit
    from common.heads.recipes import Recipe
    from common.heads.scaled_rows import append_one, padded_rows

    started = time.perf_counter()
    encoder = load_encoder("random:0", device="cpu")
    encoder.embed([torch.randn(encoder.sample_rate)])
    recipe = Recipe(epochs=1, batch_size=8, learning_rate=1e-3)
    order, shares, size = torch.arange(8)[None], torch.full((1, 8), 1 / 8), 16
    for sizes in ((size, 2), (size, size, size, 2)):  # a linear and a three-layer head
        layers = [torch.zeros(1, padded_rows(size), n_outputs) for n_outputs in sizes[1:]]
        rows = append_one(torch.zeros(8, size))
        CompiledFit(layers, size, recipe, [1]).run(0, rows, order, torch.zeros(1, 8, dtype=torch.int64), shares)
    print(f"compiled in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    run(main)
