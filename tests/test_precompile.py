"""What the installation compiles is all that is compiled on such a CPU."""

from __future__ import annotations

import sys
from unittest import mock

from common import precompile
from common.datasets import Prepared
from common.encoder import load_encoder
from common.encoder.fast_cpu import table, winograd
from common.evaluation.splits import make_splits
from common.heads import HEADS, Job, Recipe, fit_heads, steps
from tests.support.heads import CPU, small_features
from tests.support.samples import noise


def test_each_function_is_compiled_once() -> None:
    """Wherever it is used: for other sizes and types of arrays, numba would compile it once more."""
    with mock.patch.object(sys, "argv", ["precompile"]):
        precompile.main()
    encoder = load_encoder("random:2024", device="cpu")
    encoder.embed_layers([noise(seed, samples) for seed, samples in enumerate([9_920, 160_000])])
    features = small_features()
    jobs = [Job(split, 42) for split in make_splits(Prepared(features))[0]]
    for kind in HEADS:
        fit_heads(kind, features, jobs, Recipe(epochs=1, batch_size=8, learning_rate=1e-3), CPU)
    for function in (table._read, winograd._to_points, winograd._to_outputs):
        assert len(function.signatures) == 1, function
    assert len(steps.take_steps.signatures) == 2 * len(HEADS)  # one label a clip, and several
