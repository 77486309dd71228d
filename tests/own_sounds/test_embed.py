"""Embeddings of files, folders and windows, in every format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from common.datasets.audio import AudioError, read_audio
from common.encoder import LogMelStatistics
from common.features import FeatureSet
from own_sounds.embed import embed_main
from tests.support.own_sounds import folder_of_classes, tone
from tests.support.scripts import call, refused


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    return folder_of_classes(tmp_path / "My sounds")


def test_embed_writes_the_encoder_s_embeddings_and_names_failed_files(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = tone(tmp_path / "single.flac", 500, rate=44_100)
    broken = classes / "low" / "broken.wav"
    broken.write_bytes(b"RIFF")
    embed_main([str(classes), str(single), "-o", str(tmp_path / "e.csv"), "--encoder", "logmel"])
    assert "broken.wav" in capsys.readouterr().err
    features = FeatureSet.load(tmp_path / "e.pt")
    assert len(features) == 17 and features.class_names == [] and features.labels.tolist() == [-1] * 17
    table = pd.read_csv(tmp_path / "e.csv")
    assert table.clip_id.tolist() == features.clip_ids and table.shape == (17, 257)
    encoder = LogMelStatistics()
    embedding = encoder.embed_files([single])[0]
    assert torch.equal(embedding, features.features[features.clip_ids.index("single.flac")])
    with pytest.raises(AudioError, match=r"broken.wav"):
        encoder.embed_files([broken])
    embed_main([str(classes), str(single), "-o", str(tmp_path / "e.npz"), "--encoder", "logmel"])
    with np.load(tmp_path / "e.npz") as content:
        np.testing.assert_array_equal(content["features"], features.features.numpy())


def test_a_window_s_embedding_has_its_times_and_is_that_of_its_samples(tmp_path: Path) -> None:
    path = tone(tmp_path / "day.wav", 500, seconds=2.1)
    embed_main([str(path), "-o", str(tmp_path / "w.pt"), "--encoder", "logmel", "--window", "1", "--hop", "0.5"])
    features = FeatureSet.load(tmp_path / "w.pt")
    assert features.clip_ids[1] == "day.wav#0.5-1.5"
    encoder = LogMelStatistics()
    part = read_audio(path, encoder.sample_rate, 0.5, 1.5)
    assert torch.equal(encoder.embed([part])[0], features.features[1])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-o", "x.txt"], "give a name that ends in .pt, .npz, .parquet, .csv"),
        (["-o", "x.pt", "--hop", "1"], "--hop needs --window"),
        (["-o", "x.pt", "--window", "0"], "argument --window: 0 is not from 0.01 to 86400 seconds"),
    ],
)
def test_wrong_flags_of_embed_are_refused(flags: list[str], message: str, tmp_path: Path) -> None:
    assert message in refused(call(embed_main, tone(tmp_path / "a.wav", 500), *flags))


def test_waveforms_at_another_rate_are_resampled(tmp_path: Path) -> None:
    encoder, path = LogMelStatistics(), tone(tmp_path / "a.wav", 500, rate=8000, seconds=1)
    samples, rate = soundfile.read(path, dtype="float32")
    assert torch.equal(encoder.embed([samples], sample_rate=rate), encoder.embed_files([path]))
    assert not torch.equal(encoder.embed([samples]), encoder.embed_files([path]))
    with pytest.raises(ValueError, match="sample_rate 8 is not one of audio"):
        encoder.embed([samples], sample_rate=8)
