"""What an extraction says of clips that their owner may not know."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.support.own_sounds import folder_of_classes, probe


def test_silent_clips_and_copies_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = folder_of_classes(tmp_path / "sounds")
    probe(classes, "--output-dir", tmp_path / "before")
    assert "note: " not in capsys.readouterr().out
    second = np.sin(2 * np.pi * 440 * np.arange(32_000) / 32_000)
    soundfile.write(classes / "low" / "cancels.wav", np.stack([second, -second], axis=1), 32_000)
    bat = np.hanning(192_000) * np.sin(2 * np.pi * 40_000 * np.arange(192_000) / 192_000)
    soundfile.write(classes / "high" / "ultrasound.wav", 0.5 * bat, 192_000)
    shutil.copy(classes / "low" / "0.wav", classes / "high" / "copy.wav")
    for name in ("a copy of its own class", "another"):
        shutil.copy(classes / "low" / "0.wav", classes / "low" / f"{name}.wav")
    probe(classes, "--output-dir", tmp_path / "after")
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    silent, copies = notes
    assert "rate: 2 of 21 clips, such as" in silent and "high/ultrasound.wav" in silent
    assert copies.endswith("have different labels: 1 files, such as high/copy.wav and low/0.wav")


def test_copies_on_two_sides_of_a_division_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of_classes(tmp_path)
    shutil.copy(tmp_path / "low" / "0.wav", tmp_path / "low" / "again.wav")
    rows = [f"{name}/{n}.wav,{name},{n % 2 + 1}" for name in ("high", "low") for n in range(8)]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,fold", *rows, "low/again.wav,low,2"]))
    probe(tmp_path / "table.csv", "--output-dir", tmp_path / "out")
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert note.endswith("have different folds or splits: 1 files, such as low/0.wav and low/again.wav")
