"""Several labels a clip from a table to predictions: what is understood, what is written, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score

from analysis.compare import compare_encoders
from analysis.scores import read_runs
from common.datasets import Clip
from common.evaluation.record import LabelSets, RunRecord
from common.features import FeatureSet
from common.heads import TrainedHead
from own_sounds.predict import _print_table, predict_main
from own_sounds.probe import probe_main
from own_sounds.timeline import Heard
from tests.support.heads import draw_nothing
from tests.support.own_sounds import FAST, probe, tone
from tests.support.scripts import call, refused

pytestmark = pytest.mark.usefixtures("no_figures")
PITCHES = {"low": 300, "middle": 1000, "high": 3000}


def mix(path: Path, names: list[str], seed: int) -> None:
    """Tones of several pitches at once."""
    import soundfile

    layers = [soundfile.read(tone(path, PITCHES[name], seed))[0] for name in names]
    silence = 0.01 * np.random.default_rng(seed).standard_normal(4800)
    soundfile.write(path, np.sum([silence, *layers], axis=0) / 4, 16_000)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 mixtures in 12 groups, and two of nothing but noise."""
    root, rng, rows = tmp_path_factory.mktemp("sounds"), np.random.default_rng(1), []
    names = list(PITCHES)
    for number in range(50):
        chosen = sorted({names[number % 3], *rng.choice(names, rng.integers(0, 3))}) if number < 48 else []
        mix(root / f"{number}.wav", chosen, number)
        rows.append((f"{number}.wav", ";".join(chosen), f"group{number % 12}"))
    pd.DataFrame(rows, columns=["path", "label", "group"]).to_csv(root / "table.csv", index=False)
    return root / "table.csv"


@pytest.fixture(scope="module")
def results(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        probe(table, "--output-dir", folder, "--shots", "2", "--draws", "2", "--epochs", "30")
    return folder


def test_scores_are_scikit_learn_s_of_the_written_predictions(results: Path) -> None:
    record = RunRecord.load(results / "result.json")
    protocol = record.protocols["official"]
    content = torch.load(results / "predictions.pt", weights_only=True)
    table = pd.read_csv(results / "predictions.csv", keep_default_na=False)
    truth = [text.split(";") if text else [] for text in table["class_name"]]
    expected = np.array([[name in labels for name in content["class_names"]] for labels in truth])
    assert np.array_equal(content["labels"].numpy(), expected) and ([] in truth)
    for head, scored in protocol.heads.items():
        of_split = [
            average_precision_score(expected[rows], content["logits"][head].numpy()[rows], average="macro")
            for split in dict.fromkeys(content["splits"])
            for rows in [np.array(content["splits"]) == split]
        ]
        assert scored.mean["macro_map"] == pytest.approx(np.mean(of_split), abs=1e-9)
        assert scored.score > protocol.majority_class.score + 0.2
        assert isinstance(scored.label_sets, LabelSets)
    assert "5 folds by group" in protocol.division and protocol.related_test_clips == 0
    features = FeatureSet.load(results / "own_table_features_logmel.pt")
    assert features.is_multilabel and features.class_names == ["high", "low", "middle"]
    assert features.labels.any(dim=1).sum() == 48


def test_predict_names_every_label_above_its_threshold(results: Path, table: Path, tmp_path: Path) -> None:
    head = results / "own_table_linear_classifier.pt"
    mix(tmp_path / "both.wav", ["low", "high"], 99)
    result = call(predict_main, head, tmp_path / "both.wav", "--json", "--csv", tmp_path / "p.csv")
    assert result.returncode == 0, result.stderr
    (answer,) = json.loads(result.stdout)
    thresholds = TrainedHead.load(head).thresholds
    probabilities = {part["class_name"]: part["probability"] for part in answer["classes"]}
    assert thresholds is not None
    above = [
        name for name, least in zip(["high", "low", "middle"], thresholds, strict=True) if probabilities[name] >= least
    ]
    assert set(answer["labels"]) == set(above) == {"low", "high"}
    (row,) = pd.read_csv(tmp_path / "p.csv").to_dict("records")
    assert row["class_name"] == ";".join(answer["labels"])
    assert "middle" not in call(predict_main, head, tmp_path / "both.wav").stdout


def test_rankings_are_read_again_as_they_were_scored(results: Path) -> None:
    features = FeatureSet.load(results / "own_table_features_logmel.pt")
    record = RunRecord.load(results / "result.json")
    runs = read_runs(results)
    judged = runs[0].judged()["linear"]
    assert judged.interval() == pytest.approx(record.protocols["official"].heads["linear"].interval)
    assert judged.units == "groups" and judged.n_groups == 12
    assert compare_encoders(runs, {}) is None  # only one
    assert len(features) == 50


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("path,label\n0.wav,a;b\n1.wav,b\n2.wav,\"a,c\"\n3.wav,c\n", (), "looks like several too; say which: --label-separator"),
        ("path,a,b\n0.wav,1,0\n1.wav,0,2\n", (), "line 3: column 'b' is taken for a class"),
        ("path,a,b\n0.wav,1,0\n1.wav,1,0\n", (), "no clip is of class 'b': its column is 0 everywhere"),
        ("path,b\n0.wav,1\n", (), "lacks the column label, or a column of 0 and 1 for every class"),
        ("path,label\n0.wav,a;b\n1.wav,b\n2.wav,b;c\n", (), "1 of 3 clips have the label 'a'"),
        ("path,label,split\n0.wav,a;b,train\n1.wav,b;a,train\n2.wav,b;c,test\n3.wav,c,test\n", (), "the training side of the given train and test split has no clip of class c"),
        ("path,label\n0.wav,a;b\n1.wav,b\n", ("--label-separator", "none"), "class a;b has a single clip"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(text: str, flags: tuple[str, ...], message: str, table: Path, tmp_path: Path) -> None:
    path = table.with_name(f"bad{abs(hash(text)) % 10**8}.csv")
    path.write_text(text)
    line = refused(call(probe_main, path, "--output-dir", tmp_path / "out", *FAST, *flags))
    assert message in line, line


def test_a_mark_hides_no_label(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, probabilities = Clip(Path("both.wav")), np.array([[0.9, 0.1, 0.8]])
    one = Heard(clip, "both.wav", [clip], probabilities, np.array([9.0]), np.array([True]))
    head = TrainedHead.load(results / "own_table_linear_classifier.pt")
    _print_table([one], replace(head, class_names=["high", "low", "middle"], thresholds=[0.5] * 3), 5)
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("none of these", "high 90.0 %", "middle 80.0 %"))
