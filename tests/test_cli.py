"""The scripts as a user runs them: scores, files, and one line for every mistake."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import PROJECT_ROOT, SHARED, made_up_features, needs_shared

from common.cli import classify_main, extract_main
from common.features import FeatureSet
from common.files import exclusive
from common.heads import TrainedHead
from esc50_feature_fc.esc50 import TASK

EXTRACT = PROJECT_ROOT / "esc50_feature_fc" / "extract_esc50_features_audiosep.py"
CLASSIFY = PROJECT_ROOT / "esc50_feature_fc" / "esc50_linear_classifier.py"


MAINS = {EXTRACT: extract_main, CLASSIFY: classify_main}


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


def call(script: Path, *flags) -> Result:
    """What the script does with these flags, without the seconds of starting Python anew."""
    printed, errors, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            MAINS[script](TASK, [str(flag) for flag in flags])
        except SystemExit as stop:
            status = stop.code
    return Result(status, printed.getvalue(), errors.getvalue())


def refused(result: Result) -> str:
    """The one line of an error."""
    assert result.returncode == 2, (result.stdout, result.stderr)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("error: "), result.stderr
    assert "Traceback" not in result.stderr
    return lines[-1]


@pytest.fixture(scope="module")
def esc50_features(tmp_path_factory) -> Path:
    """Made-up features under ESC-50's name: 4 classes, 5 folds."""
    features = made_up_features(folds=5)
    features.meta = {"dataset": "esc50", "checkpoint": "random:0", "samples": torch.ones(3), "failed": []}
    path = tmp_path_factory.mktemp("features") / "esc50_features_audiosep.pt"
    features.save(path)
    return path


def test_from_audio_to_scores(esc50_root: Path, tmp_path: Path, monkeypatch) -> None:
    features, results = tmp_path / "features.pt", tmp_path / "results"
    monkeypatch.chdir(esc50_root.parent)
    extracted = call(EXTRACT, "--data-root", esc50_root.name, "--checkpoint", "random:0", "--output", features)
    assert extracted.returncode == 0, extracted.stderr
    assert "10 of 10 clips" in extracted.stdout
    assert "untrained" in extracted.stdout
    again = call(EXTRACT, "--data-root", esc50_root, "--checkpoint", "random:0", "--output", features)
    assert "Nothing to do" in again.stdout
    classified = call(CLASSIFY, "--features", features, "--output-dir", results, "--epochs", 2)
    assert classified.returncode == 0, classified.stderr
    assert "official folds 1-5" in classified.stdout
    record = json.loads((results / "result.json").read_text())
    assert record["config"]["epochs"] == 2
    assert "checkpoint" not in record["config"]  # the features' own record has it
    heads = record["protocols"]["official"]["heads"]
    assert all(len(row["train_loss"]) == 2 for row in heads["linear"]["splits"])
    assert sorted(path.name for path in results.iterdir()) == sorted(["result.json", *record["files"]])
    assert record["features"]["checkpoint"] == "random:0"
    for kind, head in heads.items():
        row = next(line for line in classified.stdout.splitlines() if line.startswith(kind.replace("_", "-")))
        accuracy, _, to, _, over_folds = row.split()[1:6]
        assert (accuracy, to) == (f"{100 * head['mean']['accuracy']:.1f}", "to")
        assert over_folds == f"{100 * head['std_over_folds']['accuracy']:.1f}"
        assert np.array(head["confusion"]).sum() == 10
        assert (results / f"confusion_{kind}.png").is_file()
    embeddings = FeatureSet.load(features)
    for name in ("esc50_linear_classifier.pt", "esc50_three_classifier.pt"):
        head = TrainedHead.load(results / name)
        assert set(head.predict(embeddings.features)) <= {"dog", "rain"}
        assert head.encoder["checkpoint"] == "random:0"


