"""The control without an encoder: the same numbers alone and in company, and an extraction like any other."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.cli import classify_main, extract_main
from common.encoder.logmel import LogMelStatistics
from common.evaluation.record import RunRecord
from common.features import FeatureSet
from esc50_feature_fc.esc50 import TASK
from tests.support.samples import noise


def test_log_mel_of_a_tone_is_the_same_alone_and_in_a_batch() -> None:
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


def test_log_mel_features_record_their_provenance(
    esc50_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data-root", str(esc50_root), "--encoder", "logmel", "--output", str(tmp_path / "logmel.pt")]
    extract_main(TASK, arguments)
    features = FeatureSet.load(tmp_path / "logmel.pt")
    assert features.features.shape == (10, 256)
    assert (features.meta["checkpoint"], features.meta["layer"]) == ("logmel", "logmel")
    assert "no encoder: log-mel statistics, as a control" in capsys.readouterr().out
    assert (features.meta["parameters"], features.meta["min_samples"]) == (0, 2048)
    extract_main(TASK, arguments)
    assert "Nothing to do" in capsys.readouterr().out


@pytest.mark.usefixtures("no_figures")
def test_log_mel_features_and_results_are_kept_apart_from_audiosep_s(esc50_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "task"
    task = replace(TASK, folder=folder)
    extract_main(task, ["--data-root", str(esc50_root), "--encoder", "logmel"])
    assert [path.name for path in folder.iterdir()] == ["esc50_features_logmel.pt"]
    classify_main(task, ["--encoder", "logmel", "--epochs", "1", "--device", "cpu"])
    record = RunRecord.load(folder / "logmel" / "result.json")
    assert (record.config.encoder, record.features.checkpoint, record.features.width) == ("logmel", "logmel", 256)
    assert not (folder / "result.json").exists()
    assert TASK.features_of("logmel") == TASK.folder / "esc50_features_logmel.pt"
    assert TASK.output_dir_of("logmel") == TASK.folder / "logmel"
    assert TASK.features_of("audiosep") == TASK.folder / TASK.features_file
    assert TASK.output_dir_of("audiosep") == TASK.folder


def test_where_nothing_can_be_kept_it_runs() -> None:
    """In a container with a read-only installation and no home, numba ended the import of librosa."""
    code = """
import numpy as np
from numba.core import caching

def refuse(self):
    raise OSError("read-only")

for locator in (caching.InTreeCacheLocator, caching.UserWideCacheLocator, caching.InTreeCacheLocatorFsAgnostic):
    locator.ensure_cache_path = refuse
from common.encoder.logmel import LogMelStatistics
print(LogMelStatistics().embed([np.ones(32_000, np.float32)]).shape)
import numba
print(numba.config.CACHE_DIR)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    shape, folder = result.stdout.splitlines()
    assert shape == "torch.Size([1, 256])"
    assert folder and not Path(folder).exists()
