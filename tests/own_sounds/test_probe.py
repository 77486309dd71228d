"""A folder or table of sounds as a task: its division, scores and errors, against the tasks themselves."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analysis import summary
from analysis.studies import find_study
from common.cli import classify_main, extract_main
from common.datasets import DivisionKind
from common.evaluation.record import RunRecord
from esc50_feature_fc.esc50 import TASK
from own_sounds.embed import embed_main
from own_sounds.probe import probe_main
from own_sounds.sounds import Source
from tests.support.heads import on_one_thread
from tests.support.own_sounds import FAST, folder_of_classes, probe, tone
from tests.support.scripts import run_command

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """DIGIT_SPEAKER_TAKE.wav, flat in one folder: 3 digits by 4 speakers, twice each."""
    root = tmp_path / "recordings"
    for digit in range(3):
        for speaker in range(4):
            for take in range(2):
                seed = 100 * digit + 10 * speaker + take
                tone(root / f"{digit}_{'abcd'[speaker]}_{take}.wav", 300 * (1 + digit) + 20 * speaker, seed)
    return root


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    return folder_of_classes(tmp_path / "My sounds")


def result(folder: Path) -> RunRecord:
    return RunRecord.load(folder / "result.json")


def test_a_folder_of_classes_is_a_task_with_a_random_split(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe(classes, "--output-dir", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "WARNING: this split does not keep recordings, patients or speakers apart" in printed
    record = result(tmp_path / "out")
    assert (record.task, record.features.class_names, record.features.clips) == ("own_my_sounds", ["high", "low"], 16)
    assert record.protocols["official"].heads["linear"].score == 1
    assert record.protocols["official"].kind is DivisionKind.RANDOM
    probe(classes, "--output-dir", tmp_path / "out")
    assert capsys.readouterr().out.count("Nothing to do") == 2


@pytest.mark.parametrize(
    ("label", "group", "names"), [(r"^(\d)_", r"_(\w)_", ["0", "1", "2"]), (r"_(\w)_", r"^\d", ["a", "b", "c", "d"])]
)
def test_regular_expressions_find_classes_and_groups_in_paths(
    label: str, group: str, names: list[str], digits: Path, tmp_path: Path
) -> None:
    probe(digits, "--label-regex", label, "--group-regex", group, "--output-dir", tmp_path / "out")
    record = result(tmp_path / "out")
    assert record.features.class_names == names
    protocol = record.protocols["official"]
    assert "folds by group, made here with seed 42" in protocol.division and protocol.kind is DivisionKind.OWN_FOLDS
    assert protocol.related_test_clips == 0
    assert protocol.comparison.units == "groups"


def test_a_table_with_folds_gives_the_scores_of_its_task(esc50_root: Path, tmp_path: Path) -> None:
    """The same clips, folds and order of classes: through ESC-50's scripts, and as a table."""
    with on_one_thread():
        output = tmp_path / "task.pt"
        extract_main(TASK, ["--data-root", str(esc50_root), "--encoder", "logmel", "--output", str(output)])
        flags = ["--features", str(output), "--output-dir", str(tmp_path / "task"), *FAST[2:]]
        classify_main(TASK, flags)
    meta = pd.read_csv(esc50_root / "meta" / "esc50.csv")
    table = pd.DataFrame({"path": "audio/" + meta.filename, "label": meta.category, "fold": meta.fold})
    table["group"] = meta.src_file.astype(str)
    table.to_csv(esc50_root / "table.csv", index=False)
    probe(esc50_root / "table.csv", "--output-dir", tmp_path / "table")
    of_task, of_table = (result(tmp_path / name).protocols["official"] for name in ("task", "table"))
    assert of_table.division == "given folds 1-5"
    assert of_table.heads["linear"].mean == of_task.heads["linear"].mean
    assert of_table.heads["three_layer"].confusion == of_task.heads["three_layer"].confusion
    predictions = [(tmp_path / name / "predictions.csv").read_text().splitlines()[1:] for name in ("task", "table")]
    answers = [[line.split(",")[-3:] for line in lines] for lines in predictions]
    assert answers[0] == answers[1]


def test_a_table_may_name_splits_and_segments(tmp_path: Path) -> None:
    tone(tmp_path / "long.wav", 300, seconds=2)
    tone(tmp_path / "other.wav", 2000, seconds=2)
    rows = ["path\tlabel\tsplit\tstart\tend"]
    for split, start in (("train", 0.0), ("training", 0.4), ("dev", 0.8), ("eval", 1.2)):
        rows += [
            f"{name}.wav\t{label}\t{split}\t{start}\t{start + 0.4}" for name, label in (("long", "x"), ("other", "y"))
        ]
    (tmp_path / "table.tsv").write_text("\n".join(rows))
    probe(tmp_path / "table.tsv", "--output-dir", tmp_path / "out")
    protocol = result(tmp_path / "out").protocols["official"]
    assert protocol.division == "given train, valid and test split"
    assert protocol.heads["linear"].splits[0].n_test == 2