def test_the_same_command_twice_gives_the_same_numbers(esc50_features: Path, tmp_path: Path) -> None:
    records = []
    for folder in ("one", "another"):
        result = call(CLASSIFY, "--features", esc50_features, "--output-dir", tmp_path / folder, "--epochs", 3)
        assert result.returncode == 0, result.stderr
        records.append(json.loads((tmp_path / folder / "result.json").read_text())["protocols"])
    assert records[0] == records[1]
    again = call(CLASSIFY, "--features", esc50_features, "--output-dir", tmp_path / "one", "--epochs", 3)
    assert "Nothing to do" in again.stdout
    (tmp_path / "one" / "esc50_linear_classifier.pt").unlink()
    mended = call(CLASSIFY, "--features", esc50_features, "--output-dir", tmp_path / "one", "--epochs", 3)
    assert "Nothing to do" not in mended.stdout
    assert (tmp_path / "one" / "esc50_linear_classifier.pt").is_file()
    assert "epochs was 3, now 4" in refused(
        call(CLASSIFY, "--features", esc50_features, "--output-dir", tmp_path / "one", "--epochs", 4)
    )
    forced = call(
        CLASSIFY, "--features", esc50_features, "--output-dir", tmp_path / "one", "--epochs", 4, "--overwrite"
    )
    assert "Epoch (of 4) chosen on" in forced.stdout


def test_flags_override_ones_own_file(esc50_features: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"epochs": 1, "batch_size": 32}))
    flags = ("--features", esc50_features, "--output-dir", tmp_path, "--config", tmp_path / "own.yaml", "--seed", 7)
    assert call(CLASSIFY, *flags).returncode == 0
    config = json.loads((tmp_path / "result.json").read_text())["config"]
    assert (config["epochs"], config["batch_size"], config["random_seed"], config["learning_rate"]) == (1, 32, 7, 1e-3)
    assert config["device"] == "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data-root", "nowhere"], "nowhere does not exist"),
        (["--checkpoint", "nowhere.bin"], "nowhere.bin not found. Get it with: python -m common.download weights"),
        (["--checkpoint", "random:x"], "random:0"),
        (["--layer", "block6"], "choose one of pre_conv"),
        (["--pool", "median"], "choose one of mean, std, max"),
        (["--condition", "nowhere.npy"], "nowhere.npy not found"),
        (["--precision", "fp8"], "precision"),
        (["--device", "cuda:9"], "not here"),
        (["--device", "gpu"], "unknown"),
        (["--workers", "many"], "workers must be a whole number"),
        (["--config", "nowhere.yaml"], "nowhere.yaml not found"),
        (["--output", "."], "is a folder; give the file to write"),
        (["--data-root", "~nosuchuser/x"], "~nosuchuser"),
        (["--config", "null.yaml"], "device must be text, not null"),
    ],
)
def test_mistakes_in_extracting(flags: list[str], words: str, esc50_root: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "null.yaml").write_text("device: null")
    given = {"--data-root": esc50_root, "--checkpoint": "random:0", "--output": tmp_path / "features.pt"}
    given |= dict(zip(flags[::2], flags[1::2], strict=True))
    line = refused(call(EXTRACT, *(part for pair in given.items() for part in pair)))
    assert words in line


