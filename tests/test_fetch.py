"""Downloads from a server on the loopback interface that does what servers and proxies do."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from loopback import CONTENT, Server, serving

from common.download import fetch as fetch_module
from common.download.fetch import DownloadError, RetryPolicy, fetch

SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
HASTY = RetryPolicy(tries=3, backoff_s=0.01, longest_pause_s=2, stall_s=0.5)


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
    fetch(server.url, path, SHA256, retries=HASTY)
    assert path.read_bytes() == CONTENT
    assert leftovers(path) == []
    assert not server.script


def test_a_cut_download_goes_on_where_it_was(server: Server, path: Path) -> None:
    server.script = ["cut 1000000"]
    fetch(server.url, path, SHA256, retries=HASTY)
    assert server.ranges == [None, "bytes=1000000-"]


def test_the_next_run_goes_on_where_a_killed_one_was(server: Server, path: Path) -> None:
    server.script = ["cut 1000000", "503", "503", "503"]
    with pytest.raises(DownloadError, match=r"503 .*3 times in a row; 1,000,000 bytes are kept"):
        fetch(server.url, path, SHA256, retries=HASTY)
    assert not path.exists()
    fetch(server.url, path, SHA256, retries=HASTY)
    assert server.ranges[-1] == "bytes=1000000-"
    assert path.read_bytes() == CONTENT


def test_a_killed_run_that_had_it_all_asks_for_nothing(server: Server, path: Path) -> None:
    server.script = ["cut 1000000", "503", "503", "503"]
    with pytest.raises(DownloadError):
        fetch(server.url, path, SHA256, retries=HASTY)
    path.with_name("archive.tar.gz.part").write_bytes(CONTENT)
    asked = len(server.ranges)
    fetch(server.url, path, SHA256, retries=HASTY)
    assert path.read_bytes() == CONTENT
    assert len(server.ranges) == asked


@pytest.mark.parametrize("length", [3_000_000, 2_000_000, 900_000])
def test_a_file_that_changed_is_not_glued_to_the_old_half(length: int, server: Server, path: Path) -> None:
    server.script = ["cut 1000000", "503", "503", "503"]
    with pytest.raises(DownloadError):
        fetch(server.url, path, retries=HASTY)
    server.content, server.etag = CONTENT[::-1][:length], '"2"'
    fetch(server.url, path, retries=HASTY)
    assert path.read_bytes() == server.content


def test_glued_halves_are_fetched_anew_once(server: Server, path: Path) -> None:
    server.script = ["cut 1000000", "503", "503", "503"]
    with pytest.raises(DownloadError):
        fetch(server.url, path, SHA256, retries=HASTY)
    path.with_name("archive.tar.gz.part").write_bytes(b"x" * 1_000_000)
    fetch(server.url, path, SHA256, retries=HASTY)
    assert path.read_bytes() == CONTENT
    assert server.ranges[-2:] == ["bytes=1000000-", None]


def test_wrong_bytes_are_not_kept(server: Server, path: Path) -> None:
    server.script = ["wrong"]
    with pytest.raises(
        DownloadError, match=r"is not the file that was expected: its sha256 is \w+, not \w+ \(3,000,000"
    ):
        fetch(server.url, path, SHA256, retries=HASTY)
    assert leftovers(path) == []
    assert not path.exists()


@pytest.mark.parametrize("status", ["404 ", "403 ", "410 ", "401 "])
def test_a_refusal_is_final(status: str, server: Server, path: Path) -> None:
    server.script = [status]
    with pytest.raises(
        DownloadError, match=rf"{server.url}: the server responded with {status}.*the same command then continues"
    ):
        fetch(server.url, path, SHA256, retries=HASTY)
    assert len(server.ranges) == 1
    assert not path.exists()


def test_a_pause_that_is_asked_for_is_made(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(fetch_module, "time", SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic))
    server.script = ["429 1"]
    fetch(server.url, path, SHA256, retries=HASTY)
    assert pauses == [1]
    path.unlink()
    server.script = ["429 3600"]
    with pytest.raises(DownloadError, match=r"429 .*asks to wait 3600 s; run the same command again after that"):
        fetch(server.url, path, SHA256, retries=HASTY)


def test_a_server_that_never_gets_further_is_given_up(server: Server, path: Path) -> None:
    # Without ranges, every attempt brings the same bytes once more.
    server.script = ["stuck 1000"] * 9
    with pytest.raises(DownloadError, match="the connection broke, 3 times in a row; 1,000 bytes are kept"):
        fetch(server.url, path, SHA256, retries=HASTY)
    assert len(server.ranges) == 4


def test_nobody_there(server: Server, path: Path) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match="refuses the connection, 3 times in a row"):
        fetch(server.url, path, SHA256, retries=HASTY)


def test_a_full_disk_is_noticed_before(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 2_999_999

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(DownloadError, match=r"has 3,000,000 bytes to come, .* has room for 2,999,999"):
        fetch(server.url, path, SHA256, retries=HASTY)


@pytest.mark.parametrize("deed", ["206-bare", "no-total"])
def test_a_part_that_cannot_be_placed_is_not_taken_for_the_whole(deed: str, server: Server, path: Path) -> None:
    server.script = ["cut 1000000", deed, "well"]
    fetch(server.url, path, retries=HASTY)
    assert path.read_bytes() == CONTENT


def test_without_a_length_the_known_size_tells_a_cut(server: Server, path: Path) -> None:
    server.script = ["no-length"]
    fetch(server.url, path, size=len(CONTENT), retries=HASTY)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("bound", [{"size": 1_000_000}, {"most": 1_000_000}], ids=["the size is known", "about"])
def test_an_endless_answer_without_a_length_is_cut_off(bound: dict[str, int], server: Server, path: Path) -> None:
    server.script = ["whole-without-length"]
    with pytest.raises(DownloadError, match="sends more than the 1,000,000 bytes that it may have"):
        fetch(server.url, path, retries=HASTY, **bound)
    assert not path.exists()
    assert leftovers(path) == []  # bytes of it must not count as the file


def test_a_connection_that_trickles_is_given_up(server: Server, path: Path) -> None:
    """Although it brings something every time, and never falls silent."""
    server.script = ["trickle"] * 4
    with pytest.raises(DownloadError, match=r"bytes per second arrive, 3 times in a row; .* bytes are kept"):
        fetch(server.url, path, SHA256, retries=replace(HASTY, stall_s=0.1))
    fetch(server.url, path, SHA256, retries=replace(HASTY, stall_s=0.1))  # the last of the script, then all goes well
    assert path.read_bytes() == CONTENT


def test_a_header_that_trickles_is_given_up(server: Server, path: Path) -> None:
    server.script = ["trickle-chunk"] * 3
    started = time.monotonic()
    with pytest.raises(DownloadError, match="the server's response has stalled, 3 times in a row"):
        fetch(server.url, path, SHA256, retries=replace(HASTY, stall_s=0.05))
    assert time.monotonic() - started < 2  # it does not wait for the connection to be closed


def test_another_size_is_refused_before_anything_is_lost(server: Server, path: Path) -> None:
    server.script = ["cut 1000000", "503", "503", "503"]
    with pytest.raises(DownloadError):
        fetch(server.url, path, size=len(CONTENT), retries=HASTY)
    server.content, server.etag = CONTENT[:2_000_000], '"2"'
    with pytest.raises(DownloadError, match="has 2,000,000 bytes, not the 3,000,000 of the file that is wanted"):
        fetch(server.url, path, size=len(CONTENT), retries=HASTY)
    assert path.with_name("archive.tar.gz.part").stat().st_size == 1_000_000


def test_a_change_that_only_the_date_tells(server: Server, path: Path) -> None:
    server.etag, server.modified = "", "Fri, 20 Nov 2026 10:00:00 GMT"
    server.script = ["cut 1000000", "503", "503", "503"]
    with pytest.raises(DownloadError):
        fetch(server.url, path, retries=HASTY)
    # A server that heeds no If-Range sends the rest of the new file.
    server.content, server.modified = CONTENT[::-1], "Fri, 20 Nov 2026 11:00:00 GMT"
    server.script = ["heedless"]
    fetch(server.url, path, retries=HASTY)
    assert path.read_bytes() == CONTENT[::-1]


def test_a_web_page_is_no_file_and_costs_nothing(server: Server, path: Path) -> None:
    server.script = ["cut 1000000", "page"]
    with pytest.raises(DownloadError, match="the server sent a web page instead of the file"):
        fetch(server.url, path, retries=HASTY)
    fetch(server.url, path, retries=HASTY)
    assert server.ranges[-1] == "bytes=1000000-"
    assert path.read_bytes() == CONTENT


def test_small_steps_are_steps(server: Server, path: Path) -> None:
    server.content = CONTENT[:400_000]
    server.script = ["stall 100000"] * 3
    fetch(server.url, path, retries=HASTY)
    assert path.read_bytes() == server.content
    assert int(server.ranges[-1].removeprefix("bytes=").removesuffix("-")) >= 3 * 65_536


@pytest.mark.parametrize("note", ["", "{", "[[[", '{"url": 5}', '{"validator": ["x"]}', "\x00", "null"])
def test_a_note_that_is_not_ours_starts_over(note: str, server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.with_name("archive.tar.gz.part").write_bytes(b"old")
    path.with_name("archive.tar.gz.part.json").write_text(note.replace("5}", f'"{server.url}"}}'))
    fetch(server.url, path, retries=HASTY)
    assert path.read_bytes() == CONTENT
    assert leftovers(path) == []


def test_the_part_of_another_address_is_not_continued(server: Server, path: Path) -> None:
    server.script = ["cut 1000000", "503", "503", "503"]
    with pytest.raises(DownloadError):
        fetch(server.url, path, retries=HASTY)
    fetch(server.url + "?other", path, retries=HASTY)
    assert server.ranges[-1] is None
    assert path.read_bytes() == CONTENT


def test_an_answer_that_makes_no_sense(server: Server, path: Path) -> None:
    server.script = ["nonsense"]
    with pytest.raises(DownloadError, match="the server's response is invalid"):
        fetch(server.url, path, retries=HASTY)


def test_a_proxy_is_used(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    fetch("http://archives.invalid/archive.tar.gz", path, SHA256, retries=HASTY)
    assert path.read_bytes() == CONTENT
