"""Folders and tables of sounds: clips, roots, and the line or path that is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.datasets import DatasetError, DatasetMissingError, DatasetNote
from own_sounds.sounds import Source, audio_files
from tests.support.own_sounds import folder_of_classes
from tests.support.samples import write_wav


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
        ("file,label\na.wav,x\n", r"lacks the column path \(it has file, label\)"),
        ("path,label\n", "lists no clips"),
        ("path,label\na.wav,\n", "line 2: its label is empty"),
        ("path,label\na.wav,x;y\n", "label 'x;y' may be several, but no part of it stands alone elsewhere"),
        ("path,label,fold\na.wav,x,one\n", "line 2: fold must be a whole number, not 'one'"),
        ("path,label,split\na.wav,x,both\n", "line 2: split must be train, valid or test, not 'both'"),
        ("path,label,start\na.wav,x,soon\n", "line 2: start must be a number of seconds, not 'soon'"),
        ("path,label,start\na.wav,x,-1\n", "line 2: start must be a number of seconds, not '-1'"),
        ("path,label,end\na.wav,x,nan\n", "line 2: end must be a number of seconds, not 'nan'"),
        ("path,label,start,end\na.wav,x,2,1.5\n", "line 2: end 1.5 is not after start 2.0"),
        ("path,label,end\na.wav,x,1.2.3\n", "line 2: could not convert"),
        ("path,label\n,x\n", "line 2: path must be a file, not ''"),
        ("path,label\na.wav,x\na.wav,y\n", "line 3: a.wav is already listed in line 2"),
        ("path,label,fold\na.wav,x,1\nb.wav,y,\n", "line 3 has no fold, but others have"),
        ('path,label\n"a.wav,x\n', "cannot be read as a table"),
        ("", "cannot be read as a table"),
    ],
)
def test_a_wrong_table_is_refused_by_its_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        Source(tmp_path / "t.csv").read()


def test_a_wrong_folder_or_pattern_is_refused(classes: Path, tmp_path: Path) -> None:
    for place, message in (
        (tmp_path / "nowhere", "not found; give a folder"),
        (write_wav(tmp_path / "x" / "a.wav"), "is not a table; give a .csv or .tsv"),
        (tmp_path / "x", "a.wav lies directly in it; make a sub-folder for every class"),
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


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_to_itself_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    with pytest.raises(DatasetMissingError, match=r"loop\.wav not found"):
        audio_files([tmp_path / "loop.wav"])


def test_files_and_folders_are_listed_once_each(classes: Path, tmp_path: Path) -> None:
    file = classes / "low" / "0.wav"
    assert audio_files([file, classes / "low"])[0] == file.resolve()
    assert len(audio_files([file, classes / "low"])) == 8
    for place in (tmp_path / "nowhere", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DatasetError, match=r"not found|holds no audio"):
            audio_files([place])
