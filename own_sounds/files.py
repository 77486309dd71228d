"""Audio files that a user names, whole or in windows."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config import ConfigError
from common.datasets import DatasetError, DatasetMissingError, DatasetNote
from own_sounds.sounds import find_audio

SHORTEST = 0.1  # of a window; a shorter rest at a file's end is part of no window


@dataclass(frozen=True)
class Windows:
    """Windows of `window_s` seconds, one every `hop_s`."""

    window_s: float
    hop_s: float

    @classmethod
    def given(cls, window: float | None, hop: float | None) -> Windows | None:
        """As the flags ``--window`` and ``--hop`` say; None for whole files. ConfigError if the values cannot be."""
        if window is None:
            if hop is not None:
                raise ConfigError("--hop needs --window")
            return None
        own = cls(window, window if hop is None else hop)
        for name, value in (("window", own.window_s), ("hop", own.hop_s)):
            if not 0.01 <= value <= 86_400:
                raise ConfigError(f"--{name} must be from 0.01 to 86400 seconds, not {value}")
        return own


def expand(paths: Sequence[Path]) -> list[Path]:
    """The files, and the audio files of the folders among them; DatasetError if one is missing or holds none."""
    found: list[Path] = []
    for path in paths:
        path = Path(os.path.realpath(path.expanduser()))
        if path.is_dir():
            audio, others = find_audio(path)
            if not audio:
                raise DatasetError(f"{path} holds no audio files")
            if others:
                warnings.warn(f"{path}: {len(others)} files that are no audio are left out", DatasetNote, stacklevel=2)
            found += audio
        elif path.exists():
            found.append(path)
        else:
            raise DatasetMissingError(f"{path} not found; give audio files or folders of them")
    return list(dict.fromkeys(found))


def windows_of(path: Path, window_s: float, hop_s: float) -> list[tuple[float, float]]:
    """(start, end) in seconds of the windows that cover a file, from its header.

    The last one ends with the file. A file that is shorter than a window is one.

    Raises:
        AudioError: the file cannot be opened as audio.
    """
    from common.datasets.audio import audio_duration_s

    duration_s, number = audio_duration_s(path), 0
    windows: list[tuple[float, float]] = []
    while not windows or number * hop_s + SHORTEST * window_s < duration_s:
        start = round(number * hop_s, 6)
        windows.append((start, min(start + window_s, duration_s)))
        if windows[-1][1] >= duration_s:
            break
        number += 1
    return windows
