"""Folders and tables of sounds: clips, roots, and the line or path that is wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from common.datasets import Clip, DatasetError, DatasetMissingError, DatasetNote, Division
from common.features import FeatureSet
from common.flags import Parser
from own_sounds.sounds import Source, add_columns, clips_in, prepare
from tests.support.own_sounds import folder_of_classes
from tests.support.samples import write_wav


def listed(*places: Path) -> list[Clip]:
    parser = Parser("")
    add_columns(parser)
    return clips_in(places, parser.parse_args([])).clips


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    return folder_of_classes(tmp_path / "My sounds")


def test_the_root_of_a_table_holds_files_outside_its_folder(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "audio" / "a.wav")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "t.csv").write_text(
        f"path,label\n../audio/a.wav,x\n{write_wav(tmp_path / 'audio' / 'b.wav')},y\n"
    )
    sounds = Source(tmp_path / "tables" / "t.csv").read()
    root, clips = sounds.root, sounds.clips
    assert root == tmp_path.resolve()
    assert clips[0].path == path.resolve() and clips[1].clip_id(root) == "audio/b.wav"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sound,label\na.wav,x\n", r"lacks the column path, or one of its usual names \(it has sound, label\)"),
        ("path,label\n", "lists no clips"),
        ("path,label\na.wav,\n", "line 2: its label is empty"),
        ("path,label\na.wav,x;y\n", "label 'x;y' may be several, but no part of it stands alone elsewhere"),
        ("path,label,fold\na.wav,x,one\n", "line 2: fold must be a whole number, not 'one'"),
        ("path,label,split\na.wav,x,both\n", "line 2: split must be train, valid or test, not 'both'"),
        ("path,label,start\na.wav,x,soon\n", "line 2: start must be a number of seconds, not 'soon'"),
        ("path,label,start\na.wav,x,-1\n", "line 2: start must be a number of seconds, not '-1'"),
        ("path,label,end\na.wav,x,nan\n", "line 2: end must be a number of seconds, not 'nan'"),
        ("path,label,start,end\na.wav,x,2,1.5\n", "line 2: end 1.5 is not after start 2.0"),
        ("path,label,end\na.wav,x,1.2.3\n", "line 2: end must be a number of seconds, not '1.2.3'"),
        ("path,label\n,x\n", "line 2: path must be a file, not ''"),
        ("path,label\na.wav,x\na.wav,y\n", "line 3: a.wav is already listed in line 2"),
        ("path,label,fold\na.wav,x,1\nb.wav,y,\n", "line 3 has no fold, but others have"),
        ('path,label\n"a.wav,x\n', "line 2 cannot be read .*: a quote is missing"),
        ("", "lists no clips"),
    ],
)
def test_a_wrong_table_is_refused_by_its_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        Source(tmp_path / "t.csv").read()


def test_a_wrong_folder_or_pattern_is_refused(classes: Path, tmp_path: Path) -> None:
    for place, message in (
        (tmp_path / "nowhere", "not found; give a folder"),
        (write_wav(tmp_path / "x" / "a.wav"), "is not a table; give a .csv, .tsv"),
        (tmp_path / "x", "a.wav does not lie in the folder of a class; make a sub-folder"),
    ):
        with pytest.raises(DatasetError, match=message):
            Source(place).read()
    for label, group, message in (
        ("(", None, "is not a regular expression"),
        (None, "z(\\d)", "matches nothing in high/0.wav"),
    ):
        with pytest.raises(DatasetError, match=message):
            Source(classes, label, group).read()
    (classes / "notes.txt").touch()
    with pytest.warns(DatasetNote, match="1 files that are not audio are left out"):
        assert len(Source(classes).read().clips) == 16


def test_folders_of_splits_and_folds_hold_the_classes(tmp_path: Path) -> None:
    """https://github.com/huggingface/datasets/issues/7880"""
    for names, expected in (
        (("train", "valid", "test"), ["test", "train", "valid"]),
        (("fold1", "fold2", "fold10"), [1, 10, 2]),
        (("audio",), [None]),
    ):
        root = tmp_path / names[0]
        for name in names:
            folder_of_classes(root / name)
        sounds = Source(root).read()
        clips = list(sounds.clips)
        assert {clip.class_name for clip in clips} == {"high", "low"} and len(clips) == 16 * len(names)
        assert [clip.split or clip.fold for clip in clips[::16]] == expected
        assert ", ".join(sorted(names)) in sounds.remarks[0]
        for name in names:
            write_wav(root / name / "loose.wav")
        with pytest.raises(DatasetError, match=r"loose.wav does not lie in the folder of a class"):
            Source(root).read()


def test_windows_of_a_file_are_one_group_and_files_with_a_hash_are_not() -> None:
    def groups(ids: list[str]) -> Sequence[str] | None:
        rows = len(ids)
        features = FeatureSet(torch.rand(rows, 2), torch.arange(rows) % 2, ["x", "y"], ids)
        return prepare(features, Division({}, 0.2, 42)).features.groups

    files = [f"take#{n}.wav" for n in range(8)]
    assert groups(files) is None
    assert groups([f"{name}#{start}-{start + 1.0}" for name in files for start in (0.0, 1.0)]) == sorted(files * 2)


@pytest.mark.parametrize(
    "names", [("train", "test", "unlabeled"), ("fold1", "fold2", "test"), ("deep/train", "deep/rest")]
)
def test_folders_of_which_some_are_splits_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        folder_of_classes(tmp_path / name)
    with pytest.raises(DatasetError, match="may be splits or folds; give a table"):
        Source(tmp_path).read()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_are_followed_and_keep_their_names(classes: Path, tmp_path: Path) -> None:
    """https://github.com/allenai/ir_datasets/issues/160, https://github.com/huggingface/huggingface_hub/issues/1388"""
    elsewhere = tmp_path / "elsewhere"
    folder_of_classes(elsewhere)
    (classes / "other").symlink_to(elsewhere / "low")
    (classes / "low" / "circle").symlink_to(classes)
    blob = write_wav(tmp_path / "blobs" / "0123abcd.wav").rename(tmp_path / "blobs" / "0123abcd")
    (classes / "high" / "linked.wav").symlink_to(blob)
    (tmp_path / "link").symlink_to(classes)
    for place in (classes, tmp_path / "link"):
        clips = list(Source(place).read().clips)
        names = [clip.clip_id(place) for clip in clips]
        assert len(names) == 16 + 8 + 1 and {clip.class_name for clip in clips} == {"high", "low", "other"}
        assert "high/linked.wav" in names and "other/3.wav" in names
    table = tmp_path / "blobs" / "table"
    table.write_text("path,label\nhigh/linked.wav,x\nhigh/0.wav,y\n")
    (classes / "t.csv").symlink_to(table)
    assert [clip.path for clip in Source(classes / "t.csv").read().clips] == [
        classes / "high" / name for name in ("linked.wav", "0.wav")
    ]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_to_itself_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    with pytest.raises(DatasetMissingError, match=r"loop\.wav not found"):
        listed(tmp_path / "loop.wav")


def test_files_and_folders_are_listed_once_each(classes: Path, tmp_path: Path) -> None:
    file = classes / "low" / "0.wav"
    assert listed(file, classes / "low")[0].path == file
    assert len(listed(file, classes / "low")) == 8
    for place in (tmp_path / "nowhere", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DatasetError, match=r"not found|holds no audio"):
            listed(place)
