"""The data beside the project, and small stand-ins for data: noise, audio files, tables, features of clips."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from common.datasets import Clip
from common.encoder import Encoder, Output, choose_outputs
from common.encoder.audiosep import DEFAULT_LAYER, DEFAULT_POOL
from common.extraction import ClipList, ExtractOptions, Share, ThisProcess, Threads, extract
from common.features import FeatureSet
from common.files import PROJECT_ROOT

SHARED = PROJECT_ROOT.parent / "shared"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the samples and golden outputs are not beside the project"
)


def extract_clips(
    clips: Sequence[Clip],
    root: Path,
    encoder: Encoder,
    output: Path,
    *,
    dataset: str = "test",
    class_order: Sequence[str] | None = None,
    layer: str = DEFAULT_LAYER,
    pool: str = DEFAULT_POOL,
    workers: int | None = None,
    overwrite: bool = False,
    share: Share | None = None,
    allow_missing: bool = False,
    part_size: int = 0,
) -> FeatureSet | None:
    """`extract` of one output of the encoder, with what a test does not care about left out; None: not finished yet."""
    maker = ThisProcess(encoder, [find_output(encoder.outputs, layer, pool)], Threads.shared(decode=workers or 0))
    options = ExtractOptions(overwrite, share or Share(), allow_missing, part_size)
    is_finished = extract(maker, ClipList(clips, root, dataset, class_order), output, options)
    return FeatureSet.load(output) if is_finished else None


def noise(seed: int, samples: int) -> np.ndarray:
    """Quiet white noise, float32."""
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def write_wav(path: Path, seed: int = 0, seconds: float = 0.35, rate: int = 32_000, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seed, round(seconds * rate)), rate, **options)
    return path


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def made_up_features(
    n_classes: int = 4, per_fold: int = 6, folds: int = 3, size: int = 384, seed: int = 0
) -> FeatureSet:
    """Features of overlapping classes: every fold holds `per_fold` clips of each class."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.repeat(np.arange(n_classes), per_fold), folds)
    centres = rng.standard_normal((n_classes, size))
    values = 5 + 0.35 * centres[labels] + rng.standard_normal((len(labels), size))
    return FeatureSet(
        torch.from_numpy(values).float(),
        torch.from_numpy(labels),
        [f"class {label}" for label in range(n_classes)],
        [f"clip{row}.wav" for row in range(len(labels))],
        torch.from_numpy(np.repeat(np.arange(1, folds + 1), n_classes * per_fold)),
    )


def find_output(outputs: Sequence[Output], layer: str, pool: str) -> Output:
    """The one of an encoder's outputs with this layer and pooling."""
    (output,) = choose_outputs(outputs, outputs[0], layer, pool)
    return output
