"""The whole study in one command: which scripts it calls, and that it stops and skips where it must."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import common.scripts
from analysis import reproduce
from analysis.studies import STUDIES
from common.config import ConfigError, ExtractConfig
from demo import generate


class Calls(list[tuple[str, ...]]):
    """In place of running scripts: what would be run. `failing` is a script that ends with status 3."""

    failing = ""

    def __call__(self, script: str, *flags: object) -> int:
        self.append((script, *map(str, flags)))
        return 3 if script == self.failing else 0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What is called in this test; nothing runs. The weights are there."""
    calls = Calls()
    monkeypatch.setattr(common.scripts, "run_script", calls)
    monkeypatch.setattr(
        reproduce, "preview_download", lambda *flags: calls("common.download", *flags, "--dry-run") and None
    )
    monkeypatch.setattr(reproduce.Plan, "missing_weights", None)
    return calls


def scripts(calls: Sequence[tuple[str, ...]]) -> list[str]:
    """The scripts' names, in the order of their calls."""
    return [Path(script).name for script, *_ in calls]


def test_the_study_runs_every_step_of_a_task(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "ESC-50-master").mkdir()
    reproduce.main(["esc50", "--data", str(tmp_path), "--results", str(tmp_path / "out"), "--seeds", "3"])
    extract, classify = "extract_esc50_features_audiosep.py", "esc50_linear_classifier.py"
    assert scripts(calls) == ["common.doctor", *[extract] * 3, classify, "summary.py", "report.py"]
    folder = tmp_path / "out" / "esc50"
    outputs = [call[call.index("--output") + 1] for call in calls[1:4]]
    names = ["esc50_features_audiosep.pt", "controls/esc50/random_0.pt", "controls/esc50/logmel.pt"]
    assert outputs == [str(folder / name) for name in names]
    assert calls[2][-2:] == ("--checkpoint", "random:0")
    assert calls[3][-2:] == ("--encoder", "logmel")
    assert "--checkpoint" not in calls[1]  # as configured
    wanted = ("--protocol", "both", "--seeds", "3", "--control-features", outputs[1], outputs[2], "--output-dir")
    assert set(wanted) <= set(calls[4])


def test_a_task_of_three_sets_has_three_files_and_three_of_each_control(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "nsynth").mkdir()
    reproduce.main(["nsynth", "--data", str(tmp_path), "--results", str(tmp_path / "out"), "--checkpoint", "random:0"])
    folder = tmp_path / "out" / "nsynth"
    outputs = [call[call.index("--output") + 1] for call in calls if "--output" in call]
    expected = [folder / f"nsynth_{split}_features.pt" for split in ("train", "valid", "test")]
    expected += [
        folder / "controls" / "nsynth" / "logmel" / f"nsynth_{split}_features.pt"
        for split in ("train", "valid", "test")
    ]
    assert outputs == list(map(str, expected))  # the encoder is its own control
    classify = next(call for call in calls if "train_nsynth" in call[0])
    assert classify[classify.index("--features") + 1] == str(folder)
    assert classify[classify.index("--control-features") + 1] == str(folder / "controls" / "nsynth" / "logmel")


def test_tasks_of_one_folder_do_not_share_a_file(calls: Calls, tmp_path: Path) -> None:
    for folder in ("speech_commands_v0.01", "speech_commands_v0.02", "ICBHI_final_database"):
        (tmp_path / folder).mkdir()
    names = ("speech_commands_v1", "speech_commands_v2", "icbhi", "icbhi_cycles")
    reproduce.main([*names, "--data", str(tmp_path), "--no-doctor"])
    outputs = [call[call.index("--output") + 1] for call in calls if "--output" in call]
    assert len(outputs) == len(set(outputs)) == 12


@pytest.mark.parametrize("failing", ["common.doctor", "esc50_feature_fc/esc50_linear_classifier.py"])
def test_the_study_stops_where_a_step_fails(calls: Calls, tmp_path: Path, failing: str) -> None:
    (tmp_path / "ESC-50-master").mkdir()
    calls.failing = failing
    with pytest.raises(SystemExit) as stop:
        reproduce.main(["esc50", "--data", str(tmp_path), "--results", str(tmp_path)])
    assert stop.value.code == 3
    assert calls[-1][0] == failing


