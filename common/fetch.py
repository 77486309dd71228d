"""A URL -> a file: resumed where it was cut, tried again with patience, verified, never half under its final name.

The HTTP itself is `requests`' (proxies, redirects, certificates). The loop around it is here because the libraries
for data sets start a broken download of gigabytes from its beginning (pooch), or serve one host (huggingface_hub).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.files import exclusive, write_atomically
from common.progress import progress_bar

if TYPE_CHECKING:
    import requests

BLOCK = 1 << 20  # bytes
BUSY = (408, 425, 429, 500, 502, 503, 504)  # statuses that another try may cure


class DownloadError(ValueError):
    """A file cannot be had; the message is one line: the URL or file, the cause, and what to do."""


@dataclass(frozen=True)
class Patience:
    """How long to hold on to a server.

    Attributes:
        tries: attempts in a row that bring nothing new before it is given up.
        backoff_s: pause after the first of them; each next one is twice as long.
        longest_pause_s: a server that asks for a longer one is given up.
        stall_s: silence after which a connection counts as broken.
    """

    tries: int = 6
    backoff_s: float = 1.0
    longest_pause_s: float = 120.0
    stall_s: float = 60.0


class _Broken(Exception):
    """An attempt failed in a way that another one may cure; `pause_s` is how long the server asks to wait."""

    def __init__(self, cause: str, pause_s: float | None = None) -> None:
        super().__init__(cause)
        self.pause_s = pause_s


def fetch(url: str, path: Path, checksum: str | None = None, patience: Patience | None = None) -> None:
    """Download `url` to `path`; what an earlier attempt left in ``<path>.part`` is continued.

    Args:
        checksum: ``"sha256:<hex>"`` or ``"md5:<hex>"`` of the whole file; None: what the server sent is believed
            once it is complete.

    Raises:
        DownloadError: the server refuses or was too often silent, or the file is another than expected. What came
            is kept for the next attempt, except where it is wrong.
        OutputError: another process is downloading it.
    """
    part = path.with_name(path.name + ".part")
    note = part.with_name(part.name + ".json")
    with exclusive(path.with_name(f".{path.name}.lock"), str(path)):
        resumed = _download(url, part, note, patience or Patience())
        if checksum and (difference := differs(part, checksum)) and resumed:
            # Two files may have been glued together; a whole one decides.
            print(f"{path.name}: {difference}; starting over", file=sys.stderr)
            _discard(part, note)
            _download(url, part, note, patience or Patience())
            difference = differs(part, checksum)
        if checksum and difference:
            _discard(part, note)
            raise DownloadError(
                f"{url} is not the file that was expected: {difference}. A proxy or a sign-in page may stand "
                "between; nothing was kept, try again later or from elsewhere"
            )
        part.replace(path)
        note.unlink(missing_ok=True)


def differs(path: Path, checksum: str) -> str:
    """How a file's checksum differs from ``"<algorithm>:<hex>"``, in words; empty where it does not."""
    algorithm, _, wanted = checksum.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    size = path.stat().st_size
    bar = progress_bar(total=size, desc=f"checking {path.name}", unit="B", unit_scale=True, leave=False)
    with path.open("rb") as file, bar:
        while block := file.read(4 * BLOCK):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() == wanted:
        return ""
    return f"its {algorithm} is {digest.hexdigest()}, not {wanted} ({size:,} bytes)"


def _download(url: str, part: Path, note: Path, patience: Patience) -> bool:
    """Fill `part` with the whole of `url`; returns whether it was put together from several attempts."""
    import requests

    part.parent.mkdir(parents=True, exist_ok=True)
    furthest, failures, attempts = _size(part), 0, 1 if _size(part) else 0
    with requests.Session() as session:
        # Compressed answers know no ranges, and would be counted in other bytes than the file's.
        session.headers["Accept-Encoding"] = "identity"
        while True:
            attempts += 1
            try:
                _attempt(session, url, part, note, patience)
            except _Broken as error:
                failures = 0 if _size(part) > furthest else failures + 1
                furthest = max(furthest, _size(part))
                if failures >= patience.tries:
                    raise DownloadError(
                        f"{url}: {error}, {failures} times in a row; {_size(part):,} bytes are kept, the same command "
                        "goes on from there"
                    ) from error
                pause_s = patience.backoff_s * 2 ** max(failures - 1, 0) if error.pause_s is None else error.pause_s
                if pause_s > patience.longest_pause_s:
                    raise DownloadError(
                        f"{url}: {error}, and asks to wait {pause_s:.0f} s; run the same command again after that"
                    ) from error
                print(f"{part.stem}: {error}; trying again in {pause_s:g} s", file=sys.stderr)
                time.sleep(pause_s)
            else:
                return attempts > 1


