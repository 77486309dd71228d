"""The doctor: all well on a whole data set, every damage named with its fix."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from common import config
from common.datasets import task
from common.doctor import checks
from common.doctor.__main__ import main
from common.doctor.checks import BAD, GOOD, NOTE, Finding
from common.encoder import AudioSepEncoder
from common.flags import run
from demo import generate
from demo.sounds import note
from esc50_feature_fc.esc50 import CLASS_NAMES
from tests.support.plain_encoder import plain_layers
from tests.support.samples import write_csv
from tests.support.stand_in import load_stand_in


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 2,000 clips of ESC-50 by name, a tenth of a second each; most are links to one file."""
    root = tmp_path_factory.mktemp("data") / "ESC-50-master"
    (root / "audio").mkdir(parents=True)
    rows, first = [], None
    for fold in range(1, 6):
        for target, category in enumerate(CLASS_NAMES):
            for take in range(8):
                source = 100_000 + 1000 * fold + 10 * target + take
                name = f"{fold}-{source}-A-{target}.wav"
                rows.append((name, fold, target, category, "False", source, "A"))
                if first is None:
                    first = root / "audio" / name
                    soundfile.write(first, 0.1 * np.random.default_rng(0).standard_normal(800), 8000)
                else:
                    os.link(first, root / "audio" / name)
    header = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    write_csv(root / "meta" / "esc50.csv", header, rows)
    return root


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "ESC-50-master", copy_function=os.link))


@pytest.fixture
def looks_at_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor with the stand-in as its encoder, which gives the known answer: what is left are the data."""
    monkeypatch.setattr(checks, "load_encoder", load_stand_in)
    monkeypatch.setattr(checks, "check_encoder", lambda _: Finding(GOOD, "encoder", "not asked"))


only_data = pytest.mark.usefixtures("looks_at_data")
Capture = pytest.CaptureFixture[str]


def call(capsys: Capture, *arguments: object, checkpoint: str = "random:2024") -> tuple[int, str]:
    """The doctor's exit status and what it prints."""
    with pytest.raises(SystemExit) as exit_:
        run(lambda: main([*map(str, arguments), "--device", "cpu", "--checkpoint", checkpoint]))
    captured = capsys.readouterr()
    return exit_.value.code, captured.out + captured.err


def test_the_doctor_passes_a_whole_data_set(
    whole: Path, encoder: AudioSepEncoder, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "load_encoder", lambda *_: encoder)
    status, printed = call(capsys, "esc50", "--data-root", whole)
    assert "✗" not in printed
    assert status == 0
    assert printed.rstrip().endswith("All checks passed.")
    for line in (
        "✓ encoder  gives the known answer",
        "! weights  random:2024 is untrained",
        "✓ counts   2,000 clips of 50 classes, as published",
        "✓ files    none missing",
        "✓ audio    24 clips decoded",
    ):
        assert line in printed


@only_data
def test_the_doctor_names_missing_files(damaged: Path, capsys: Capture) -> None:
    (damaged / "audio" / "3-103011-A-1.wav").unlink()
    status, printed = call(capsys, "esc50", "--data-root", damaged)
    assert status == 1
    assert "✗ files    1 are missing: audio/3-103011-A-1.wav" in printed
    assert f"-> unpack it again: python -m common.download esc50 --root {damaged.parent}" in printed
    assert "1 failed check." in printed


@only_data
def test_the_doctor_names_wrong_counts(damaged: Path, capsys: Capture) -> None:
    path = damaged / "meta" / "esc50.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.unlink()  # a link to the file of `whole`
    path.write_text("".join(line for line in lines if ",rain," not in line and ",pig," not in line))
    status, printed = call(capsys, "esc50", "--data-root", damaged)
    assert status == 1
    assert "clips 1,920 of 2,000, fold 1 384 of 400, fold 2 384 of 400, fold 3 384 of 400 and 4 more" in printed


