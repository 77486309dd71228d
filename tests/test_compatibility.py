"""Files of version 0.1: they open, a run of that version is recognised, and classifying again gives the same numbers.

tests/fixtures/v0.1/ was written by that version: a feature file, and two runs made from it. The figures, result.csv and
predictions.pt of those runs are left out.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heads_helpers import Result, classify

from analysis.runs import read_runs
from analysis.summary import summary_rows
from common.evaluation.record import RecordError, RunRecord
from common.features import FeatureSet
from common.heads import HEADS, HeadKind, TrainedHead
from esc50_feature_fc.esc50 import TASK

FOLDER = Path(__file__).parent / "fixtures" / "v0.1"
FEATURES = FOLDER / "features.pt"
SHARED_FLAGS = ("--feature-dim", 6, "--epochs", 3, "--hidden-dim", 4)
RUN_FLAGS = ("--seeds", 2, "--protocol", "both", "--probes", "--controls", "--label-fractions", 0.5, 1)
FLAGS: dict[str, tuple[object, ...]] = {
    "run": (*SHARED_FLAGS, *RUN_FLAGS),
    "tuned": (*SHARED_FLAGS, "--recipe", "tuned"),
}
EXACT = 1e-9  # scores are shares of clips, so that the same predictions give the same score
# Losses are sums of float32, whose rounding differs between kinds of CPU.
LOSS = 1e-4

pytestmark = pytest.mark.usefixtures("no_figures")
each_run = pytest.mark.parametrize("name", FLAGS)


def stored(name: str) -> dict[str, Any]:
    """A stored result.json, as JSON."""
    content: dict[str, Any] = json.loads((FOLDER / name / "result.json").read_text())
    return content


def classify_again(name: str, features: Path, folder: Path) -> Result:
    """What the script does with the stored run's settings."""
    return classify("--features", features, "--output-dir", folder, *FLAGS[name])


OTHER_METHOD = {"interval", "more_intervals"}  # the fixture's are of the bootstrap
# Settings that version 0.1 did not have, with the defaults that leave everything as it was.
NEW_SETTINGS = {"figure_format": "png", "encoder": "audiosep", "use_layer": None, "use_pool": None}
# What version 0.1 did not note: whether logistic regression reached its end, the calibration of heads, and their threshold for unknown sounds.
NEW_FACTS = {"converged", "calibration", "none_of_these", "control_comparisons", "n_units", "holm_p_value"}


def without(value: Any, keys: Collection[str]) -> Any:
    """A JSON value without these keys, wherever they are."""
    if isinstance(value, dict):
        return {key: without(each, keys) for key, each in value.items() if key not in keys}
    return [without(each, keys) for each in value] if isinstance(value, list) else value


