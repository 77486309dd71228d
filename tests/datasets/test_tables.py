"""Tables as people have them: dialects, names of columns, encodings; every line is a clip, or is named."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from common.datasets import Clip, DatasetError, DatasetNote, Sounds
from common.datasets.places import read_rows
from common.datasets.tables import alike, clips_of

PLAIN = "path,label,fold,group\na/1.wav,dog,1,x\na/2.wav,cat,2,y\n"


def read(path: Path, encoding: str | None = None, separator: str | None = None, **columns: str) -> Sounds:
    return clips_of(read_rows(path, encoding), columns, separator)


def listed(path: Path, **options: str) -> list[Clip]:
    return list(read(path, **options).clips)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (PLAIN, "utf-8"),
        (PLAIN, "utf-8-sig"),
        (PLAIN.replace(",", ";").replace("\n", "\r\n"), "utf-8"),
        (PLAIN.replace(",", "\t"), "utf-16"),
        (PLAIN.replace(",", ", "), "utf-8"),
        ('"path","label","fold","group"\n"a/1.wav","dog","1","x"\n"a/2.wav","cat","2","y"\n', "utf-8"),
        ("File Name;Species;FOLD;Speaker\na/1.wav;dog;1;x\na/2.wav;cat;2;y\n", "utf-8"),
        (",path,label,fold,group\n0,a/1.wav,dog,1,x\n1,a/2.wav,cat,2,y\n", "utf-8"),
        (PLAIN.replace("\n", ",\n"), "utf-8"),
        (PLAIN.replace("a/", "a\\"), "utf-8"),
        ("\nsep=;\n" + PLAIN.replace(",", ";"), "utf-8"),
        ("path\tlabel\tfold\tgroup\n1\ta/1.wav\tdog\t1\tx\n2\ta/2.wav\tcat\t2\ty\n", "utf-8"),
    ],
)
def test_every_dialect_lists_the_same_clips(text: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in "12":
        (tmp_path / "a" / f"{name}.wav").touch()
    expected = listed(write(tmp_path / "plain.csv", PLAIN))
    assert [(clip.class_name, clip.fold, clip.group) for clip in expected] == [("dog", 1, "x"), ("cat", 2, "y")]
    assert listed(write(tmp_path / "other.csv", text, encoding)) == expected


def test_a_parquet_table_lists_the_same_clips(tmp_path: Path) -> None:
    path = write(tmp_path / "plain.csv", PLAIN)
    pd.read_csv(path).assign(fold=[1.0, 2.0]).to_parquet(tmp_path / "table.parquet")
    assert listed(tmp_path / "table.parquet") == listed(path)


def test_quotes_belong_to_the_text_where_tabs_separate(tmp_path: Path) -> None:
    """As in Common Voice, where a sentence may begin with a quote that never ends."""
    quotes = {2: '"', 5: '"'}
    lines = "".join(f"{n}.wav\t{quotes.get(n, '')}sentence {n}\t{n % 2}\n" for n in range(1, 9))
    clips = listed(write(tmp_path / "t.tsv", f"path\tsentence\tlabel\n{lines}"))
    assert [(clip.path.name, clip.class_name) for clip in clips] == [(f"{n}.wav", str(n % 2)) for n in range(1, 9)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('path,note,label\n1.wav,"a,x\n2.wav,"b,y\n', "line 2 cannot be read"),
        ('path,note,label\n1.wav,"two\nlines",x\n2.wav,b,y\n3.wav,c\n', "line 5 has 2 cells, but 3 are named"),
        ("path,label\n1.wav,x\n\n2.wav,low, loud\n", "line 4 has 3 cells, but 2 are named .path, label.; put a cell"),
        ('path,label\n"1.\nwav",x\n', "line 2: path has a line break in it"),
        ("path,label,label\n1.wav,x,y\n", "2 columns called label"),
        ("path,label,start,duration\n1.wav,x,1,2\n", "has a duration, but no end; add a column end"),
        ("path,client,age\n1.wav,ab,20\n", "lacks the column label, .*; name it: --label-column"),
        ("path,label\n1.wav,['low' 'Sound']\n", "is not a list of names"),
    ],
)
@pytest.mark.filterwarnings("ignore::common.datasets.DatasetNote")
def test_lines_that_are_no_rows_are_named_by_their_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        read(write(tmp_path / "t.csv", text))


def test_empty_lines_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "path;label\n1.wav;x\n;\n\n2.wav;y\n\n")
    with pytest.warns(DatasetNote, match="2 empty lines are left out"):
        assert len(listed(path)) == 2


def test_other_encodings_must_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "path,label\n1.wav,貓\n2.wav,狗\n", "big5")
    with pytest.raises(
        DatasetError, match=r"not text in UTF-8 or UTF-16 \(line 2\); say which it is, such as --encoding"
    ):
        read(path)
    assert [clip.class_name for clip in listed(path, encoding="big5")] == ["貓", "狗"]
    with pytest.raises(DatasetError, match="--encoding klingon is unknown"):
        read(path, encoding="klingon")


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "path,label,call,site,speaker\n1.wav,x,hoot,s,a\n2.wav,x,trill,s,b\n")
    with pytest.raises(
        DatasetError, match=r"the columns speaker and site may both be the group .* --group-column speaker"
    ):
        read(path)
    sounds = read(path, label="Call", group="site")
    assert [(clip.class_name, clip.group) for clip in sounds.clips] == [("hoot", "s"), ("trill", "s")]
    assert sounds.remarks[0] == "columns: label = call, group = site; columns that are not used: label, speaker"
    assert [clip.group for clip in listed(path, group="none")] == [None, None]
    with pytest.raises(DatasetError, match="--label-column kind: there is no such column; there are path, label, call"):
        read(path, label="kind")


def test_labels_are_compared_as_they_look(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "rêve") for form in ("NFC", "NFD")]
    sounds = read(write(tmp_path / "t.csv", f"path,label\n1.wav,{forms[0]}\n2.wav,{forms[1]}\n3.wav,Low\n4.wav,low\n"))
    assert {clip.class_name for clip in sounds.clips} == {forms[0], "Low", "low"}
    assert any(
        "differ only by case or blanks" in remark and "'Low' (1 clips)" in remark for remark in alike(sounds.clips)
    )


def test_files_are_found_whichever_way_accents_are_written(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "café.wav") for form in ("NFC", "NFD")]
    (tmp_path / names[1]).touch()
    clip = listed(write(tmp_path / "t.csv", f"path,label\n{names[0]},x\n1.wav,y\n"))[0]
    assert clip.path.exists()


def test_segments_of_one_file_are_one_group(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "path;label;start;end\n1.wav;x;0,5;1\n1.wav;y;1;2,25\n2.wav;x;0;1\n")
    clips = listed(path)
    assert [(clip.start_s, clip.end_s) for clip in clips] == [(0.5, 1.0), (1.0, 2.25), (0.0, 1.0)]
    assert [clip.group for clip in clips] == ["1.wav", "1.wav", "2.wav"]
    assert [clip.group for clip in listed(path, group="none")] == [None] * 3


def test_a_spreadsheet_is_told_how_to_save(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is a spreadsheet; save it as CSV in UTF-8"):
        read_rows(write(tmp_path / "t.xlsx", "PK"))
