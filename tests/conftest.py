"""Fixtures: an untrained encoder and a stand-in for it, and small data sets in the official layouts."""

from __future__ import annotations

import csv
import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# What tests compute is too small to share between cores; tests of threads choose their number. Threads that wait should not
# keep a core busy. Both are read when torch is loaded, so they come first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import soundfile
import torch
from stand_in import StandIn, load_stand_in

from common.datasets import Clip
from common.encoder import AudioSepEncoder, Encoder, checkpoint, choose, find_output, load_encoder
from common.encoder.audiosep import DEFAULT_LAYER, DEFAULT_POOL
from common.encoder.checkpoint import Weights
from common.evaluation import plots
from common.extraction import ClipList, ExtractOptions, Shard, extract
from common.features import FeatureSet
from common.files import PROJECT_ROOT

SHARED = PROJECT_ROOT.parent / "shared"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the samples and golden outputs are not beside the project"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU here"))
    if not torch.backends.mps.is_available():
        for item in items:
            if "mps" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no Apple silicon here"))


@pytest.fixture(scope="session", autouse=True)
def draw_weights_once() -> Iterator[None]:
    """Untrained weights, which take half a second, are drawn once; encoders copy them."""
    drawn: dict[tuple[str, tuple[tuple[str, tuple[int, ...]], ...]], Weights] = {}
    draw = checkpoint._random_weights

    def kept(name: str, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
        key = (name, tuple(shapes.items()))
        if key not in drawn:
            drawn[key] = draw(name, shapes)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_random_weights", kept)
        yield


@pytest.fixture(scope="session")
def encoder() -> AudioSepEncoder:
    return load_encoder("random:2024", device="cpu")


@pytest.fixture
def stand_in() -> StandIn:
    """In the encoder's place, where it is not what is tested."""
    return StandIn()


@pytest.fixture
def scripts_load_the_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What scripts load for a moment is the stand-in, whatever the checkpoint."""
    monkeypatch.setattr(choose, "load_encoder", load_stand_in)


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Let figures be empty files: drawing them takes longer than all the rest of a small run."""

    def write(plot: Callable[..., None], *arguments: Any) -> None:
        inspect.signature(plot).bind(*arguments)
        Path(arguments[-1]).touch()

    for name in ("plot_confusion", "plot_curves", "plot_label_efficiency", "plot_per_class", "plot_reliability"):
        plot = getattr(plots, name)
        patch.setattr(f"common.evaluation.plots.{name}", functools.partial(write, plot))


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty files for a classification's figures, which have tests of their own."""
    draw_nothing(monkeypatch)


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
    shard: Shard | None = None,
    allow_missing: bool = False,
) -> FeatureSet | None:
    """`extract` of one output of the encoder, with what a test does not care about left out."""
    return extract(
        ClipList(clips, root, dataset, class_order),
        encoder,
        output,
        [find_output(encoder.outputs, layer, pool)],
        ExtractOptions(workers, overwrite, shard or Shard(), allow_missing),
    )


def noise(seed: int, samples: int) -> np.ndarray:
    """Quiet white noise, float32."""
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def write_wav(path: Path, seed: int = 0, seconds: float = 0.35, rate: int = 32_000, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seed, round(seconds * rate)), rate, **options)
    return path


@pytest.fixture
def clips(tmp_path: Path) -> tuple[Path, list[Clip]]:
    """A data root with 12 short clips of 3 classes in 2 folds, of different lengths."""
    root = tmp_path / "audio"
    listed = [
        Clip(
            write_wav(root / f"fold{index % 2 + 1}" / f"clip{index:02d}.wav", index, 0.3 + 0.03 * index),
            "abc"[index % 3],
            fold=index % 2 + 1,
            group=f"source{index // 2}",
        )
        for index in range(12)
    ]
    return root, listed


@pytest.fixture
def esc50_root(tmp_path: Path) -> Path:
    """ESC-50's layout with 2 classes, 5 folds, one short clip a class and fold."""
    root = tmp_path / "ESC-50-master"
    rows = [
        (f"{fold}-{1000 + fold}-A-{target}.wav", fold, target, name, "True", 1000 + fold, "A")
        for fold in range(1, 6)
        for target, name in ((0, "dog"), (10, "rain"))
    ]
    for row in rows:
        write_wav(root / "audio" / row[0], seed=1000 * row[1] + row[2], seconds=0.32, rate=44_100)
    write_csv(
        root / "meta" / "esc50.csv", ("filename", "fold", "target", "category", "esc10", "src_file", "take"), rows
    )
    return root


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
