"""Sounds for the tests of own_sounds: tones, a folder of two classes, and a quick probe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from own_sounds.probe import probe_main
from tests.support.heads import on_one_thread
from tests.support.samples import noise

FAST = ("--encoder", "logmel", "--epochs", "4", "--learning-rate", "0.01", "--hidden-dim", "16", "--no-refit")


def tone(path: Path, hertz: float, seed: int = 0, seconds: float = 0.3, rate: int = 16_000) -> Path:
    """A tone with noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(
        path, (0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32) + 0.1 * noise(seed, len(time)), rate
    )
    return path


def folder_of_classes(root: Path) -> Path:
    """A sub-folder per class."""
    for place, name in enumerate(("high", "low")):
        for number in range(8):
            tone(root / name / f"{number}.wav", 2000 - 1700 * place, number, seconds=1)
    return root


def probe(*flags: object, epochs: int = 4) -> None:
    with on_one_thread():
        probe_main([*map(str, flags), *FAST, "--epochs", str(epochs)])