def differences(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """The places at which two JSON values differ; numbers may differ by EXACT, losses by LOSS."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() ^ now.keys():
            yield f"{place}/{key} is on one side only"
        for key in before.keys() & now.keys() - OTHER_METHOD:
            yield from differences(before[key], now[key], f"{place}/{key}")
    elif isinstance(before, list) and isinstance(now, list):
        if len(before) != len(now):
            yield f"{place} has {len(before)} entries, now {len(now)}"
        for index, (one, other) in enumerate(zip(before, now, strict=False)):
            yield from differences(one, other, f"{place}/{index}")
    elif isinstance(before, float) and isinstance(now, float):
        tolerance = LOSS if "/train_loss/" in place else EXACT
        if not math.isclose(before, now, rel_tol=0, abs_tol=tolerance):
            yield f"{place} was {before}, now {now}"
    elif before != now or type(before) is not type(now):
        yield f"{place} was {before!r}, now {now!r}"


def test_the_feature_file_opens() -> None:
    features = FeatureSet.load(FEATURES)
    assert features.features.shape == (36, 6)
    assert features.labels.tolist() == [row // 4 % 3 for row in range(36)]
    assert features.class_names == ["class 0", "class 1", "class 2"]
    assert features.clip_ids == [f"clip{row}.wav" for row in range(36)]
    assert features.folds is not None
    assert features.folds.tolist() == [1 + row // 12 for row in range(36)]
    assert features.groups == [f"source{row // 2}" for row in range(36)]
    assert features.splits is None
    assert (features.meta["dataset"], features.meta["checkpoint"]) == ("esc50", "random:0")
    assert features.meta["counts"] == {"clips": 36, "extracted": 36, "failed": 0}
    assert features.meta["samples"].tolist() == [32_000] * 36


@each_run
def test_the_record_opens_and_says_what_is_in_the_file(name: str) -> None:
    record, content = RunRecord.load(FOLDER / name / "result.json"), stored(name)
    assert (record.task, record.files, record.created) == ("esc50", content["files"], content["created"])
    for key in ("epochs", "recipe", "seeds", "protocol", "probes"):
        assert getattr(record.config, key) == content["config"][key]
    assert record.features.sha256 == content["features"]["sha256"]
    assert set(record.protocols) == set(content["protocols"])
    for protocol, scored in record.protocols.items():
        for kind in HEADS:
            expected = content["protocols"][protocol]["heads"][kind]
            assert scored.heads[kind].mean == expected["mean"]
            assert [fit.scores["accuracy"] for fit in scored.heads[kind].splits] == [
                fit["accuracy"] for fit in expected["splits"]
            ]
            assert scored.heads[kind].confusion == expected["confusion"]
    # Written again, it holds the same.
    assert not list(differences(content, json.loads(record.model_dump_json(exclude_unset=True))))


@each_run
@pytest.mark.parametrize("kind", HEADS)
def test_trained_heads_open_and_give_logits(name: str, kind: HeadKind) -> None:
    features = FeatureSet.load(FEATURES)
    head = TrainedHead.load(FOLDER / name / TASK.head_files[kind])
    logits = head.logits(features.features)
    assert logits.shape == (36, 3)
    assert torch.isfinite(logits).all()
    assert (head.kind, head.class_names) == (kind, features.class_names)
    assert (head.scaler.rotation is not None, head.scaler.is_unit_length) == (name == "tuned", name == "tuned")
    assert head.encoder["checkpoint"] == "random:0"


@each_run
def test_classifying_again_gives_the_same_numbers(name: str, tmp_path: Path) -> None:
    """The same predictions, scores, curves and heads.

    The comparison is exact where the numbers are shares of clips. That is safe on any machine, as no prediction and no
    choice of an epoch depends on rounding: the next test shows that.
    """
    result = classify_again(name, FEATURES, tmp_path)
    assert result.returncode == 0, result.stderr
    now = json.loads((tmp_path / "result.json").read_text())
    assert sorted(differences(stored(name)["protocols"], without(now["protocols"], NEW_FACTS))) == []
    places = ("features", "output_dir")
    before, after = ({**each["config"], **dict.fromkeys(places)} for each in (stored(name), now))
    assert {key: after[key] for key in NEW_SETTINGS} == NEW_SETTINGS
    assert sorted(differences(before, without(after, NEW_SETTINGS))) == []
    assert (tmp_path / "predictions.csv").read_text() == (FOLDER / name / "predictions.csv").read_text()
    for kind in HEADS:
        old, new = (TrainedHead.load(folder / TASK.head_files[kind]) for folder in (FOLDER / name, tmp_path))
        values = FeatureSet.load(FEATURES).features
        torch.testing.assert_close(new.logits(values), old.logits(values), rtol=0, atol=1e-3)


@each_run
def test_no_score_depends_on_rounding(name: str, tmp_path: Path) -> None:
    """Features that are changed by a hundred times their rounding give the same predictions and scores."""
    features = FeatureSet.load(FEATURES)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(features.features.shape)).float()
    replace(features, features=features.features * (1 + 1e-5 * noise)).save(tmp_path / "changed.pt")
    assert classify_again(name, tmp_path / "changed.pt", tmp_path).returncode == 0
    now = json.loads((tmp_path / "result.json").read_text())["protocols"]
    assert now != stored(name)["protocols"]  # the losses
    assert sorted(differences(stored(name)["protocols"], without(now, NEW_FACTS))) == []


def finished_run(name: str, folder: Path) -> Path:
    """The stored run with all its files; those that the fixture lacks are empty."""
    shutil.copytree(FOLDER / name, folder)
    for file in stored(name)["files"]:
        (folder / file).touch()
    return folder


@each_run
def test_a_finished_run_is_recognised(name: str, tmp_path: Path) -> None:
    folder = finished_run(name, tmp_path / "results")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
    result = classify_again(name, FEATURES, folder)
    assert result.returncode == 0, result.stderr
    assert "Nothing to do" in result.words
    after = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
    assert after == before
    accuracy = stored(name)["protocols"]["official"]["heads"]["linear"]["mean"]["accuracy"]
    line = next(line for line in result.stdout.splitlines() if line.startswith("linear "))
    assert line.split()[1] == f"{100 * accuracy:.1f}"


def test_a_run_of_other_settings_or_without_its_files_is_not(tmp_path: Path) -> None:
    folder = finished_run("run", tmp_path / "results")
    other = classify("--features", FEATURES, "--output-dir", folder, *FLAGS["run"], "--epochs", 4)
    assert other.returncode == 2
    assert "epochs was 3, now 4" in other.stderr
    (folder / "esc50_linear_classifier.pt").unlink()
    again = classify_again("run", FEATURES, folder)
    assert again.returncode == 0
    assert "Nothing to do" not in again.words
    assert (folder / "esc50_linear_classifier.pt").is_file()


def test_analyses_read_earlier_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)  # where the stored runs say that their features are
    runs = read_runs(FOLDER)
    assert [one.folder.name for one in runs] == ["run", "tuned"]
    for one in runs:
        assert len(one.features) == 36
        said = one.predictions()["linear"]
        with (one.folder / "predictions.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["seed"] == "42"]
        assert said == {row["clip_id"]: row["linear"] for row in rows}
    rows_of_summary = summary_rows(runs)
    assert [(row.protocol, row.recipe) for row in rows_of_summary] == [
        ("official", "paper"),
        ("random", "paper"),
        ("official", "tuned"),
    ]
    means = [stored(name)["protocols"]["official"]["heads"]["linear"]["mean"] for name in ("run", "tuned")]
    assert [rows_of_summary[0].linear, rows_of_summary[2].linear] == [mean["accuracy"] for mean in means]


WHOLE = (FOLDER / "run" / "result.json").read_text()
DAMAGED = {
    "cut short": WHOLE[: len(WHOLE) // 2],
    "empty": "",
    "another program's": '{"results": [1, 2, 3]}',
    "a list": "[]",
    "a protocol without heads": WHOLE.replace('"heads"', '"tails"'),
    "a wrong type": WHOLE.replace('"seeds": 2', '"seeds": "two"'),
    "a setting out of range": WHOLE.replace('"epochs": 3', '"epochs": 0'),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_or_foreign_record_gives_one_clear_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=r"result\.json is not a record of this project \(.+\)$") as error:
        RunRecord.load(path)
    assert "\n" not in str(error.value)
    result = classify_again("tuned", FEATURES, tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"error: {path} is not a record of this project")
    assert line.endswith("--overwrite replaces it")
    assert path.read_text() == content


def test_a_damaged_record_can_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(DAMAGED["cut short"])
    replaced = classify("--features", FEATURES, "--output-dir", tmp_path, *FLAGS["tuned"], "--overwrite")
    assert replaced.returncode == 0, replaced.stderr
    assert RunRecord.load(tmp_path / "result.json").config.recipe == "tuned"