def test_an_output_that_cannot_be_written(esc50_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refused(
        call(
            EXTRACT,
            "--data-root",
            esc50_root,
            "--checkpoint",
            "random:0",
            "--output",
            tmp_path / "file" / "features.pt",
        )
    )
    assert str(tmp_path / "file") in line


def test_two_fits_into_one_folder_are_refused(esc50_features: Path, tmp_path: Path) -> None:
    with exclusive(tmp_path / ".esc50_results.lock", "it"):
        line = refused(call(CLASSIFY, "--features", esc50_features, "--output-dir", tmp_path, "--epochs", 1))
    assert "another run is writing results" in line


def test_every_clip_broken(esc50_root: Path, tmp_path: Path) -> None:
    for path in (esc50_root / "audio").iterdir():
        path.write_bytes(b"")
    line = refused(
        call(EXTRACT, "--data-root", esc50_root, "--checkpoint", "random:0", "--output", tmp_path / "features.pt")
    )
    assert "all 10 clips failed" in line
    assert "empty file" in line


def altered(esc50_features: Path, tmp_path: Path, change) -> Path:
    features = FeatureSet.load(esc50_features)
    change(features)
    features.save(tmp_path / "altered.pt")
    return tmp_path / "altered.pt"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda features: features.labels.zero_(), "there is nothing to classify"),
        (lambda features: features.features[5].fill_(torch.nan), "NaN"),
        (lambda features: features.features.fill_(1), "are the same"),
        (lambda features: features.folds.fill_(4), "only fold 4 is present"),
        (lambda features: features.labels[features.folds == 3].clamp_(max=2), ""),
        (lambda features: features.meta.update(dataset="urbansound8k"), "features of urbansound8k, not of esc50"),
        (lambda features: setattr(features, "features", features.features[:, :128]), "--feature-dim 128"),
        (
            lambda features: setattr(features, "class_names", [str(name) for name in range(200)]),
            "fewer than its 200 classes",
        ),
    ],
    ids=["one class", "nan", "constant", "one fold", "ok", "other task", "other layer", "too few clips"],
)
def test_features_that_cannot_be_scored(change, words: str, esc50_features: Path, tmp_path: Path) -> None:
    path = altered(esc50_features, tmp_path, change)
    result = call(CLASSIFY, "--features", path, "--output-dir", tmp_path / "results", "--epochs", 1)
    if not words:  # clamp_ on a selection changes nothing: the control case
        assert result.returncode == 0, result.stderr
        return
    assert words in refused(result)
    assert not (tmp_path / "results").exists()


def test_a_fold_without_a_class(esc50_features: Path, tmp_path: Path) -> None:
    def change(features: FeatureSet) -> None:
        features.labels[(features.folds == 3) & (features.labels == 1)] = 0

    line = refused(
        call(CLASSIFY, "--features", altered(esc50_features, tmp_path, change), "--output-dir", tmp_path / "r")
    )
    assert "fold 3 has no clip of class class 1" in line


def test_no_features_yet(tmp_path: Path) -> None:
    assert "run the task's extract_*.py first" in refused(call(CLASSIFY, "--features", tmp_path / "none.pt"))


def test_flags_that_do_not_exist(tmp_path: Path) -> None:
    result = call(EXTRACT, "--sample-rate-as-is")
    assert result.returncode == 2
    assert "unrecognized arguments" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_the_work(stop: signal.Signals, esc50_root: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    flags = ["--data-root", esc50_root, "--checkpoint", "random:0"]
    # Enough audio that the stop comes in the middle.
    long_clip = esc50_root / "audio" / "2-1002-A-0.wav"
    soundfile.write(long_clip, 0.1 * np.random.default_rng(0).standard_normal(44_100 * 20), 44_100)
    process = subprocess.Popen(
        [sys.executable, EXTRACT, *flags, "--output", tmp_path / "features.pt"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a shell ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "features.pt.partial" / "settings.json").exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.7)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    last = errors.splitlines()[-1]
    assert "of 10 clips are kept; the same command goes on from there" in last
    assert "Traceback" not in errors
    assert call(EXTRACT, *flags, "--output", tmp_path / "features.pt").returncode == 0
    assert call(EXTRACT, *flags, "--output", whole).returncode == 0
    assert (tmp_path / "features.pt").read_bytes() == whole.read_bytes()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(esc50_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    line = refused(
        call(EXTRACT, "--data-root", esc50_root, "--checkpoint", "random:0", "--output", folder / "features.pt")
    )
    assert "Permission denied" in line
    shutil.rmtree(folder)


@needs_shared
def test_the_published_features(tmp_path: Path) -> None:
    folder = SHARED / "reference_features"
    line = refused(call(CLASSIFY, "--features", folder / "icbhi_features_audiosep.pt", "--output-dir", tmp_path))
    assert "all 887 labels are '0'" in line
    result = call(
        CLASSIFY, "--features", folder / "esc50_features_audiosep.pt", "--output-dir", tmp_path, "--epochs", 1
    )
    assert result.returncode == 0, result.stderr
    assert "recognised as all of ESC-50" in result.stdout
    assert "official folds 1-5" in result.stdout
