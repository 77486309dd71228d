"""Download a file over HTTP: resumed after an interruption, and retried."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import requests
from requests.exceptions import ChunkedEncodingError, RequestException, SSLError

from common.errors import UserError
from common.progress import progress_bar

TRANSIENT = (requests.ConnectionError, requests.Timeout, ChunkedEncodingError)
BUSY = (408, 425, 429, 500, 502, 503, 504)  # statuses after which a retry may succeed
OFFLINE = re.compile("NameResolutionError|Network is unreachable")
PAUSES_S = (1, 5, 15, 30, 60)  # between attempts that bring nothing
TIMEOUT_S = 60  # of silence
BLOCK = 1 << 14  # bytes; an incomplete block is lost when a connection breaks


class DownloadError(UserError):
    """A file cannot be downloaded, or is not the expected file."""


def fetch(url: str, part: Path) -> None:
    """Download a file to `part`, after the bytes that an earlier run has left there. DownloadError if the server refuses, or
    fails too often."""
    start = furthest = _size(part)
    pauses = iter(PAUSES_S)
    while True:
        try:
            return _attempt(url, part)
        except RequestException as error:
            if _size(part) > furthest:
                furthest, pauses = _size(part), iter(PAUSES_S)
            cause = _cause(error)
            # Without a network, only a started download waits.
            is_offline = furthest == start and OFFLINE.search(str(error))
            is_transient = isinstance(error, TRANSIENT) and not isinstance(error, SSLError)
            pause_s = next(pauses, None) if is_transient and not is_offline else None
            if pause_s is None:
                fix = f"the same command continues after {_size(part):,} bytes. Or get the file with a browser, and put it as"
                raise DownloadError(f"{url}: {cause}; {fix} {part.with_suffix('')}") from error
            print(f"{part.stem}: {cause}; trying again in {pause_s} s", file=sys.stderr)
            time.sleep(pause_s)
        except OSError as error:
            raise DownloadError(f"{part} cannot be written ({error.strerror}); the same command continues") from error


def _attempt(url: str, part: Path) -> None:
    """A request: continue after the bytes of `part`, or start over."""
    headers = {"Accept-Encoding": "identity"}
    if have := _size(part):
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        start, size = _span(response)
        if start and start == size == have:
            return  # an earlier run had received all
        if start not in (0, have):
            part.unlink()
            raise requests.ConnectionError("the server's file has changed", response=response)
        with (
            part.open("ab" if start else "wb") as file,  # first: an error must not follow a bar on its line
            progress_bar(total=size, initial=start, desc=part.stem, unit="B", unit_scale=True) as bar,
        ):
            for block in response.iter_content(BLOCK):
                file.write(block)
                bar.update(len(block))
            os.fsync(file.fileno())  # no crash leaves an incomplete file under the final name
        if size and _size(part) != size:
            raise requests.ConnectionError("the server sent only a part of the file", response=response)


def _span(response: requests.Response) -> tuple[int, int | None]:
    """Where in the file the response begins (-1: unknown), and the file's size, if known."""
    status = response.status_code
    if status in (206, 416):
        content_range = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", content_range)
        return (int(match[1] or match[2]), int(match[2])) if match else (-1, None)
    if status != 200:
        kind = requests.ConnectionError if status in BUSY else RequestException
        raise kind(f"the server responded with {status} ({response.reason})", response=response)
    if "text/html" in response.headers.get("Content-Type", ""):
        raise RequestException("the server sent a web page instead of the file", response=response)
    length = response.headers.get("Content-Length")
    return 0, int(length) if length else None


def _cause(error: RequestException) -> str:
    """What failed, in plain words."""
    if error.response is not None:  # raised above
        return str(error)
    if isinstance(error, SSLError):
        return "the server's certificate cannot be verified"
    if OFFLINE.search(str(error)):
        return "the server cannot be reached (is there a network?)"
    return "the connection broke or was refused"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