def _attempt(session: requests.Session, url: str, part: Path, note: Path, patience: Patience) -> None:
    """One request: go on after the bytes that are there, or start over where the server cannot."""
    import requests
    import urllib3

    have, before = _size(part), _read_note(note)
    headers = {}
    if have and before.get("url") == url:
        if before.get("total") == have:
            return
        headers["Range"] = f"bytes={have}-"
        if before.get("validator"):
            headers["If-Range"] = before["validator"]  # a changed file comes whole instead
    try:
        with session.get(
            url, headers=headers, stream=True, timeout=(min(30, patience.stall_s), patience.stall_s)
        ) as got:
            if got.status_code == 416 and "Range" in headers:
                _discard(part, note)
                raise _Broken("the server's file is no longer than what is here already, so it is another one")
            _refuse(got, url)
            start, total = _range(got)
            etag = got.headers.get("ETag", "")
            if start > have or (start and etag and before.get("etag") and etag != before["etag"]):
                _discard(part, note)
                raise _Broken("the server's file has changed")
            validator = etag if etag and not etag.startswith("W/") else got.headers.get("Last-Modified", "")
            free = shutil.disk_usage(part.parent).free
            if total is not None and total - start > free:
                raise DownloadError(f"{url} has {total - start:,} bytes to come, {part.parent} has room for {free:,}")
            facts = {"url": url, "etag": etag, "validator": validator, "total": total}
            write_atomically(note, json.dumps(facts).encode())
            bar = progress_bar(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True, unit_divisor=1000)
            with part.open("r+b" if start else "wb") as file, bar:
                file.seek(start)
                file.truncate()
                for block in got.raw.stream(BLOCK, decode_content=False):
                    file.write(block)
                    bar.update(len(block))
    except requests.exceptions.SSLError as error:
        raise DownloadError(
            f"{url}: the server's certificate cannot be verified; get the file in another way (a browser on another "
            f"network, say), put it as {part.with_suffix('')}, and run the same command again"
        ) from error
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout, urllib3.exceptions.HTTPError) as error:
        raise _Broken(_cause(error)) from error
    except requests.exceptions.RequestException as error:
        raise DownloadError(f"{url}: {error}") from error
    except OSError as error:  # of the disk
        error.filename = str(part)
        raise
    if total is not None and _size(part) != total:
        raise _Broken(f"the connection ended after {_size(part):,} of {total:,} bytes")


def _refuse(response: requests.Response, url: str) -> None:
    """Raise for a status that brings no file."""
    import urllib3

    status = response.status_code
    if status in BUSY:
        asked = response.headers.get("Retry-After")
        try:
            pause_s = urllib3.Retry().parse_retry_after(asked) if asked else None
        except urllib3.exceptions.InvalidHeader:
            pause_s = None
        raise _Broken(f"the server answers {status} ({response.reason})", pause_s)
    if status not in (200, 206):
        raise DownloadError(
            f"{url}: the server answers {status} ({response.reason}). If the file has moved, get it from its new place "
            "and put it where the download would have gone (--dry-run names it); the same command then goes on"
        )


def _range(response: requests.Response) -> tuple[int, int | None]:
    """The first byte that is sent, and how many the whole file has where the server says.

    The header decides, not the status: some servers send a range with status 200, or one that begins earlier.
    """
    sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if sent:
        return int(sent[1]), None if sent[2] == "*" else int(sent[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _cause(error: Exception) -> str:
    """The last of the chain of causes that requests wraps, in its own words."""
    text = str(error)
    if "timed out" in text:
        return "the server is silent"
    if "IncompleteRead" in text or "Connection broken" in text or "RemoteDisconnected" in text:
        return "the connection broke"
    if "Name or service not known" in text or "getaddrinfo failed" in text or "NameResolutionError" in text:
        return "the server's name cannot be resolved (is there a network?)"
    if "refused" in text:
        return "the server refuses the connection"
    return f"no connection ({type(error).__name__})"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read_note(note: Path) -> dict:
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # none yet, or cut short: the part is started over
    return content if isinstance(content, dict) else {}


def _discard(part: Path, note: Path) -> None:
    part.unlink(missing_ok=True)
    note.unlink(missing_ok=True)