def test_what_is_not_there_is_downloaded_only_when_agreed(
    calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(
        ConfigError, match="no data set found; give their folder with --data, or download them with --yes"
    ):
        reproduce.main(["librispeech", "--data", str(tmp_path)])
    assert "python -m common.download librispeech --only train-clean-100" in capsys.readouterr().out
    assert not calls
    reproduce.main(["librispeech", "--data", str(tmp_path), "--yes", "--no-doctor"])
    assert calls[0] == ("common.download", "librispeech", "--only", "train-clean-100", "--root", str(tmp_path))
    assert "extract_train-clean-100_features.py" in scripts(calls)


def test_a_download_that_is_declined_is_not_done(calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    with pytest.raises(ConfigError):
        reproduce.main(["esc50", "--data", str(tmp_path)])
    assert [call[-1] for call in calls] == ["--dry-run"]  # its size was shown


def test_missing_weights_are_part_of_the_plan(
    calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(common.scripts, "run_script", calls)
    monkeypatch.setattr(
        reproduce, "preview_download", lambda *flags: calls("common.download", *flags, "--dry-run") and None
    )
    monkeypatch.setattr(reproduce, "DEFAULT_CHECKPOINT", "pretrained_models/none.bin")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    (tmp_path / "ESC-50-master").mkdir()
    own = ["esc50", "--data", str(tmp_path), "--device", "cpu"]
    missing = str(reproduce.PROJECT_ROOT / "pretrained_models" / "none.bin")
    monkeypatch.setattr(reproduce, "load_config", lambda *_: ExtractConfig(checkpoint=missing))
    with pytest.raises(ConfigError, match=r"weights are missing; .*random:0"):
        reproduce.main(own)
    assert "to get it: python -m common.download weights, or --yes" in capsys.readouterr().out
    assert not calls
    reproduce.main([*own, "--yes", "--no-doctor"])
    assert calls[0] == ("common.download", "weights")
    for flags in (["--checkpoint", "random:0"], ["--encoders", "logmel"]):
        calls.clear()
        reproduce.main([*own, "--no-doctor", *flags])
        assert "common.download" not in scripts(calls)
    with pytest.raises(ConfigError, match=r"own\.pt not found; give AudioSep's weights with --checkpoint"):
        reproduce.main([*own, "--checkpoint", "own.pt"])


def test_a_dry_run_prints_the_plan_and_runs_nothing(
    calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduce.main(["speech_commands_v1", "--data", str(tmp_path), "--dry-run", "--device", "cpu"])
    printed = capsys.readouterr().out
    (row,) = rows_of(printed, "speech_commands_v1")
    assert row == "speech_commands_v1  to download  64,721            17.8    327 MB"
    (row,) = rows_of(printed, "in all")
    assert row.split() == ["in", "all", "64,721", "17.8", "327", "MB"]
    assert "docs/performance.md says" in printed and "Not in these sizes" not in printed
    # Nothing but the size of the download is asked for.
    assert [call[0] for call in calls] == ["common.download"]
    assert calls[0][-1] == "--dry-run"


def rows_of(plan: str, name: str) -> list[str]:
    """The lines of a printed plan that begin with a name."""
    return [line for line in plan.splitlines() if line.startswith(name)]


@pytest.mark.filterwarnings("ignore::common.datasets.DatasetNote")  # ten words of thirty
def test_the_plan_counts_the_clips_that_are_there(
    calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "speech_commands_v0.01"
    generate.generate_speech_commands(root, speakers=4)
    n_clips = len(STUDIES["speech_commands_v1"].task.read_clips(root))
    own = ["speech_commands_v1", "esc50", "--data", str(tmp_path), "--dry-run"]
    reproduce.main([*own, "--encoders", "audiosep", "logmel"])
    printed = capsys.readouterr().out
    (here,), (absent,), (total,) = (rows_of(printed, name) for name in ("speech_commands_v1", "esc50", "in all"))
    assert here.split()[1:3] == ["here", f"{n_clips:,}"]
    assert float(here.split()[3]) == pytest.approx(n_clips / 3600, abs=0.06)  # words of about a second
    assert absent.split()[1:5] == ["to", "download", "2,000", "2.8"]
    assert total.split()[2] == f"{2000 + n_clips:,}"
    assert "Sizes are those of AudioSep's features and the controls'." in printed
