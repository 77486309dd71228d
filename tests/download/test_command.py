"""The download command, against a server on the loopback interface."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from common.download.command import ARCHIVES, Archive, main
from common.files import exclusive
from common.flags import run
from tests.support.archives import contents, make_tar, make_zip, split_zip
from tests.support.loopback import Server, serving

Call = Callable[..., tuple[int, str, str]]
Patch = pytest.MonkeyPatch
WORDS = {"./yes/a.wav": b"yes", "./no/b.wav": b"no", "./testing_list.txt": b"x"}
SOUNDS = {"sounds/1.wav": b"1", "sounds/2.wav": b"2"}
PIECES = {f"sounds/{number}.wav": bytes([number]) * 500 for number in range(8)}
TABLE = """
words:
  title: Words
  licence: CC BY 4.0
  archives:
    - {file: words.tar.gz, part: v1, into: words_v1, url: URL/words.tar.gz, checksum: "SHA",
       size: 500, unpacked: 1000, holds: {"*/*.wav": 2, "*_list.txt": 1}}
    - {file: more.bin, part: more, url: URL/weights.bin, size: 7, optional: true}
sounds:
  title: Sounds
  licence: CC BY-NC 3.0
  archives:
    - {file: sounds.zip, url: URL/sounds.zip, checksum: "md5:0", may_change: true, unpacked: 1000,
       holds: {"sounds/*.wav": 2}}
pieces:
  title: Pieces
  licence: CC BY 4.0
  archives:
    - {file: p.zip, url: URL/p.zip, checksum: MD5p.zip, size: 9000, unpacked: 9000, holds: {"sounds/*.wav": 8},
       pieces: {p.z01: MD5p.z01, p.z02: MD5p.z02}}
weights:
  title: AudioSep
  licence: MIT
  archives: [{file: w.bin, url: "https://huggingface.co/someone/model/weights.bin"}]
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving() as server:
        words, sounds = make_tar(tmp_path / "tar", WORDS), make_zip(tmp_path / "zip", SOUNDS)
        server.files = {"words.tar.gz": words.read_bytes(), "sounds.zip": sounds.read_bytes()}
        pieces = split_zip(make_zip(tmp_path / "p.zip", PIECES), 3)
        server.files |= {path.name: path.read_bytes() for path in pieces}
        server.content = b"weights"
        yield server


