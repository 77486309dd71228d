"""Fixtures: an untrained encoder and a stand-in for it, and small data sets in the official layouts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

# What tests compute is too small to share between cores; tests of threads choose their number. Threads that wait should not
# keep a core busy. Both are read when torch is loaded, so they come first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

from common.datasets import Clip
from common.encoder import AudioSepEncoder, checkpoint, choose, load_encoder
from common.encoder.checkpoint import Weights
from tests.support.heads import draw_nothing
from tests.support.samples import write_csv, write_wav
from tests.support.stand_in import StandIn, load_stand_in


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


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty files for a classification's figures, which have tests of their own."""
    draw_nothing(monkeypatch)


@pytest.fixture
def clips(tmp_path: Path) -> tuple[Path, list[Clip]]:
    """A data root with 12 short clips of 3 classes in 2 folds, of different lengths."""
    root = tmp_path / "audio"
    listed = [
        Clip(
            write_wav(root / f"fold{index % 2 + 1}" / f"clip{index:02d}.wav", index, 0.3 + 0.03 * index),
            ("abc"[index % 3],),
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
