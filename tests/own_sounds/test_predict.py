"""Predictions of a trained head: tables, JSON, timelines, and the mark "none of these"."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from common.datasets.audio import read_audio
from own_sounds.predict import predict_main
from tests.support.heads import draw_nothing
from tests.support.own_sounds import folder_of_classes, probe, tone
from tests.support.scripts import call, refused


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    return folder_of_classes(tmp_path / "My sounds")


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        probe(folder_of_classes(folder / "My sounds"), "--output-dir", folder / "out")
    return folder / "out"


@pytest.fixture
def head(trained_once: Path, tmp_path: Path) -> Path:
    """A head trained on `folder_of_classes`."""
    return Path(shutil.copytree(trained_once, tmp_path / "trained")) / "own_my_sounds_linear_classifier.pt"


def test_predict_prints_and_writes_the_classes_of_files(
    head: Path, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tone(tmp_path / "new.wav", 310, seed=99, rate=44_100)
    table = tmp_path / "predictions.csv"
    predict_main([str(head), str(file), str(classes / "high"), "--csv", str(table)])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 10 and printed[1].split()[:2] == ["new.wav", "low"]
    with table.open() as rows:
        predictions = list(csv.DictReader(rows))
    assert [row["class_name"] for row in predictions] == ["low", *["high"] * 8]
    assert float(predictions[0]["low"]) + float(predictions[0]["high"]) == pytest.approx(1)
    predict_main([str(head), str(file), "--json", "--top", "1"])
    ((answer,),) = (json.loads(capsys.readouterr().out),)
    assert answer["classes"][0]["class_name"] == "low" and answer["start_s"] is None


def test_sounds_far_from_the_training_clips_are_marked(
    head: Path, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And training clips are not."""
    silent = tmp_path / "silence.wav"
    soundfile.write(silent, np.zeros(8000, np.float32), 16_000)
    known = sorted(classes.rglob("*.wav"))[0]
    predict_main(
        [str(head), str(known), str(silent), "--json", "--none-of-these", "0.3", "--csv", str(tmp_path / "p.csv")]
    )
    captured = capsys.readouterr()
    first, second = json.loads(captured.out)
    assert (first["none_of_these"], second["none_of_these"]) == (False, True)
    assert (
        first["distance"] < second["distance"]
        and "which may be of the same recordings as training clips" in captured.err
    )
    assert pd.read_csv(tmp_path / "p.csv")["none_of_these"].tolist() == [0, 1]
    predict_main([str(head), str(silent), "--none-of-these", "0.3"])
    assert "none of these" in capsys.readouterr().out
    predict_main([str(head), str(silent), "--none-of-these", "0.3", "--window", "0.2", "--plot", str(tmp_path / "t")])
    assert (tmp_path / "t" / "silence_timeline.png").exists()
    assert "Windows of a different length than the training clips" in capsys.readouterr().err
    for flags, message in (
        (("0.0001",), "needs at least 9999 held-out clips"),
        (("5",), "is not between 0 and 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            predict_main([str(head), str(silent), "--none-of-these", *flags])
        assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_windows_are_printed_and_drawn_as_a_timeline(
    head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [read_audio(tone(tmp_path / f"{hertz}.wav", hertz, seconds=1), 16_000) for hertz in (300, 2000, 300)]
    soundfile.write(tmp_path / "both.wav", np.concatenate(parts), 16_000)
    flags = ["--window", "1", "--plot", str(tmp_path / "plots")]
    predict_main([str(head), str(tmp_path / "both.wav"), *flags])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[1:3] for line in lines] == [["0.00-1.00", "low"], ["1.00-2.00", "high"], ["2.00-3.00", "low"]]
    assert (tmp_path / "plots" / "both_timeline.png").read_bytes().startswith(b"\x89PNG")


def test_predict_names_failed_files_and_refuses_what_cannot_be(
    head: Path, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"")
    predict_main([str(head), str(broken), str(classes / "low" / "0.wav")])
    assert "failed: " in (printed := capsys.readouterr().err) and "1 of 2 files failed" in printed

    def message(*flags: object) -> str:
        return refused(call(predict_main, *flags))

    assert "none of the 1 files could be read" in message(head, broken)
    assert "not found; classification writes" in message(tmp_path / "no.pt", broken)
    features = head.parent / "own_my_sounds_features_logmel.pt"
    assert "it is a feature file" in message(features, classes / "low")
    assert "--plot shows what is heard over time; add --window S" in message(
        head, classes / "low", "--plot", tmp_path / "p"
    )
    content = torch.load(head, weights_only=True)
    content["encoder"] |= {"kind": "hear", "encoder": "hear:mine.py"}
    torch.save(content, tmp_path / "other.pt")
    assert "say where that is: --encoder hear:FOLDER/mine.py" in message(tmp_path / "other.pt", classes / "low")
    shutil.copy(head, tmp_path / "kept.pt")
    assert "the head was trained with encoder log-mel" in message(
        tmp_path / "kept.pt", classes / "low", "--encoder", "audiosep", "--checkpoint", "random:0", "--device", "cpu"
    )