def test_groups_that_no_folds_keep_apart_are_explained(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        probe(classes, "--group-regex", r"^(\w+)/", "--output-dir", tmp_path / "out")
    assert "class high has clips of only 1 group" in capsys.readouterr().err


def test_analyses_find_the_sounds_again_from_the_results(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probe(
        digits, "--label-regex", r"^(\d)_", "--group-regex", r"_(\w)_", "--output-dir", tmp_path / "results" / "digits"
    )
    monkeypatch.setattr("sys.argv", ["summary.py", "--results", str(tmp_path / "results")])
    summary.main()
    assert "own_recordings" in capsys.readouterr().out
    study = find_study(str(tmp_path / "results" / "digits"))
    assert study.data_root(None) == digits.resolve()
    assert len(study.task.read_clips(digits)) == 24
    assert r"'--label-regex=^(\d)_'" in study.how_to_run()


def test_embeddings_give_the_scores_of_the_sounds_that_they_are_of(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the sounds, and through what embed.py writes of a table of them."""
    names = sorted(path.name for path in digits.iterdir())
    table = pd.DataFrame({"file": names, "class": [name[0] for name in names], "speaker": [name[2] for name in names]})
    table.to_csv(digits / "digits.csv", index=False, sep=";")
    probe(digits / "digits.csv", "--output-dir", tmp_path / "sounds")
    expected = result(tmp_path / "sounds").protocols["official"]
    for name in ("x.parquet", "x.npz", "x.csv", "parts"):
        embed_main([str(digits / "digits.csv"), "-o", str(tmp_path / name), "--encoder", "logmel"])
        out = tmp_path / f"of_{name}"
        capsys.readouterr()
        probe("--features", tmp_path / name, "--output-dir", out)
        assert "without audio the report cannot play clips" in capsys.readouterr().out
        record = result(out)
        protocol = record.protocols["official"]
        assert protocol.kind is DivisionKind.OWN_FOLDS and protocol.division == expected.division
        assert protocol.heads["linear"].score == expected.heads["linear"].score
        assert protocol.heads["linear"].interval == expected.heads["linear"].interval
        assert record.features.encoder == ("x.csv" if name == "x.csv" else "log-mel statistics")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "give a folder or table of sounds, or embeddings"),
        (("x.csv", "--features", "y.npz"), "give a folder or table of sounds, or embeddings"),
        (("--features", "y.npz", "--encoders", "logmel"), "--encoders is about sounds"),
    ],
)
def test_sounds_or_embeddings_must_be_given(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        probe_main([*flags])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_one_command_ranks_encoders(digits: Path, tmp_path: Path) -> None:
    """As `make reproduce TASKS=TABLE` does; and again, without repeating what is finished."""
    words = [
        "analysis/reproduce.py",
        tmp_path / "earlier",
        "--encoders",
        "logmel",
        "audiosep",
        "--checkpoint",
        "random:0",
    ]
    words += ["--epochs", 2, "--seeds", 1, "--results", tmp_path / "results"]
    # Without sub-folders, classes are given by the results of an earlier probe.
    Source(digits, r"^(\d)_", r"_(\w)_").save(tmp_path / "earlier", digits)
    for again in (False, True):
        done = run_command(*words)
        assert done.returncode == 0, done.stderr
        assert "Every two encoders, points" in done.stdout and "report.html" in done.stdout
        assert ("Nothing to do" in done.stdout) == again
        assert "not run yet" not in done.stderr
    folder = tmp_path / "results" / "own_recordings"
    assert {path.parent.name for path in folder.rglob("result.json")} == {"own_recordings", "logmel"}
    missing = run_command(
        "own_sounds/probe.py",
        digits,
        "--label-regex",
        ".",
        "--encoders",
        "logmel",
        "hear:none.py",
        "--output-dir",
        tmp_path / "x",
    )
    assert missing.returncode == 2 and not list((tmp_path / "x").rglob("*.pt"))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([f"c{n}.wav,x,train" for n in range(4)] + [f"c{n}.wav,y,valid" for n in range(4, 8)], "no test clips"),
        ([f"c{n}.wav,x," for n in range(8)], "clips of one class"),
        ([f"c{n}.wav,{'xy'[n == 7]},{'train' if n < 7 else 'test'}" for n in range(8)], "no clip of class y"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_any_clip_is_embedded(
    rows: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in range(8):
        tone(tmp_path / f"c{place}.wav", 300)
    (tmp_path / "table.csv").write_text("\n".join(["path,label,split", *rows]))
    monkeypatch.setattr("common.encoder.configured_encoder", lambda config: pytest.fail("an encoder was loaded"))
    with pytest.raises(SystemExit):
        probe(tmp_path / "table.csv", "--output-dir", tmp_path / "out")
    assert words in capsys.readouterr().err


def test_folds_beside_splits_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of_classes(tmp_path)
    rows = [f"{name}/{n}.wav,{name},{n % 2 + 1},train" for name in ("high", "low") for n in range(8)]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,fold,split", *rows]))
    probe(tmp_path / "table.csv", "--output-dir", tmp_path / "out")
    assert "folds and splits are given: the folds are used" in capsys.readouterr().out
    assert "folds 1, 2" in result(tmp_path / "out").protocols["official"].division