@only_data
def test_the_doctor_counts_files_that_are_not_audio(damaged: Path, capsys: Capture) -> None:
    for path in (damaged / "audio").iterdir():
        path.unlink()
        path.write_bytes(b"<html>")
    status, printed = call(capsys, "esc50", "--data-root", damaged)
    assert status == 1
    assert "✗ audio    24 of 24 clips cannot be read" in printed


@only_data
def test_a_missing_folder_and_an_unknown_data_set_are_named(tmp_path: Path, capsys: Capture) -> None:
    status, printed = call(capsys, "esc50", "--data-root", tmp_path / "nowhere")
    assert status == 1
    assert f"✗ labels   data root {tmp_path / 'nowhere'} is not a folder" in printed
    status, printed = call(capsys, "birds")
    assert status == 2
    assert "birds is unknown; choose from esc50, fsd50k, icbhi" in printed
    status, printed = call(capsys, "--data-root", tmp_path)
    assert status == 2
    assert "--data-root applies to one data set; name it" in printed


@only_data
def test_absent_data_sets_fail_no_check_unless_named(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (config, task):
        monkeypatch.setattr(module, "PROJECT_ROOT", tmp_path)
    status, printed = call(capsys)
    assert status == 0
    assert "not found, so not checked: esc50, fsd50k, icbhi, librispeech, nsynth" in printed


@only_data
def test_every_set_of_nsynth_is_checked(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "note", lambda rng, time, *timbre: note(rng, time[:6400], *timbre))
    generate.generate_nsynth(tmp_path / "nsynth", notes=1)
    status, printed = call(capsys, "nsynth", "--data-root", tmp_path / "nsynth")
    assert status == 1
    assert "not the official numbers: clips 33 of 289,205" in printed
    # synth_lead has no note in valid and test, and should have none.
    assert printed.count("20 clips of 10 classes, not the official numbers: clips 20 of") == 2


def test_weights_that_do_not_fit_come_with_the_download_command(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "weights.bin")
    finding = checks.check_checkpoint(tmp_path / "weights.bin", torch.device("cpu"))
    assert finding.mark == BAD
    assert "no AudioSep separator in it" in finding.text
    assert "python -m common.download weights" in finding.fix


def test_an_encoder_off_by_a_thousandth_fails_the_known_answer(
    encoder: AudioSepEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        """The real encoder, but for a factor."""

        def __init__(self, factor: float) -> None:
            self.factor = factor

        def embed(self, waveforms: list[np.ndarray]) -> torch.Tensor:
            return self.factor * encoder.embed(waveforms)

    findings = []
    for factor in (1, 1 + 1e-5, 1 + 1e-3):
        monkeypatch.setattr(checks, "load_encoder", lambda *_, factor=factor: Wrong(factor))
        findings.append(checks.check_encoder(torch.device("cpu")))
    assert [finding.mark for finding in findings] == [GOOD, GOOD, BAD]
    assert "pip install -r requirements.txt" in findings[-1].fix


def test_the_known_answer_is_that_of_the_plain_encoder() -> None:
    waveform = (0.1 * np.random.default_rng(2024).standard_normal(48_000)).astype(np.float32)
    embedding = plain_layers(waveform)["encoder_block6"].mean(dim=(1, 2))
    answer = [*embedding[:6].tolist(), float(embedding.norm()), float(embedding.sum())]
    np.testing.assert_allclose(answer, checks.KNOWN_ANSWER, rtol=1e-5)


def test_other_versions_are_a_note_and_low_memory_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = {finding.what: finding for finding in checks.check_environment(torch.device("cpu"))}
    assert findings["packages"].mark == GOOD
    monkeypatch.setattr(checks, "version", lambda name: "0.1")
    monkeypatch.setattr(checks, "_available_memory", lambda: 10**9)
    findings = {finding.what: finding for finding in checks.check_environment(torch.device("cpu"))}
    assert findings["packages"].mark == NOTE
    assert f"numpy 0.1 (tested: {np.__version__})" in findings["packages"].text
    assert findings["memory"].mark == BAD
