"""Downloads from a server on the loopback interface that does what servers and proxies do."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import CONTENT, Server, serving

from common.fetch import DownloadError, Patience, fetch
from common.files import OutputError, exclusive

SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
HASTY = Patience(tries=3, backoff_s=0.01, longest_pause_s=2, stall_s=0.5)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "archive.tar.gz"


def leftovers(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir() if entry != path)


@pytest.mark.parametrize(
    "script",
    [
        [],
        ["cut", "well"],
        ["cut", "cut", "cut", "cut", "cut", "cut"],  # more often than the tries, but each brings something
        ["stall", "well"],
        ["chunked", "well"],
        ["503", "429 0", "well"],
        ["cut", "503", "cut", "502"],
        ["cut", "no-ranges"],
        ["cut", "range-as-200"],
        ["cut", "earlier"],
        ["cut 0", "well"],
    ],
    ids=" ".join,
)
def test_what_is_cut_short_is_completed(script: list[str], server: Server, path: Path) -> None:
    server.script = list(script)
    fetch(server.url, path, SHA256, HASTY)
    assert path.read_bytes() == CONTENT
    assert leftovers(path) == []
    assert not server.script


def test_a_cut_download_goes_on_where_it_was(server: Server, path: Path) -> None:
    server.script = ["cut 1000000"]
    fetch(server.url, path, SHA256, HASTY)
    assert server.ranges == [None, "bytes=1000000-"]


def test_the_next_run_goes_on_where_a_killed_one_was(server: Server, path: Path) -> None:
    server.script = ["cut 1000000", "503", "503", "503"]
    with pytest.raises(DownloadError, match=r"503 .*3 times in a row; 1,000,000 bytes are kept"):
        fetch(server.url, path, SHA256, HASTY)
    assert not path.exists()
    fetch(server.url, path, SHA256, HASTY)
    assert server.ranges[-1] == "bytes=1000000-"
    assert path.read_bytes() == CONTENT


def test_a_killed_run_that_had_it_all_asks_for_nothing(server: Server, path: Path) -> None:
    server.script = ["cut 1000000", "503", "503", "503"]
    with pytest.raises(DownloadError):
        fetch(server.url, path, SHA256, HASTY)
    path.with_name("archive.tar.gz.part").write_bytes(CONTENT)
    asked = len(server.ranges)
    fetch(server.url, path, SHA256, HASTY)
    assert path.read_bytes() == CONTENT
    assert len(server.ranges) == asked


@pytest.mark.parametrize("length", [3_000_000, 2_000_000, 900_000])
def test_a_file_that_changed_is_not_glued_to_the_old_half(length: int, server: Server, path: Path) -> None:
    server.script = ["cut 1000000", "503", "503", "503"]
    with pytest.raises(DownloadError):
        fetch(server.url, path, None, HASTY)
    server.content, server.etag = CONTENT[::-1][:length], '"2"'
    fetch(server.url, path, None, HASTY)
    assert path.read_bytes() == server.content


def test_glued_halves_are_fetched_anew_once(server: Server, path: Path) -> None:
    server.script = ["cut 1000000", "503", "503", "503"]
    with pytest.raises(DownloadError):
        fetch(server.url, path, SHA256, HASTY)
    path.with_name("archive.tar.gz.part").write_bytes(b"x" * 1_000_000)
    fetch(server.url, path, SHA256, HASTY)
    assert path.read_bytes() == CONTENT
    assert server.ranges[-2:] == ["bytes=1000000-", None]


def test_wrong_bytes_are_not_kept(server: Server, path: Path) -> None:
    server.script = ["wrong"]
    with pytest.raises(
        DownloadError, match=r"is not the file that was expected: its sha256 is \w+, not \w+ \(3,000,000"
    ):
        fetch(server.url, path, SHA256, HASTY)
    assert leftovers(path) == []
    assert not path.exists()


@pytest.mark.parametrize("status", ["404 ", "403 ", "410 ", "401 "])
def test_a_refusal_is_final(status: str, server: Server, path: Path) -> None:
    server.script = [status]
    with pytest.raises(
        DownloadError, match=rf"{server.url}: the server answers {status}.*the same command then goes on"
    ):
        fetch(server.url, path, SHA256, HASTY)
    assert len(server.ranges) == 1
    assert not path.exists()


def test_a_pause_that_is_asked_for_is_made(server: Server, path: Path) -> None:
    server.script = ["429 1"]
    started = time.monotonic()
    fetch(server.url, path, SHA256, HASTY)
    assert time.monotonic() - started >= 1
    path.unlink()
    server.script = ["429 3600"]
    with pytest.raises(DownloadError, match=r"429 .*asks to wait 3600 s; run the same command again after that"):
        fetch(server.url, path, SHA256, HASTY)


def test_a_server_that_never_gets_further_is_given_up(server: Server, path: Path) -> None:
    # Without ranges, every attempt brings the same bytes once more.
    server.script = ["stuck 1000"] * 9
    with pytest.raises(DownloadError, match="the connection broke, 3 times in a row; 1,000 bytes are kept"):
        fetch(server.url, path, SHA256, HASTY)
    assert len(server.ranges) == 4


def test_nobody_there(server: Server, path: Path) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match="refuses the connection, 3 times in a row"):
        fetch(server.url, path, SHA256, HASTY)


def test_a_full_disk_is_noticed_before(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 2_999_999

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(DownloadError, match=r"has 3,000,000 bytes to come, .* has room for 2,999,999"):
        fetch(server.url, path, SHA256, HASTY)


def test_two_runs_do_not_write_one_file(server: Server, path: Path) -> None:
    with exclusive(path.with_name(f".{path.name}.lock"), "it"), pytest.raises(OutputError, match="another run"):
        fetch(server.url, path, SHA256, HASTY)


def test_a_proxy_is_used(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    fetch("http://archives.invalid/archive.tar.gz", path, SHA256, HASTY)
    assert path.read_bytes() == CONTENT
