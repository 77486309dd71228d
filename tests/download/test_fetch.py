"""Downloads from a server on the loopback interface: resumed and retried."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import requests

from common.download import fetch as fetch_module
from common.download.fetch import DownloadError, fetch
from tests.support.loopback import CONTENT, Server, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetch_module, "PAUSES_S", (0, 0))
    monkeypatch.setattr(fetch_module, "TIMEOUT_S", 0.5)
    with serving() as server:
        yield server


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "archive.tar.gz.part"


@pytest.fixture
def interrupted(server: Server, part: Path) -> Path:
    """A part of a million bytes, as a killed run leaves it."""
    server.script = ["cut 1048576", "503", "503", "503"]
    with pytest.raises(DownloadError, match=r"503 .*; the same command continues after 1,048,576"):
        fetch(server.url, part)
    return part


BROKEN_OFTEN = ["cut 20000"] * 5  # more often than retries are allowed, but every attempt brings something
BUSY_OFTEN = ["cut 50000", "503", "cut 50000", "502", "cut 50000", "429"]
RANGE_IN_PARTS = ["cut 1048576", "range 1000"]


@pytest.mark.parametrize("script", [BROKEN_OFTEN, BUSY_OFTEN, RANGE_IN_PARTS])
def test_a_broken_download_is_completed(script: list[str], server: Server, part: Path) -> None:
    server.script = list(script)
    fetch(server.url, part)
    assert part.read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server: Server, part: Path) -> None:
    server.script, server.has_ranges = ["cut 1048576"], False
    fetch(server.url, part)
    assert part.read_bytes() == CONTENT


def test_the_next_run_continues_a_killed_one(server: Server, interrupted: Path) -> None:
    fetch(server.url, interrupted)
    assert server.ranges[-1] == "bytes=1048576-"
    assert interrupted.read_bytes() == CONTENT


def test_what_is_complete_is_not_sent_again(server: Server, part: Path) -> None:
    part.write_bytes(CONTENT)
    fetch(server.url, part)
    assert server.ranges == ["bytes=3000000-"]  # answered without content


def test_a_file_that_has_become_shorter_than_what_was_received_starts_over(server: Server, interrupted: Path) -> None:
    server.content = CONTENT[::-1][:9]
    fetch(server.url, interrupted)
    assert interrupted.read_bytes() == server.content


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_server_that_refuses_is_not_asked_again(status: int, server: Server, part: Path) -> None:
    server.script = [str(status)]
    advice = "Or get the file with a browser, and put it as .*/archive.tar.gz$"
    with pytest.raises(DownloadError, match=rf"the server responded with {status} .*{advice}"):
        fetch(server.url, part)
    assert len(server.ranges) == 1


def test_a_web_page_is_refused_and_costs_nothing(server: Server, interrupted: Path) -> None:
    server.headers, server.has_ranges = {"Content-Type": "text/html; charset=utf-8"}, False
    with pytest.raises(DownloadError, match="the server sent a web page instead of the file"):
        fetch(server.url, interrupted)
    assert interrupted.read_bytes() == CONTENT[: 1 << 20]


def test_a_file_of_unknown_length_is_taken_to_its_end(server: Server, part: Path) -> None:
    server.has_length = False
    fetch(server.url, part)
    assert part.read_bytes() == CONTENT


def test_retries_end_after_pauses(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(DownloadError, match="the connection broke or was refused"):
        fetch("http://127.0.0.1:1/archive.tar.gz", part)
    assert pauses == [1, 5, 15, 30, 60]


def test_a_silent_server_is_left(server: Server, part: Path) -> None:
    server.script = ["silence"] * 3
    with pytest.raises(DownloadError, match="the connection broke or was refused"):
        fetch(server.url, part)


def test_offline_is_said_at_once(part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DownloadError, match=r"server cannot be reached \(is there a network\?\)"):
        fetch("http://nowhere.invalid/archive.tar.gz", part)
    assert capsys.readouterr().err == ""


def test_a_certificate_that_fails_is_final(part: Path) -> None:
    failed = mock.Mock(side_effect=requests.exceptions.SSLError("CERTIFICATE_VERIFY_FAILED"))
    advice = "certificate cannot be verified; .* with a browser"
    with mock.patch("requests.get", failed), pytest.raises(DownloadError, match=advice):
        fetch("https://127.0.0.1/archive.tar.gz", part)
