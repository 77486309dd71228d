"""The download command, against a server on the loopback interface: plan, archives there, checks, errors in one line."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from loopback import Server, serving

from common.download.command import ARCHIVES, Archive, main
from common.entry import run
from common.files import exclusive

Capture = pytest.CaptureFixture[str]
WORDS = {"./yes/a.wav": b"yes", "./no/b.wav": b"no", "./testing_list.txt": b"", "./validation_list.txt": b""}
SOUNDS = {"sounds-master/audio/1.wav": b"1", "sounds-master/audio/2.wav": b"2", "sounds-master/list.csv": b"x"}


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.files = {"words.tar.gz": tar_of(WORDS), "sounds.zip": zip_of(SOUNDS), "weights.bin": b"weights"}
        yield server


@pytest.fixture
def table(server: Server, tmp_path: Path) -> Path:
    """archives.yaml of three sources: words without a folder of their own, sounds whose hash may change, weights."""
    base = server.url.rpartition("/")[0]
    digest = {name: hashlib.sha256(content).hexdigest() for name, content in server.files.items()}
    sources = {
        "words": {
            "title": "Words",
            "licence": "CC BY 4.0",
            "archives": [
                {
                    "file": "words.tar.gz",
                    "part": "v1",
                    "into": "words_v1",
                    "url": f"{base}/words.tar.gz",
                    "size": len(server.files["words.tar.gz"]),
                    "checksum": f"sha256:{digest['words.tar.gz']}",
                    "unpacked": 1000,
                    "holds": {"[a-z]*/*.wav": 2, "*_list.txt": 2},
                },
                {"file": "more.bin", "part": "more", "url": f"{base}/weights.bin", "about": 7, "optional": True},
            ],
        },
        "sounds": {
            "title": "Sounds",
            "licence": "CC BY-NC 3.0",
            "archives": [
                {
                    "file": "sounds.zip",
                    "url": f"{base}/sounds.zip",
                    "checksum": "md5:00000000000000000000000000000000",
                    "may_change": True,
                    "unpacked": 1000,
                    "holds": {"sounds-master/audio/*.wav": 2, "sounds-master/list.csv": 1},
                }
            ],
        },
        "weights": {
            "title": "AudioSep",
            "licence": "MIT",
            "archives": [
                {
                    "file": "weights.bin",
                    "url": "https://huggingface.co/someone/model/resolve/0123/weights.bin",
                    "checksum": f"sha256:{digest['weights.bin']}",
                }
            ],
        },
    }
    path = tmp_path / "archives.yaml"
    path.write_text(yaml.safe_dump(sources, sort_keys=False))
    return path


def call(table: Path, root: Path, *arguments: str) -> int:
    """Run the command as its script does; its exit status."""
    try:
        run(lambda: main([*arguments, "--root", str(root)], table))
    except SystemExit as exit_:
        return exit_.code
    return 0


def test_an_archive_gets_its_folder(table: Path, server: Server, tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "data"
    assert call(table, root, "words") == 0
    assert sorted(path.name for path in (root / "words_v1").iterdir()) == [
        "no",
        "testing_list.txt",
        "validation_list.txt",
        "yes",
    ]
    printed = capsys.readouterr().out
    for shown in (server.url.rpartition("/")[0] + "/words.tar.gz", "CC BY 4.0", "free in", "4 files ->"):
        assert shown in printed
    assert len(server.ranges) == 1
    # What is unpacked is not fetched again, nor is an archive that is there.
    assert call(table, root, "words") == 0
    assert "unpacked already" in capsys.readouterr().out
    (root / "words_v1" / "yes" / "a.wav").unlink()
    assert call(table, root, "words") == 0
    assert (root / "words_v1" / "yes" / "a.wav").read_bytes() == b"yes"
    assert len(server.ranges) == 1


def test_an_archive_that_was_there_is_checked(table: Path, server: Server, tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "words.tar.gz").write_bytes(server.files["words.tar.gz"][:-20])
    assert call(table, root, "words") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "words.tar.gz already exists, but its sha256 is" in error
    assert "move it away or delete it" in error
    assert (root / "words.tar.gz").exists()
    assert not server.ranges


def test_a_changed_hash_is_a_note_and_the_content_decides(
    table: Path, server: Server, tmp_path: Path, capsys: Capture
) -> None:
    assert call(table, tmp_path / "data", "sounds") == 0
    printed = capsys.readouterr()
    assert "note: " in printed.err
    assert "so the unpacked files are checked instead" in printed.err
    server.files["sounds.zip"] = zip_of(dict(list(SOUNDS.items())[1:]))
    assert call(table, tmp_path / "elsewhere", "sounds") == 2
    assert "now holds 1 instead of 2 sounds-master/audio/*.wav" in capsys.readouterr().err


def test_only_the_parts_that_are_meant(table: Path, tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "data"
    assert call(table, root, "words", "--only", "more") == 0
    assert [path.name for path in root.iterdir()] == ["more.bin"]
    assert f"no checksum is published for it; its sha256 is {hashlib.sha256(b'weights').hexdigest()}" in (
        capsys.readouterr().out
    )
    assert call(table, root, "words", "--only", "v3") == 2
    assert "Words has no part v3; its parts are v1, more" in capsys.readouterr().err
    assert call(table, root, "birds") == 2
    assert "birds is unknown; choose from words, sounds, weights" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--list"], [], ["words", "--dry-run"], ["words", "--list"]])
def test_a_look_fetches_nothing(
    arguments: list[str], table: Path, server: Server, tmp_path: Path, capsys: Capture
) -> None:
    assert call(table, tmp_path / "data", *arguments) == 0
    printed = capsys.readouterr().out
    assert "words.tar.gz" in printed
    assert ("more.bin" in printed) == ("--dry-run" not in arguments)  # what is optional is listed, not planned
    assert not server.ranges
    assert not (tmp_path / "data").exists()


def test_weights_come_from_the_mirror_that_is_named(
    table: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url.rpartition("/")[0] + "/mirror/")
    assert call(table, tmp_path / "weights", "weights") == 0
    assert (tmp_path / "weights" / "weights.bin").read_bytes() == b"weights"
    assert server.paths == ["/mirror/someone/model/resolve/0123/weights.bin"]


def test_a_full_disk_is_said_before(
    table: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    class Usage:
        free = 1100

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    assert call(table, tmp_path / "data", "words") == 2
    assert "words.tar.gz needs about 1 kB, and only 1 kB are free in" in capsys.readouterr().err
    assert not server.ranges


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../out.wav": b""}, "'../out.wav' leads out of the folder"),
        ({"yes/a.wav": bytes(101_000_000)}, "holds more than the"),
    ],
    ids=["out", "bomb"],
)
def test_a_hostile_archive(
    files: dict[str, bytes], message: str, table: Path, server: Server, tmp_path: Path, capsys: Capture
) -> None:
    sources = yaml.safe_load(table.read_text())
    del sources["words"]["archives"][0]["checksum"], sources["words"]["archives"][0]["size"]
    table.write_text(yaml.safe_dump(sources))
    server.files["words.tar.gz"] = tar_of(files)
    assert call(table, tmp_path / "data", "words") == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "data").rglob("*")} == {"words.tar.gz", "words_v1"}


def test_two_runs_do_not_write_one_file(table: Path, server: Server, tmp_path: Path, capsys: Capture) -> None:
    with exclusive(tmp_path / "data" / ".words.tar.gz.lock", "it"):
        assert call(table, tmp_path / "data", "words") == 2
    assert "another run is writing" in capsys.readouterr().err
    assert not server.ranges


def test_one_more_file_is_no_reason_to_fetch_again(
    table: Path, server: Server, tmp_path: Path, capsys: Capture
) -> None:
    root = tmp_path / "data"
    assert call(table, root, "words") == 0
    (root / "words.tar.gz").unlink()
    for name in ("._a.wav", "mine.wav"):
        (root / "words_v1" / "yes" / name).write_bytes(b"")
    assert call(table, root, "words") == 0
    assert len(server.ranges) == 1


def test_what_a_killed_run_unpacked_makes_room(table: Path, server: Server, tmp_path: Path) -> None:
    left = tmp_path / "data" / "words_v1" / ".unpacking.words.tar.gz"
    left.mkdir(parents=True)
    assert call(table, tmp_path / "data", "words") == 0
    assert not left.exists()


def test_a_root_that_nobody_has(table: Path, capsys: Capture) -> None:
    assert call(table, Path("~nobody-of-this-name/data"), "words") == 2
    assert "--root ~nobody-of-this-name/data: " in capsys.readouterr().err


def test_an_interrupt_says_how_to_continue(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("common.download.command.get", interrupted)
    assert call(table, tmp_path / "data", "words") == 130
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == "interrupted; what was received is kept, and the same command continues"
    )


def test_the_table_of_archives_is_whole() -> None:
    sources = yaml.safe_load(ARCHIVES.read_text(encoding="utf-8"))
    assert list(sources) == [
        "esc50",
        "icbhi",
        "urbansound8k",
        "nsynth",
        "librispeech",
        "speech_commands",
        "weights",
    ]
    for source in sources.values():
        assert source["title"]
        assert source["licence"]
        archives = [Archive(**row) for row in source["archives"]]
        assert len({archive.part for archive in archives}) == len(archives)
        for archive in archives:
            assert archive.url.startswith(("https://", "http://download.magenta"))
            lengths = {"md5": 32, "sha256": 64}
            if archive.checksum:
                algorithm, _, digest = archive.checksum.partition(":")
                assert len(digest) == lengths[algorithm]
            assert bool(archive.holds) == bool(archive.unpacked)
