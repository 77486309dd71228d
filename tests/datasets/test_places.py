"""Clips where they lie: label files beside recordings, Parquet files, tars, and the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.datasets import DatasetError, DatasetMissingError, DatasetNote, Sounds
from common.datasets.audio import AudioError, audio_checksum, audio_duration_s, read_audio
from common.datasets.containers import Member
from common.datasets.places import read_rows, read_task
from common.datasets.tables import clips_of
from common.files import PROJECT_ROOT
from esc50_feature_fc import esc50
from key_word_spotting import speech_commands
from own_sounds.sounds import Source
from tests.support.containers import write_parquet, write_tar
from tests.support.hub import commit_of, hub
from tests.support.own_sounds import tone
from urbansound8k_feature_fc import urbansound8k


def read(place: Path, **columns: str) -> Sounds:
    return clips_of(read_rows(place), columns)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [tone(tmp_path / "files" / f"{n}.wav", 300 + 50 * n, n, seconds=0.2 + 0.01 * n) for n in range(8)]


@pytest.fixture
def parquet(files: list[Path], tmp_path: Path) -> Path:
    return write_parquet(tmp_path / "rows.parquet", files, {"label": [n % 2 for n in range(8)]}, ("even", "odd"))


@pytest.fixture
def tar(files: list[Path], tmp_path: Path) -> Path:
    members = {}
    for number, file in enumerate(files):
        members[f"set/{number}.wav"] = file.read_bytes()
        members[f"set/{number}.json"] = json.dumps({"label": ["even", "odd"][number % 2], "fold": number % 4}).encode()
    return write_tar(tmp_path / "000.tar", members)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_clips_in_containers_are_those_of_files(kind: str, files: list[Path], request: pytest.FixtureRequest) -> None:
    clips = list(read(request.getfixturevalue(kind)).clips)
    assert [clip.class_name for clip in clips] == ["even", "odd"] * 4
    assert [clip.path.name for clip in clips] == [file.name for file in files]
    order = [5, 1, 7, 0, 3, 2, 6, 4]  # also out of order, and by several threads
    with ThreadPoolExecutor(4) as threads:
        waveforms = threads.map(lambda number: read_audio(clips[number].path, 32_000), order)
    for number, waveform in zip(order, waveforms, strict=True):
        np.testing.assert_array_equal(waveform, read_audio(files[number], 32_000))
        assert audio_checksum(clips[number].path) == audio_checksum(files[number])
        assert audio_duration_s(clips[number].path) == audio_duration_s(files[number])
        member = Member.of(clips[number].path)
        assert member is not None and abs(member.n_bytes - files[number].stat().st_size) < 3000
    segment = read_audio(clips[3].path, 16_000, 0.05, 0.1)
    np.testing.assert_array_equal(segment, read_audio(files[3], 16_000, 0.05, 0.1))


def test_labels_beside_audio_in_a_tar_may_be_files(files: list[Path], tmp_path: Path) -> None:
    members = {}
    for number, file in enumerate(files[:4]):
        members |= {f"{number}.flac": file.read_bytes(), f"{number}.cls": str(number % 2).encode()}
    for name in ("a", "b"):
        write_tar(tmp_path / "shards" / f"{name}-000.tar", members)
    sounds = read(tmp_path / "shards" / "*.tar")
    assert [clip.class_name for clip in sounds.clips] == ["0", "1", "0", "1"] * 2
    with pytest.raises(DatasetMissingError, match=r"1 of the 2 files of .* are missing, such as .*a-001.tar"):
        read_rows(tmp_path / "shards" / "a-{000..001}.tar")


def test_tars_are_listed_once_while_they_stay(tar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "features.pt.index.json"
    rows = read_rows(tar, index=index)
    with monkeypatch.context() as patch:
        patch.setattr("common.datasets.places.read_tar", None)
        assert read_rows(tar, index=index) == rows
    write_tar(tar, {"x.wav": b"1", "x.txt": b"owl"})
    assert read_rows(tar, index=index).columns["txt"] == ["owl"]
    index.write_text("{")
    assert len(read_rows(tar, index=index)) == 1


def test_what_containers_do_not_hold_is_named(parquet: Path, tar: Path, files: list[Path], tmp_path: Path) -> None:
    for place, message in (
        (parquet / "99" / "x.wav", "it has no row 99"),
        (tar / "0+0" / "x.wav", "empty file"),
        (tmp_path / "none.tar" / "0+9" / "x.wav", "not found"),
        (tar / "99999999+44" / "x.wav", "empty file"),
    ):
        with pytest.raises(AudioError, match=message):
            read_audio(place, 32_000)
    pq.write_table(pa.table({"path": ["a.wav"], "label": ["x"], "embedding": [[1.0]]}), tmp_path / "embedded.parquet")
    with pytest.raises(DatasetError, match="holds embeddings, not audio; give it with --features"):
        read_rows(tmp_path / "embedded.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1" * 8)
    (tmp_path / "bad.tar").write_bytes(b"x" * 2048)
    for name, message in (("bad.parquet", "cannot be read as Parquet"), ("bad.tar", "cannot be read as a tar")):
        with pytest.raises(DatasetError, match=message):
            read_rows(tmp_path / name)
    empty = write_parquet(tmp_path / "cut.parquet", files, {"label": list("abababab")})
    clip = list(read(empty).clips)[5]
    content = empty.read_bytes()
    at = content.index(files[5].read_bytes())
    empty.write_bytes(content[:at] + b"\0" * 400 + content[at + 400 :])
    with pytest.raises(AudioError):
        read_audio(clip.path, 32_000)


def test_the_splits_of_containers_are_in_their_names(files: list[Path], tmp_path: Path) -> None:
    for name, some in (("train", files[:4]), ("test", files[4:])):
        write_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet", some, {"label": list("abab")})
    assert [clip.split for clip in read(tmp_path / "data").clips] == ["test"] * 4 + ["train"] * 4
    (tmp_path / "data" / "test-00000-of-00001.parquet").unlink()  # one file alone divides nothing
    assert {clip.split for clip in read(tmp_path / "data").clips} == {None}


def test_official_folds_survive_in_copies(files: list[Path], tmp_path: Path) -> None:
    columns = {"filename": [f"{n}.wav" for n in range(8)], "fold": [1, 2, 3, 4, 5, 1, 2, 3]}
    columns |= {"target": [0, 1] * 4, "category": ["dog", "rooster"] * 4, "src_file": [n // 2 for n in range(8)]}
    copy = write_parquet(tmp_path / "esc50" / "train.parquet", files, columns)
    clips = list(read_task(esc50.TASK, copy.parent).clips)
    assert [(clip.fold, clip.class_name, clip.group) for clip in clips[:3]] == [
        (1, "dog", "0"),
        (2, "rooster", "0"),
        (3, "dog", "1"),
    ]
    del columns["category"], columns["fold"]
    copy = write_parquet(tmp_path / "esc50" / "train.parquet", files, columns)
    with pytest.raises(DatasetError, match=r"does not say which fold .* the official folds of ESC-50 are lost"):
        read_task(esc50.TASK, copy.parent)
    columns = {"fsID": [7] * 8, "start": [90.0] * 8, "end": [94.0] * 8, "fold": [1, 10] * 4, "classID": [0, 9] * 4}
    copy = write_parquet(
        tmp_path / "urban.parquet", files, columns | {"class": ["air_conditioner", "street_music"] * 4}
    )
    clips = list(read_task(urbansound8k.TASK, copy).clips)
    assert [(clip.fold, clip.class_name, clip.start_s) for clip in clips[:2]] == [
        (1, "air_conditioner", None),
        (10, "street_music", None),
    ]


def test_a_copy_of_speech_commands_keeps_its_splits(files: list[Path], tmp_path: Path) -> None:
    for release in ("v0.01", "v0.02"):
        for split in ("train", "validation", "test"):
            cells = {"label": [0, 0, 1, 1, 2, 2, 0, 1], "speaker_id": list("aabbccdd")}
            write_parquet(
                tmp_path / "copy" / release / split / "0000.parquet", files, cells, ("yes", "no", "_silence_")
            )
    sounds = read_task(speech_commands.V2, tmp_path / "copy")
    clips = list(sounds.clips)
    assert len(clips) == 18 and {clip.split for clip in clips} == {"train", "valid", "test"}
    assert all("v0.02" in clip.path.parts for clip in clips) and {clip.group for clip in clips} == set("abd") | {"d"}
    assert "left out: 6 clips of _silence_, which are not of the task" in sounds.remarks
    with pytest.raises(DatasetError, match="is read from its official archive alone"):
        read_task(speech_commands.V2_12, tmp_path / "copy")


RAVEN = (
    "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tSpecies\n"
    "1\tWaveform 1\t1\t0.1\t0.4\t0\t8000\towl\n1\tSpectrogram 1\t1\t0.1\t0.4\t0\t8000\towl\n"
    "2\tSpectrogram 1\t1\t0.5\t0.9\t0\t8000\tfrog\n"
)
AUDACITY = "0.100000\t0.400000\towl\n\\\t1000.0\t2000.0\n0,500000\t0,900000\tfrog\n"


@pytest.mark.parametrize(("name", "text"), [("night.Table.1.selections.txt", RAVEN), ("night.txt", AUDACITY)])
def test_events_of_label_files_are_segments_of_the_recording(name: str, text: str, tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    tone(recordings / "night.wav", 400, seconds=1)
    (recordings / name).write_text(text)
    (recordings / "readme.txt").write_text("1\t2\tno recording is called so\n")
    for place in (recordings / name, recordings):
        clips = list(read(place).clips)
        assert [(clip.class_name, clip.start_s, clip.end_s) for clip in clips] == [
            ("owl", 0.1, 0.4),
            ("frog", 0.5, 0.9),
        ]
        assert {clip.group for clip in clips} == {"night.wav"}
    (recordings / "night.wav").unlink()
    with pytest.raises(DatasetError, match=r"has no recording beside it; put it there as night\.wav"):
        read(recordings / name)


def test_raven_may_name_the_file_and_count_from_the_first_of_several(tmp_path: Path) -> None:
    header = "Selection\tBegin Time (s)\tEnd Time (s)\tBegin File\tFile Offset (s)\tSpecies\n"
    (tmp_path / "all.txt").write_text(header + "1\t0.1\t0.4\ta.wav\t0.1\towl\n2\t60.5\t60.9\tb.wav\t0.5\tfrog\n")
    clips = list(read(tmp_path / "all.txt").clips)
    assert [(clip.path.name, clip.start_s, clip.end_s) for clip in clips] == [("a.wav", 0.1, 0.4), ("b.wav", 0.5, 0.9)]


def test_a_line_that_is_no_label_of_audacity_is_named(tmp_path: Path) -> None:
    tone(tmp_path / "night.wav", 400)
    (tmp_path / "night.txt").write_text("0.1\t0.2\towl\n0.3 0.4 frog\n")
    with pytest.raises(DatasetError, match=r"night.txt line 2 \('0.3 0.4 frog'\) is not a label of Audacity"):
        read(tmp_path / "night.txt")


@pytest.mark.parametrize("revision", ["main", pytest.param("refs/convert/parquet", marks=pytest.mark.slow)])
def test_a_data_set_of_the_hub_is_fetched_once_and_its_revision_recorded(
    revision: str, files: list[Path], tmp_path: Path
) -> None:
    columns = {"fold": [1, 2, 3, 4] * 2, "category": ["dog", "rooster"] * 4, "src_file": list(range(8))}
    content = write_parquet(tmp_path / "copy.parquet", files, columns).read_bytes()
    script = PROJECT_ROOT / "esc50_feature_fc" / "extract_esc50_features_audiosep.py"
    output = tmp_path / "esc50.pt"
    run = [sys.executable, str(script), "--encoder", "logmel", "--output", str(output), "--data-root"]
    read_origin = (
        "import sys; from common.features import FeatureSet; print(FeatureSet.load(sys.argv[1]).meta['origin'])"
    )
    with hub({"main": {"README.md": b""}} | {revision: {"data/train-00000.parquet": content}}) as server:
        settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
        environment = os.environ | settings | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}

        def call(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, cwd=PROJECT_ROOT)

        done = call(*run, "hf:owner/name")
        assert done.returncode == 0 and "8 of 2,000 clips, 2 classes, 4 folds" in done.stdout, done.stderr
        assert server.fetched == ["data/train-00000.parquet"]
        assert call(sys.executable, "-c", read_origin, str(output)).stdout == f"hf:owner/name@{commit_of(revision)}\n"
        missing = call(*run, "hf:owner/name@v9")
        assert missing.returncode == 2 and "hf:owner/name@v9 cannot be fetched" in missing.stderr
    again = call(*run, "hf:owner/name")  # without a network
    assert again.returncode == (0 if revision == "main" else 2), again.stderr


def test_label_files_in_sub_folders_name_their_own_recordings(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "siteB"):
        tone(place / "night.wav", 400, seconds=1)
        (place / "night.txt").write_text(AUDACITY)
    tone(tmp_path / "siteB" / "day.wav", 400)
    with pytest.warns(DatasetNote, match="1 recordings without labels of Raven or Audacity beside them are left out"):
        clips = list(read(tmp_path).clips)
    assert [clip.group for clip in clips] == ["night.wav", "night.wav", "siteB/night.wav", "siteB/night.wav"]


def test_selections_are_told_apart_by_more_than_their_number(tmp_path: Path) -> None:
    tone(tmp_path / "night.wav", 400, seconds=1)
    header, *lines = RAVEN.splitlines()
    second = [line.replace("0.1\t0.4", "0.2\t0.3") for line in lines]
    (tmp_path / "night.txt").write_text("\n".join([header, *lines, *second]) + "\n")
    assert len(list(read(tmp_path / "night.txt").clips)) == 4 - 1  # the frog is the same twice
    (tmp_path / "two.txt").write_text(
        "Selection\tBegin Time (s)\tEnd Time (s)\tBegin File\tSpecies\n1\t0\t1\ta.wav\tx\n2\t60\t61\tb.wav\ty\n"
    )
    with pytest.raises(DatasetError, match="selections of several files without File Offset"):
        read(tmp_path / "two.txt")


def test_names_in_tars_make_clips_whichever_dots_they_have(files: list[Path], tmp_path: Path) -> None:
    """As GTZAN has them; and patterns see the names, not where the bytes are."""
    members = {f"genres/{'rock' if n % 2 else 'jazz'}/x.{n:05d}.wav": file.read_bytes() for n, file in enumerate(files)}
    members["genres/._hidden.wav"] = b"x"
    tar = write_tar(tmp_path / "g.tar", members)
    clips = list(Source(tar, r"^genres/(\w+)/", r"\.0000(\d)").read().clips)
    assert [(clip.class_name, clip.group) for clip in clips] == [
        ("rock" if n % 2 else "jazz", str(n)) for n in range(8)
    ]
    write_tar(
        tar, {"a.m4x": b"x", "a.cls": b"1", "b.wav": files[0].read_bytes(), "b.cls": b"0", "b.json": b'{"audio": "x"}'}
    )
    with pytest.warns(DatasetNote, match="1 entries without audio that can be read are left out, such as .*a"):
        assert [clip.path.name for clip in read(tar).clips] == ["b.wav"]


def test_labels_in_other_encodings_are_named(files: list[Path], tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", {"a.wav": files[0].read_bytes(), "a.cls": "é".encode("latin-1")})
    with pytest.raises(DatasetError, match=r"a\.cls is not text in UTF-8"):
        read_rows(tar)


def test_an_index_serves_a_copy_of_the_files(tar: Path, tmp_path: Path) -> None:
    index, copy = tmp_path / "x.index.json", tmp_path / "copy"
    copy.mkdir()
    shutil.copy2(tar, copy)
    before = clips_of(read_rows(tar, index=index), {}).clips
    after = clips_of(read_rows(copy / tar.name, index=index), {}).clips
    assert [clip.path for clip in after] == [copy / clip.path.relative_to(tar.parent) for clip in before]


def test_a_file_of_no_split_is_named(files: list[Path], tmp_path: Path) -> None:
    for name in ("train", "test", "other"):
        write_parquet(tmp_path / "data" / f"{name}.parquet", files, {"label": list("abababab")})
    with pytest.raises(DatasetError, match=r"say train, valid or test, but not that of other.parquet"):
        read_rows(tmp_path / "data")
