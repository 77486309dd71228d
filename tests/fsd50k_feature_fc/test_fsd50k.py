"""FSD50K: several labels a clip, the given split, uploaders as groups, and what a wrong layout says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from common.cli import classify_main, extract_main
from common.datasets import DatasetError, DatasetNote
from common.evaluation.record import RunRecord
from demo.generate import generate_fsd50k
from fsd50k_feature_fc.fsd50k import TASK, read_clips
from tests.support.scripts import call, refused


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "FSD50K"
    generate_fsd50k(root, clips=40)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two clips of dev, one of eval, without their sounds."""
    truth = tmp_path / "FSD50K.ground_truth"
    truth.mkdir()
    for side in ("dev", "eval"):
        (tmp_path / f"FSD50K.{side}_audio").mkdir()
    (truth / "dev.csv").write_text('fname,labels,mids,split\n11,"Bark,Dog","a,b",train\n12,Rain,c,val\n')
    (truth / "eval.csv").write_text('fname,labels,mids\n7,"Bark,Dog","a,b"\n')
    (tmp_path / "FSD50K.metadata").mkdir()
    for side, files in (("dev", ("11", "12")), ("eval", ("7",))):
        content = {file: {"title": "x", "uploader": f"user{file}"} for file in files}
        (tmp_path / "FSD50K.metadata" / f"{side}_clips_info_FSD50K.json").write_text(json.dumps(content))
    return tmp_path


def test_rows_are_clips_with_their_labels_split_and_uploader(root: Path) -> None:
    clips = read_clips(root)
    assert [(clip.labels, clip.split, clip.group) for clip in clips] == [
        (("Bark", "Dog"), "train", "user11"),
        (("Rain",), "valid", "user12"),
        (("Bark", "Dog"), "test", "user7"),
    ]
    assert clips[2].clip_id(root) == "FSD50K.eval_audio/7.wav"


def test_without_metadata_groups_are_unknown_and_a_part_of_them_is_damage(root: Path) -> None:
    dev, evaluation = sorted((root / "FSD50K.metadata").iterdir())
    evaluation.unlink()
    with pytest.raises(DatasetError, match="has no uploader of 7; unpack it again"):
        read_clips(root)
    dev.write_text("{")
    with pytest.raises(DatasetError, match=r"dev_clips_info_FSD50K.json is damaged"):
        read_clips(root)
    dev.unlink()
    with pytest.warns(DatasetNote, match="which clips are of one uploader is unknown"):
        assert {clip.group for clip in read_clips(root)} == {None}


@pytest.mark.parametrize(
    ("name", "before", "after", "message"),
    [
        ("dev", "val", "test", "line 3: split must be train or val, not 'test'"),
        ("eval", "fname", "name", "lacks the column fname"),
        ("eval", "7,", "../7,", "which is not a file name"),
    ],
)
def test_altered_rows_are_named(name: str, before: str, after: str, message: str, root: Path) -> None:
    path = root / "FSD50K.ground_truth" / f"{name}.csv"
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(DatasetError, match=message):
        read_clips(root)


def test_a_wrong_layout_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected FSD50K.dev_audio, .* found nothing.*download fsd50k"):
        read_clips(tmp_path)


def test_from_sounds_to_scores(generated: Path, tmp_path: Path, no_figures: None) -> None:
    del no_figures
    assert Counter(clip.split for clip in read_clips(generated)) == {"train": 24, "valid": 4, "test": 12}
    features = tmp_path / "fsd50k_features_logmel.pt"
    settings = ("--encoder", "logmel", "--device", "cpu")
    flags = ("--data-root", generated, "--output", features, *settings)
    assert call(lambda argv: extract_main(TASK, argv), *flags).returncode == 0
    flags = ("--features", features, "--output-dir", tmp_path / "out", "--epochs", 20, *settings)
    result = call(lambda argv: classify_main(TASK, argv), *flags)
    assert result.returncode == 0 and "official train, valid and test split" in result.words
    record = RunRecord.load(tmp_path / "out" / "result.json")
    protocol = record.protocols["official"]
    assert protocol.heads["linear"].mean["macro_map"] > protocol.majority_class.mean["macro_map"] + 0.2
    assert protocol.related_test_clips == 0 and protocol.comparison.units == "groups"
    from esc50_feature_fc.esc50 import TASK as ESC50

    line = refused(call(lambda argv: classify_main(ESC50, argv), "--features", features, *settings))
    assert "holds features of fsd50k, not of esc50" in line
