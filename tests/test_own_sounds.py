"""One's own sounds: folders and tables as tasks, embeddings of any file, and what a trained head hears."""

from __future__ import annotations

import csv
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from conftest import SHARED, draw_nothing, needs_shared, noise, write_wav
from heads_helpers import on_one_thread

from analysis import summary
from analysis.studies import find_study
from common.cli import classify_main, extract_main
from common.config import FitConfig, load_config
from common.datasets import DatasetError, DatasetNote, DivisionKind
from common.datasets.audio import AudioError, read_audio
from common.encoder import LogMelStatistics
from common.evaluation.load_features import load_features
from common.evaluation.record import RunRecord
from common.features import FeatureSet
from esc50_feature_fc.esc50 import TASK
from key_word_spotting import speech_commands
from own_sounds.embedding import embed_main
from own_sounds.files import expand, windows_of
from own_sounds.predicting import predict_main
from own_sounds.probing import probe_main
from own_sounds.sounds import Source
from speaker_recognition import librispeech
from urbansound8k_feature_fc import urbansound8k

pytestmark = pytest.mark.usefixtures("no_figures")
FAST = ("--encoder", "logmel", "--epochs", "4", "--learning-rate", "0.01", "--hidden-dim", "16", "--no-refit")


def tone(path: Path, hertz: float, seed: int = 0, seconds: float = 0.3, rate: int = 16_000) -> Path:
    """A tone with noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(
        path, (0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32) + 0.1 * noise(seed, len(time)), rate
    )
    return path


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


def folder_of_classes(root: Path) -> Path:
    """A sub-folder per class."""
    for place, name in enumerate(("high", "low")):
        for number in range(8):
            tone(root / name / f"{number}.wav", 2000 - 1700 * place, number, seconds=1)
    return root


def probe(*flags: object) -> None:
    with on_one_thread():
        probe_main([*map(str, flags), *FAST])


def result(folder: Path) -> RunRecord:
    return RunRecord.load(folder / "result.json")


def test_a_folder_of_classes_is_a_task(classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe(classes, "--output-dir", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "WARNING: this split does not keep recordings, patients or speakers apart" in printed
    record = result(tmp_path / "out")
    assert (record.task, record.features.class_names, record.features.clips) == ("own_my_sounds", ["high", "low"], 16)
    assert record.protocols["official"].heads["linear"].accuracy == 1
    assert record.protocols["official"].kind is DivisionKind.RANDOM
    probe(classes, "--output-dir", tmp_path / "out")
    assert capsys.readouterr().out.count("Nothing to do") == 2


@pytest.mark.parametrize(
    ("label", "group", "names"), [(r"^(\d)_", r"_(\w)_", ["0", "1", "2"]), (r"_(\w)_", r"^\d", ["a", "b", "c", "d"])]
)
def test_classes_and_groups_from_the_path(
    label: str, group: str, names: list[str], digits: Path, tmp_path: Path
) -> None:
    probe(digits, "--label-regex", label, "--group-regex", group, "--output-dir", tmp_path / "out")
    record = result(tmp_path / "out")
    assert record.features.class_names == names
    protocol = record.protocols["official"]
    assert "folds by group, made here with seed 42" in protocol.division and protocol.kind is DivisionKind.OWN_FOLDS
    assert protocol.related_test_clips == 0
    assert protocol.comparison.units == "groups"


def test_given_folds_give_the_scores_of_the_task_itself(esc50_root: Path, tmp_path: Path) -> None:
    """The same clips, folds and order of classes: through ESC-50's scripts, and as a table."""
    with on_one_thread():
        output = tmp_path / "task.pt"
        extract_main(TASK, ["--data-root", str(esc50_root), "--encoder", "logmel", "--output", str(output)])
        flags = ["--features", str(output), "--output-dir", str(tmp_path / "task"), *FAST[2:]]
        classify_main(TASK, flags)
    meta = pd.read_csv(esc50_root / "meta" / "esc50.csv")
    table = pd.DataFrame({"path": "audio/" + meta.filename, "label": meta.category, "fold": meta.fold})
    table["group"] = meta.src_file.astype(str)
    table.to_csv(esc50_root / "own.csv", index=False)
    probe(esc50_root / "own.csv", "--output-dir", tmp_path / "own")
    of_task, own = (result(tmp_path / name).protocols["official"] for name in ("task", "own"))
    assert own.division == "given folds 1, 2, 3, 4, 5"
    assert own.heads["linear"].mean == of_task.heads["linear"].mean
    assert own.heads["three_layer"].confusion == of_task.heads["three_layer"].confusion
    predictions = [(tmp_path / name / "predictions.csv").read_text().splitlines()[1:] for name in ("task", "own")]
    said = [[line.split(",")[-3:] for line in lines] for lines in predictions]
    assert said[0] == said[1]


