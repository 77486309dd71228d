"""The scripts as a user runs them: scores, files, and one line for every mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from common.cli import classify_main, extract_main
from common.datasets.audio import read_audio
from common.encoder import choose, load_encoder
from common.features import FeatureSet
from common.files import PROJECT_ROOT, exclusive
from common.heads import TrainedHead
from esc50_feature_fc.esc50 import TASK
from tests.support import processes
from tests.support.samples import SHARED, made_up_features, needs_shared
from tests.support.scripts import Result, call, refused
from tests.support.stand_in import StandIn, halt, load_stand_in

EXTRACT = PROJECT_ROOT / "esc50_feature_fc" / "extract_esc50_features_audiosep.py"
extract_esc50, classify_esc50 = partial(extract_main, TASK), partial(classify_main, TASK)


@pytest.fixture(scope="module")
def esc50_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up features under ESC-50's name: 4 classes, 3 folds."""
    features = replace(
        made_up_features(),
        meta={"dataset": "esc50", "checkpoint": "random:0", "samples": torch.ones(3), "failed": []},
    )
    path = tmp_path_factory.mktemp("features") / "esc50_features_audiosep.pt"
    features.save(path)
    return path


def test_from_audio_to_scores(esc50_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with the real encoder, through the real script; elsewhere the stand-in serves."""
    features, results = tmp_path / "features.pt", tmp_path / "results"
    monkeypatch.chdir(esc50_root.parent)
    flags = ["--data-root", esc50_root.name, "--checkpoint", "random:0", "--device", "cpu", "--output", features]
    extracted = subprocess.run([sys.executable, EXTRACT, *flags], capture_output=True, text=True, check=False)
    assert extracted.returncode == 0, extracted.stderr
    assert "10 of 10 clips" in extracted.stdout
    assert "untrained" in extracted.stdout
    encoder = load_encoder("random:0", "cpu")
    first_clip = read_audio(esc50_root / "audio" / "1-1001-A-0.wav", encoder.sample_rate)
    embeddings = FeatureSet.load(features)
    assert embeddings.clip_ids[0] == "audio/1-1001-A-0.wav"
    torch.testing.assert_close(embeddings.features[:1], encoder.embed([first_clip]))
    monkeypatch.setattr(choose, "load_encoder", lambda *_: encoder)
    again = call(extract_esc50, "--data-root", esc50_root, "--checkpoint", "random:0", "--output", features)
    assert "Nothing to do" in again.stdout
    classified = call(classify_esc50, "--features", features, "--output-dir", results, "--epochs", 2)
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
    for name in ("esc50_linear_classifier.pt", "esc50_three_classifier.pt"):
        head = TrainedHead.load(results / name)
        assert head.predict_features(embeddings).shape == (10, 2)
        assert set(head.predict(encoder, [first_clip])) <= {"dog", "rain"}
        assert head.encoder["checkpoint"] == "random:0"


@pytest.mark.usefixtures("no_figures")
def test_the_same_command_twice_gives_the_same_numbers(esc50_features: Path, tmp_path: Path) -> None:
    records = []
    for folder in ("one", "another"):
        result = call(classify_esc50, "--features", esc50_features, "--output-dir", tmp_path / folder, "--epochs", 3)
        assert result.returncode == 0, result.stderr
        records.append(json.loads((tmp_path / folder / "result.json").read_text())["protocols"])
    assert records[0] == records[1]
    again = call(classify_esc50, "--features", esc50_features, "--output-dir", tmp_path / "one", "--epochs", 3)
    assert "Nothing to do" in again.stdout
    (tmp_path / "one" / "esc50_linear_classifier.pt").unlink()
    fixed = call(classify_esc50, "--features", esc50_features, "--output-dir", tmp_path / "one", "--epochs", 3)
    assert "Nothing to do" not in fixed.stdout
    assert (tmp_path / "one" / "esc50_linear_classifier.pt").is_file()
    assert "epochs was 3, now 4" in refused(
        call(classify_esc50, "--features", esc50_features, "--output-dir", tmp_path / "one", "--epochs", 4)
    )
    forced = call(
        classify_esc50, "--features", esc50_features, "--output-dir", tmp_path / "one", "--epochs", 4, "--overwrite"
    )
    assert "Epoch (of 4) chosen on" in forced.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data-root", "nowhere"], "nowhere is not a folder"),
        (["--checkpoint", "nowhere.bin"], "nowhere.bin not found. Get it with: python -m common.download weights"),
        (["--checkpoint", "random:x"], "--checkpoint random:x: give random: a seed"),
        (["--condition", "nowhere.npy"], "nowhere.npy not found"),
        (["--precision", "fp8"], "precision 'fp8' is unknown"),
        (["--device", "cuda:9"], "device 'cuda:9' is not available"),
        (["--device", "gpu"], "device 'gpu' is unknown"),
        (["--workers", "many"], "workers: Input should be a valid integer"),
        (["--config", "nowhere.yaml"], "nowhere.yaml not found"),
        (["--data-root", "~nosuchuser/x"], "~nosuchuser"),
        (["--config", "null.yaml"], "device: Input should be a valid string, not null"),
    ],
)
def test_wrong_flags_of_an_extraction_end_with_status_2(
    flags: list[str], words: str, esc50_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that show before the encoder is built."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "null.yaml").write_text("device: null")
    assert words in refused(extract_with(flags, esc50_root, tmp_path / "features.pt"))


@pytest.mark.usefixtures("scripts_load_the_stand_in")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--layer", "block6"], "--layer block6 is unknown to this encoder; choose from pre_conv"),
        (["--pool", "median"], "--pool median is unknown to this encoder; choose from mean, std, max, mean_time"),
        (["--output", "."], "holds files that are not parts, such as ESC-50-master; give an empty folder"),
    ],
)
def test_wrong_outputs_of_an_extraction_end_with_status_2(
    flags: list[str], words: str, esc50_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(extract_with(flags, esc50_root, tmp_path / "features.pt"))


def extract_with(flags: Sequence[str], root: Path, output: Path) -> Result:
    """The extraction script with these flags in the place of those that would do."""
    given = {"--data-root": root, "--checkpoint": "random:0", "--output": output}
    given |= dict(zip(flags[::2], flags[1::2], strict=True))
    return call(extract_esc50, *(part for pair in given.items() for part in pair))


@pytest.mark.usefixtures("scripts_load_the_stand_in")
def test_an_output_that_cannot_be_written_ends_with_status_2(esc50_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refused(extract_with([], esc50_root, tmp_path / "file" / "features.pt"))
    assert str(tmp_path / "file") in line


def test_two_fits_into_one_folder_are_refused(esc50_features: Path, tmp_path: Path) -> None:
    with exclusive(tmp_path / ".esc50_results.lock", "it"):
        line = refused(call(classify_esc50, "--features", esc50_features, "--output-dir", tmp_path, "--epochs", 1))
    assert "another run is writing results" in line


@pytest.mark.usefixtures("scripts_load_the_stand_in")
def test_an_extraction_whose_every_clip_fails_ends_with_status_2(esc50_root: Path, tmp_path: Path) -> None:
    for path in (esc50_root / "audio").iterdir():
        path.write_bytes(b"")
    line = refused(extract_with([], esc50_root, tmp_path / "features.pt"))
    assert "all 10 clips failed" in line
    assert "empty file" in line


Change = Callable[[FeatureSet], FeatureSet]


def altered(esc50_features: Path, tmp_path: Path, change: Change) -> Path:
    change(FeatureSet.load(esc50_features)).save(tmp_path / "altered.pt")
    return tmp_path / "altered.pt"


def with_nan(features: FeatureSet) -> FeatureSet:
    values = features.features.clone()
    values[5] = torch.nan
    return replace(features, features=values)


def with_few_of_a_class(features: FeatureSet, left: int) -> FeatureSet:
    """Fold 3 keeps so many clips of class 1; its others become class 0."""
    rows = ((features.folds == 3) & (features.labels == 1)).nonzero()[left:, 0]
    labels = features.labels.clone()
    labels[rows] = 0
    return replace(features, labels=labels)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda features: replace(features, labels=features.labels * 0), "there is nothing to classify"),
        (with_nan, "NaN"),
        (lambda features: replace(features, features=torch.ones_like(features.features)), "are the same"),
        (lambda features: replace(features, folds=torch.full_like(features.folds, 4)), "only fold 4 is present"),
        (
            lambda features: replace(features, meta={**features.meta, "dataset": "urbansound8k"}),
            "features of urbansound8k, not of esc50",
        ),
        (lambda features: replace(features, features=features.features[:, :128]), "--feature-dim 128"),
        (
            lambda features: replace(features, class_names=[str(name) for name in range(200)]),
            "fewer than its 200 classes",
        ),
        (lambda features: with_few_of_a_class(features, 0), "fold 3 has no clip of class class 1"),
    ],
    ids=["one class", "nan", "constant", "one fold", "other task", "other layer", "too few clips", "no class in fold"],
)
def test_features_that_cannot_be_scored_end_with_status_2(
    change: Change, words: str, esc50_features: Path, tmp_path: Path
) -> None:
    path = altered(esc50_features, tmp_path, change)
    flags = ("--features", path, "--output-dir", tmp_path / "results", "--epochs", 1, "--feature-dim", 384)
    assert words in refused(call(classify_esc50, *flags))
    assert not (tmp_path / "results").exists()


@pytest.mark.usefixtures("no_figures")
def test_features_of_any_width_can_be_scored(esc50_features: Path, tmp_path: Path) -> None:
    """If no width is asked for."""
    path = altered(esc50_features, tmp_path, lambda features: replace(features, features=features.features[:, :128]))
    result = call(classify_esc50, "--features", path, "--output-dir", tmp_path / "results", "--epochs", 1)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "results" / "result.json").read_text())
    assert (record["config"]["feature_dim"], record["features"]["width"]) == (None, 128)


def test_missing_features_name_the_script_to_run(tmp_path: Path) -> None:
    assert "run the task's extract_*.py first" in refused(call(classify_esc50, "--features", tmp_path / "none.pt"))


def test_unknown_flags_end_with_status_2(tmp_path: Path) -> None:
    result = call(extract_esc50, "--sample-rate-as-is")
    assert result.returncode == 2
    assert "unrecognized arguments" in result.stderr


def extract_until_the_sixth_clip(flags: list[str], sign: Path) -> None:
    """In a process of its own: the extraction script, which stands still at its sixth clip."""

    def load(*given: object) -> StandIn:
        encoder = load_stand_in(*given)
        encoder.before_call = lambda call: halt(sign) if call == 5 else None
        return encoder

    choose.load_encoder = load
    extract_main(TASK, flags)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.usefixtures("scripts_load_the_stand_in")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_extraction_keeps_its_work(stop: signal.Signals, esc50_root: Path, tmp_path: Path) -> None:
    flags = ["--data-root", str(esc50_root), "--checkpoint", "random:0", "--part-size", "1", "--output"]
    features, whole, sign = tmp_path / "features.pt", tmp_path / "whole.pt", tmp_path / "sign"
    printed = tmp_path / "printed.txt"
    process = processes.start(printed, extract_until_the_sixth_clip, [*flags, str(features)], sign)
    processes.wait_for(sign, process)
    os.kill(process.pid, stop)
    assert processes.end(process) == 130, printed.read_text()
    text = printed.read_text()
    kept = f"5 of 10 clips are kept in {features}.partial; the same command continues from there"
    assert text.splitlines()[-1].endswith(kept)
    assert "Traceback" not in text
    resumed = call(extract_esc50, *flags, features)
    assert resumed.returncode == 0
    assert "continuing: 5 of 10 clips were done before" in resumed.stdout
    assert call(extract_esc50, *flags, whole).returncode == 0
    assert features.read_bytes() == whole.read_bytes()


@needs_shared
@pytest.mark.usefixtures("no_figures")
def test_the_published_features_are_scored(tmp_path: Path) -> None:
    folder = SHARED / "reference_features"
    line = refused(call(classify_esc50, "--features", folder / "icbhi_features_audiosep.pt", "--output-dir", tmp_path))
    assert "has clips of one class" in line
    features = folder / "esc50_features_audiosep.pt"
    short = ("--epochs", 1, "--batch-size", 100, "--no-refit")
    result = call(classify_esc50, "--features", features, "--output-dir", tmp_path, *short)
    assert result.returncode == 0, result.stderr
    assert "recognised as all of ESC-50" in result.stdout
    assert "official folds 1-5" in result.stdout


@pytest.mark.parametrize(("flag", "meant"), [("--epoch", "--epochs"), ("--recipee", "--recipe"), ("--zzz", None)])
def test_a_misspelt_flag_is_named_with_the_right_one(
    flag: str, meant: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        classify_main(TASK, [flag, "3"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"unrecognized arguments: {flag} 3" in said
    assert ("did you mean" in said) == (meant is not None)
    assert meant is None or f"did you mean {meant}?" in said
