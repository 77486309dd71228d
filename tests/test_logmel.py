"""The control without an encoder: the same numbers alone and in company, and an extraction like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise

from common.cli import extract_main
from common.encoder.logmel import LogMelStatistics
from common.features import FeatureSet
from esc50_feature_fc.esc50 import TASK


def test_statistics_of_a_tone() -> None:
    time = np.arange(32_000) / 32_000
    tone = (0.5 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32)
    waveforms = [tone, 0.1 * tone, noise(0, 300), noise(1, 20_000)]
    embeddings = LogMelStatistics().embed(waveforms)
    assert embeddings.shape == (4, 256)
    assert torch.isfinite(embeddings).all()
    loudest = int(embeddings[0, :128].argmax())
    # A tenth of the amplitude is 20 dB less; away from the edges the tone is steady.
    assert abs(embeddings[0, loudest] - embeddings[1, loudest] - 20) < 0.01
    assert embeddings[0, 128 + loudest] < 1.5
    for row, waveform in enumerate(waveforms):
        assert torch.equal(LogMelStatistics().embed([waveform])[0], embeddings[row])


def test_no_clip_gives_no_row() -> None:
    """As where the only clip of a call is broken."""
    assert LogMelStatistics().embed([]).shape == (0, 256)


def test_an_extraction_with_its_provenance(
    esc50_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data-root", str(esc50_root), "--checkpoint", "logmel", "--output", str(tmp_path / "logmel.pt")]
    extract_main(TASK, arguments)
    features = FeatureSet.load(tmp_path / "logmel.pt")
    assert features.features.shape == (10, 256)
    assert (features.meta["checkpoint"], features.meta["layer"]) == ("logmel", "logmel")
    assert "say nothing about AudioSep" in capsys.readouterr().out
    extract_main(TASK, arguments)
    assert "Nothing to do" in capsys.readouterr().out