REAL = {
    "urbansound8k": (urbansound8k.TASK, "UrbanSound8K", {}),
    "librispeech": (librispeech.TRAIN_CLEAN_100, "LibriSpeech", {"split": "chapter"}),
    "speech_commands": (speech_commands.V2, "speech_commands", {}),
}


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_sounds_as_a_table_give_the_scores_of_their_task(name: str, tmp_path: Path) -> None:
    """Given the same clips and division, whichever way they come in."""
    task, folder, options = REAL[name]
    own_flags = [word for key, value in options.items() for word in (f"--{key}", value)]
    root = SHARED / "real_audio" / folder
    features = tmp_path / "features.pt"
    with on_one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DatasetNote)  # a part of the data set
        extract_main(task, ["--data-root", str(root), "--encoder", "logmel", "--output", str(features)])
        classify_main(
            task, ["--features", str(features), "--output-dir", str(tmp_path / "task"), *FAST[2:], *own_flags]
        )
    prepared = load_features(
        task, load_config(FitConfig, task.config_file, None, {"features": features}), options
    ).features
    names = [prepared.class_names[label] for label in prepared.labels]
    table = pd.DataFrame(
        {"path": [os.path.relpath(root / clip, tmp_path) for clip in prepared.clip_ids], "label": names}
    )
    columns = {"fold": prepared.folds, "split": prepared.splits, "group": prepared.groups}
    for column, values in columns.items():
        if values is not None:
            table[column] = values if isinstance(values, list) else values.tolist()
    table.to_csv(tmp_path / "own.csv", index=False)
    with on_one_thread():
        probe(tmp_path / "own.csv", "--output-dir", tmp_path / "own")
    of_task, own = (result(tmp_path / each).protocols["official"] for each in ("task", "own"))
    assert own.description.startswith("given ") and not own.is_official
    assert result(tmp_path / "task").features.class_names == result(tmp_path / "own").features.class_names
    for kind, scored in of_task.heads.items():
        assert own.heads[kind].mean == scored.mean
        assert own.heads[kind].interval == scored.interval
        assert own.heads[kind].confusion == scored.confusion


def test_a_table_with_splits_and_segments(tmp_path: Path) -> None:
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


def test_clips_outside_the_tables_folder(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "audio" / "a.wav")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "t.csv").write_text(
        f"path,label\n../audio/a.wav,x\n{write_wav(tmp_path / 'audio' / 'b.wav')},y\n"
    )
    root, clips = Source(tmp_path / "tables" / "t.csv").read()
    assert root == tmp_path.resolve()
    assert clips[0].path == path.resolve() and clips[1].clip_id(root) == "audio/b.wav"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.wav,x\n", r"lacks the column path \(it has file, label\)"),
        ("path,label\n", "lists no clips"),
        ("path,label\na.wav,\n", "line 2: label is empty"),
        ("path,label\na.wav,x;y\n", "line 2: label 'x;y' names several classes"),
        ("path,label,fold\na.wav,x,one\n", "line 2: fold must be a whole number, not 'one'"),
        ("path,label,split\na.wav,x,both\n", "line 2: split must be train, valid or test, not 'both'"),
        ("path,label,start\na.wav,x,soon\n", "line 2: start must be a number of seconds"),
        ("path,label\na.wav,x\na.wav,y\n", "line 3: a.wav is listed in line 2 already"),
        ("path,label,fold\na.wav,x,1\nb.wav,y,\n", "line 3 has no fold, but others have"),
        ('path,label\n"a.wav,x\n', "cannot be read as a table"),
        ("", "cannot be read as a table"),
    ],
)
def test_tables_that_are_wrong_name_the_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        Source(tmp_path / "t.csv").read()