@pytest.fixture
def call(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command as its script does; returns exit status, output and errors."""
    sha256 = hashlib.sha256(server.files["words.tar.gz"]).hexdigest()
    table = TABLE
    for name in ("p.zip", "p.z01", "p.z02"):
        table = table.replace(f"MD5{name}", f"md5:{hashlib.md5(server.files[name]).hexdigest()}")  # noqa: S324
    table, path = table.replace("SHA", f"sha256:{sha256}"), tmp_path / "archives.yaml"
    path.write_text(table.replace("URL", server.url.rpartition("/")[0]))

    def call(*arguments: str) -> tuple[int, str, str]:
        status = 0
        try:
            run(lambda: main([*arguments, "--root", str(tmp_path / "data")], path))
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        return status, *capsys.readouterr()

    return call


def test_an_archive_is_fetched_once(call: Call, server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "words_v1"
    _, output, _ = call("words")
    assert contents(folder) == {"yes/a.wav": b"yes", "no/b.wav": b"no", "testing_list.txt": b"x"}
    assert re.search(r"CC BY 4\.0.*/words\.tar\.gz.*are free in.*verified.*unpacked", output, re.S)
    assert len(list(folder.parent.iterdir())) == 2
    # Neither what is unpacked is fetched again, nor an archive that is in place.
    (folder / "yes" / "mine.wav").touch()
    assert "in place" in call("words")[1]
    for name in ("a.wav", "mine.wav"):
        (folder / "yes" / name).unlink()
    assert call("words")[0] == 0
    assert (folder / "yes" / "a.wav").read_bytes() == b"yes"
    (folder.parent / "words.tar.gz").unlink()
    assert call("words")[0] == 0
    assert len(server.ranges) == 1


def test_another_checksum_is_refused(call: Call, server: Server, tmp_path: Path) -> None:
    server.files["words.tar.gz"] += b"\0"
    status, _, error = call("words")
    assert status == 2
    assert re.search(r"words\.tar\.gz\.part: its sha256 is \w+, not \w+; delete it", error)
    (tmp_path / "data" / "words.tar.gz.part").rename(tmp_path / "data" / "words.tar.gz")
    assert "words.tar.gz: its sha256 is" in call("words")[2]
    assert len(server.ranges) == 1


def test_a_file_that_may_change_is_judged_by_its_content(call: Call, tmp_path: Path) -> None:
    status, _, error = call("sounds")
    assert status == 0
    assert "note: " in error and "its files are counted instead" in error
    (tmp_path / "data" / "sounds" / "1.wav").unlink()
    make_zip(tmp_path / "data" / "sounds.zip", {"sounds/2.wav": b"2"})
    _, _, error = call("sounds")
    assert "is incomplete" in error and "holds 1 instead of 2 sounds/*.wav" in error


def test_parts_are_chosen_by_name(call: Call, tmp_path: Path) -> None:
    _, output, _ = call("words", "--only", "more")
    assert f"its sha256 is {hashlib.sha256(b'weights').hexdigest()}; no checksum is" in output
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["more.bin"]
    assert "Words has no part v3" in call("words", "--only", "v3")[2]
    assert "birds is unknown; choose from words, sounds, pieces, weights" in call("birds")[2]


@pytest.mark.parametrize("arguments", ["--list", "", "words --dry-run", "words --list"])
def test_plans_and_lists_fetch_nothing(arguments: str, call: Call, tmp_path: Path) -> None:
    status, output, _ = call(*arguments.split())
    assert status == 0
    assert "words.tar.gz" in output
    assert ("/more.bin" in output) == ("--dry-run" not in arguments)  # it is optional
    assert not (tmp_path / "data").exists()


def test_weights_come_from_the_mirror(call: Call, server: Server, monkeypatch: Patch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url.rpartition("/")[0] + "/mirror/")
    assert call("weights")[0] == 0
    assert server.paths == ["/mirror/someone/model/weights.bin"]


def test_the_disk_is_checked_before(call: Call, tmp_path: Path, monkeypatch: Patch) -> None:
    leftover = tmp_path / "data" / "words_v1" / ".unpacking.words.tar.gz"
    leftover.mkdir(parents=True)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1400))
    assert "words.tar.gz needs about 1.50kB, and only 1.40kB are free in" in call("words")[2]
    assert not leftover.exists()  # what a killed run has unpacked makes room
    (tmp_path / "data" / "words.tar.gz.part").write_bytes(bytes(400))  # of 500
    assert call("words")[0] == 0


def test_a_zip_in_pieces_is_unpacked_where_it_lies(call: Call, server: Server, tmp_path: Path) -> None:
    status, output, _ = call("pieces")
    assert status == 0 and "p.z01, " in output.replace(f"{tmp_path}/data/", "")
    assert {name: content for name, content in contents(tmp_path / "data").items() if "/" in name} == PIECES
    assert [path.partition("?")[0] for path in server.paths] == ["/p.z01", "/p.z02", "/p.zip"]
    # Only the piece that is missing is fetched again.
    (tmp_path / "data" / "p.z02").unlink()
    (tmp_path / "data" / "sounds" / "1.wav").unlink()
    assert call("pieces")[0] == 0 and len(server.paths) == 4 and server.paths[-1].startswith("/p.z02")
    assert call("pieces")[0] == 0 and len(server.paths) == 4
    # Pieces that are thrown away are not fetched as long as what they held is there.
    for name in ("p.z01", "p.z02", "p.zip"):
        (tmp_path / "data" / name).unlink()
    assert "in place" in call("pieces", "--dry-run")[1] and call("pieces")[0] == 0 and len(server.paths) == 4


def test_a_damaged_piece_is_named(call: Call, server: Server, tmp_path: Path) -> None:
    server.files["p.z02"] = server.files["p.z02"][:-1] + b"?"
    status, _, error = call("pieces")
    assert status == 2 and "p.z02.part: its md5 is" in error


def test_two_runs_do_not_write_the_same_file(call: Call, tmp_path: Path) -> None:
    with exclusive(tmp_path / "data" / ".words.tar.gz.lock", "it"):
        status, _, error = call("words")
    assert status == 2 and "another run is writing" in error


def test_the_table_of_archives_is_complete() -> None:
    sources = yaml.safe_load(ARCHIVES.read_text(encoding="utf-8"))
    assert len(sources) == 8
    for source in sources.values():
        archives = [Archive(**row) for row in source["archives"]]
        assert len({archive.part for archive in archives}) == len(archives)
        for archive in archives:
            assert archive.url.startswith(("https://", "http://download.magenta"))
            checksum = archive.checksum or f"md5:{0:032}"
            assert re.fullmatch(r"md5:\w{32}|sha256:\w{64}", checksum)
            assert bool(archive.holds) == bool(archive.unpacked)