def test_places_that_are_wrong(classes: Path, tmp_path: Path) -> None:
    for place, message in (
        (tmp_path / "nowhere", "not found; give a folder"),
        (write_wav(tmp_path / "x" / "a.wav"), "is no table; give a .csv or .tsv"),
        (tmp_path / "x", "a.wav lies directly in it; make a sub-folder for every class"),
    ):
        with pytest.raises(DatasetError, match=message):
            Source(place).read()
    for label, group, message in (
        ("(", None, "is no regular expression"),
        (None, "z(\\d)", "finds nothing in high/0.wav"),
    ):
        with pytest.raises(DatasetError, match=message):
            Source(classes, label, group).read()
    (classes / "notes.txt").touch()
    with pytest.warns(DatasetNote, match="1 files that are no audio are left out"):
        assert len(Source(classes).read()[1]) == 16


def test_a_class_of_a_single_group_is_explained(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        probe(classes, "--group-regex", r"^(\w+)/", "--output-dir", tmp_path / "out")
    assert "class high has clips of only 1 group" in capsys.readouterr().err


def test_analyses_know_ones_own_sounds(
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
    assert "--label-regex '^(\\\\d)_'" in study.how_to_run()


# Embeddings


def test_embeddings_of_files_and_folders(classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    own = encoder.embed_files([single])
    assert torch.equal(own[0], features.features[features.clip_ids.index("single.flac")])
    with pytest.raises(AudioError, match=r"broken.wav"):
        encoder.embed_files([broken])
    embed_main([str(classes), str(single), "-o", str(tmp_path / "e.npz"), "--encoder", "logmel"])
    with np.load(tmp_path / "e.npz") as content:
        np.testing.assert_array_equal(content["features"], features.features.numpy())


def test_windows_of_a_long_recording_have_times(tmp_path: Path) -> None:
    path = tone(tmp_path / "day.wav", 500, seconds=2.1)
    assert windows_of(path, 1.0, 0.5) == [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0), (1.5, 2.1)]
    assert windows_of(path, 5.0, 5.0) == [(0.0, 2.1)]
    assert windows_of(path, 1.0, 1.0) == [(0.0, 1.0), (1.0, 2.0)]  # a tenth of a window is left over
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
        (["-o", "x.pt", "--window", "0"], "--window must be from 0.01 to 86400 seconds"),
    ],
)
def test_mistakes_of_embed(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        embed_main([str(tone(tmp_path / "a.wav", 500)), *flags])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_to_itself_is_not_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    for main, flags in ((probe_main, ()), (embed_main, ("-o", str(tmp_path / "embeddings.pt")))):
        with pytest.raises(SystemExit) as ended:
            main([str(tmp_path / "loop.csv"), *flags])
        assert ended.value.code == 2
        assert "loop.csv not found" in capsys.readouterr().err


def test_files_and_folders_expand(classes: Path, tmp_path: Path) -> None:
    one = classes / "low" / "0.wav"
    assert expand([one, classes / "low"])[0] == one.resolve()
    assert len(expand([one, classes / "low"])) == 8  # each once
    for place in (tmp_path / "nowhere", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DatasetError, match=r"not found|holds no audio"):
            expand([place])


def test_waveforms_at_another_rate_are_resampled(tmp_path: Path) -> None:
    encoder, path = LogMelStatistics(), tone(tmp_path / "a.wav", 500, rate=8000, seconds=1)
    samples, rate = soundfile.read(path, dtype="float32")
    assert torch.equal(encoder.embed([samples], sample_rate=rate), encoder.embed_files([path]))
    assert not torch.equal(encoder.embed([samples]), encoder.embed_files([path]))
    with pytest.raises(ValueError, match="sample_rate 8 is not one of audio"):
        encoder.embed([samples], sample_rate=8)


# Predictions


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


def test_what_a_head_hears(head: Path, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tone(tmp_path / "new.wav", 310, seed=99, rate=44_100)
    table = tmp_path / "said.csv"
    predict_main([str(head), str(file), str(classes / "high"), "--csv", str(table)])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 10 and printed[1].split()[:2] == ["new.wav", "low"]
    with table.open() as rows:
        said = list(csv.DictReader(rows))
    assert [row["class_name"] for row in said] == ["low", *["high"] * 8]
    assert float(said[0]["low"]) + float(said[0]["high"]) == pytest.approx(1)
    predict_main([str(head), str(file), "--json", "--top", "1"])
    ((answer,),) = (json.loads(capsys.readouterr().out),)
    assert answer["classes"][0]["class_name"] == "low" and answer["start_s"] is None


def test_none_of_these(
    head: Path, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sound unlike all that the head has learned from is told; those that it has learned from lie at no distance."""
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
        first["distance"] < second["distance"] and "About 30.0% or less of clips of the known classes" in captured.err
    )
    assert pd.read_csv(tmp_path / "p.csv")["none_of_these"].tolist() == [0, 1]
    predict_main([str(head), str(silent), "--none-of-these", "0.3"])
    assert "none of these" in capsys.readouterr().out
    predict_main([str(head), str(silent), "--none-of-these", "0.3", "--window", "0.2", "--plot", str(tmp_path / "t")])
    assert (tmp_path / "t" / "silence_timeline.png").exists()
    assert "A window of another length may be marked far more often" in capsys.readouterr().err
    for flags, message in (
        (("0.0001",), "needs at least 9999 held-out clips"),
        (("5",), "is not between 0 and 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            predict_main([str(head), str(silent), "--none-of-these", *flags])
        assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_a_timeline(head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [read_audio(tone(tmp_path / f"{hertz}.wav", hertz, seconds=1), 16_000) for hertz in (300, 2000, 300)]
    soundfile.write(tmp_path / "both.wav", np.concatenate(parts), 16_000)
    flags = ["--window", "1", "--plot", str(tmp_path / "plots")]
    predict_main([str(head), str(tmp_path / "both.wav"), *flags])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[1:3] for line in lines] == [["0.00-1.00", "low"], ["1.00-2.00", "high"], ["2.00-3.00", "low"]]
    assert (tmp_path / "plots" / "both_timeline.png").read_bytes().startswith(b"\x89PNG")


def test_failures_and_refusals_of_predict(
    head: Path, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"")
    predict_main([str(head), str(broken), str(classes / "low" / "0.wav")])
    assert "failed: " in (said := capsys.readouterr().err) and "1 of 2 files failed" in said

    def refused(*flags: object) -> str:
        with pytest.raises(SystemExit) as ended:
            predict_main([*map(str, flags)])
        assert ended.value.code == 2
        return capsys.readouterr().err

    assert "none of the 1 files could be read" in refused(head, broken)
    assert "not found; classification writes" in refused(tmp_path / "no.pt", broken)
    features = head.parent / "own_my_sounds_features_logmel.pt"
    assert "it is a feature file" in refused(features, classes / "low")
    assert "--plot draws timelines; add --window S" in refused(head, classes / "low", "--plot", tmp_path / "p")
    content = torch.load(head, weights_only=True)
    content["encoder"] |= {"kind": "hear", "encoder": "hear:mine.py"}
    torch.save(content, tmp_path / "other.pt")
    assert "say where that is: --encoder hear:FOLDER/mine.py" in refused(tmp_path / "other.pt", classes / "low")
    shutil.copy(head, tmp_path / "kept.pt")
    assert "the head was trained with encoder log-mel" in refused(
        tmp_path / "kept.pt", classes / "low", "--encoder", "audiosep", "--checkpoint", "random:0", "--device", "cpu"
    )
