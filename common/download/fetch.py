"""Download a file: resumed after an interruption, retried, verified, never incomplete under its final name.

`requests` does the HTTP (proxies, redirects, certificates). The loop around it is here because the libraries for
data sets restart a broken download of gigabytes from its beginning (pooch), or serve only one host (huggingface_hub).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import TypeAdapter, ValidationError

from common.download.connection import DownloadError, RetryableError, RetryPolicy, answer, watched
from common.files import digest_of, remove_leftovers, write_atomically
from common.progress import progress_bar

if TYPE_CHECKING:
    import requests

__all__ = ["DownloadError", "RetryPolicy", "differs", "fetch", "remove_notes"]

BUSY = (408, 425, 429, 500, 502, 503, 504)  # statuses after which a retry may succeed


@dataclass(frozen=True)
class _Note:
    """What the last response said about a file, saved beside its part; `validator` makes range requests conditional."""

    url: str
    etag: str
    modified: str
    validator: str
    total: int | None


_NOTE = TypeAdapter(_Note)
_NO_NOTE = _Note("", "", "", "", None)


@dataclass(frozen=True)
class _Job:
    """What `fetch` was asked for; the part is what has been received so far, and the note is about it."""

    url: str
    part: Path
    note: Path
    size: int | None
    most: int | None
    retries: RetryPolicy


def fetch(
    url: str,
    path: Path,
    checksum: str | None = None,
    size: int | None = None,
    retries: RetryPolicy | None = None,
    most: int | None = None,
) -> None:
    """Download `url` to `path`, continuing what an earlier attempt left in ``<path>.part``.

    The caller must make sure that only one process at a time does this for one path.

    Args:
        checksum: ``"sha256:<hex>"`` or ``"md5:<hex>"`` of the whole file; None: what the server sent is accepted
            once it is complete.
        size: of the whole file in bytes, if it is known.
        most: of a file whose size neither is known nor told by the server; None: what the disk has room for.

    Raises:
        DownloadError: the server refuses or failed too often, or the file is not the expected one. What was received
            is kept for the next attempt, unless it is wrong.
    """
    part = path.with_name(path.name + ".part")
    note = part.with_name(part.name + ".json")
    remove_leftovers(note)
    job = _Job(url, part, note, size, most, retries or RetryPolicy())
    resumed = _download(job)
    difference = differs(part, checksum) if checksum else ""
    if difference and resumed:
        # The parts may come from two different files: download it in one piece to find out.
        print(f"{path.name}: {difference}; starting over", file=sys.stderr)
        _discard(part, note)
        _download(job)
        difference = differs(part, checksum) if checksum else ""
    if difference:
        _discard(part, note)
        raise DownloadError(
            f"{url} is not the file that was expected: {difference}. A proxy or a sign-in page may have "
            "answered instead; nothing was kept, try again later or from elsewhere"
        )
    with part.open("rb+") as file:
        os.fsync(file.fileno())  # after a crash of the machine, the final name must not hold an incomplete file
    part.replace(path)
    note.unlink(missing_ok=True)


def remove_notes(path: Path) -> None:
    """Remove what a download that was killed at its very end left beside the whole file."""
    note = path.with_name(path.name + ".part.json")
    remove_leftovers(note)
    note.unlink(missing_ok=True)


def differs(path: Path, checksum: str) -> str:
    """How a file's checksum differs from ``"<algorithm>:<hex>"``, in words; empty if it does not."""
    algorithm, _, wanted = checksum.partition(":")
    size = path.stat().st_size
    with progress_bar(total=size, desc=f"checking {path.name}", unit="B", unit_scale=True, leave=False) as bar:
        found = digest_of(path, algorithm, bar.update)
    return "" if found == wanted else f"its {algorithm} is {found}, not {wanted} ({size:,} bytes)"


def _download(job: _Job) -> bool:
    """Download all of it into the part; returns whether that took several attempts."""
    import requests

    url, part, retries = job.url, job.part, job.retries
    part.parent.mkdir(parents=True, exist_ok=True)
    furthest, failures, attempts, started_over = _size(part), 0, 1 if _size(part) else 0, False
    with requests.Session() as session:
        # Compressed responses do not support ranges, and their size is not the file's.
        session.headers["Accept-Encoding"] = "identity"
        while True:
            attempts += 1
            try:
                _attempt(session, job)
            except RetryableError as error:
                here = _size(part)
                if here < furthest and not started_over:
                    furthest, started_over = 0, True  # the old part was discarded for a new file
                failures = 0 if here > furthest and not error.is_vain else failures + 1
                furthest = max(furthest, here)
                if failures >= retries.tries:
                    raise DownloadError(
                        f"{url}: {error}, {failures} times in a row; {here:,} bytes are kept; the same command "
                        "continues from there"
                    ) from error
                pause_s = retries.backoff_s * 2 ** max(failures - 1, 0) if error.pause_s is None else error.pause_s
                if pause_s > retries.longest_pause_s:
                    raise DownloadError(
                        f"{url}: {error}, and asks to wait {pause_s:.0f} s; run the same command again after that"
                    ) from error
                print(f"{part.stem}: {error}; trying again in {pause_s:g} s", file=sys.stderr)
                time.sleep(pause_s)
            else:
                return attempts > 1


def _attempt(session: requests.Session, job: _Job) -> None:
    """One request: continue after the bytes that are there, or start over if the server cannot."""
    import requests
    import urllib3

    url, part, stall_s = job.url, job.part, job.retries.stall_s
    if part.exists() and not part.is_file():
        raise DownloadError(f"{part} is no file; remove it, and run the same command again")
    have, before = _size(part), _read_note(job.note)
    headers = {}
    if have and before.url == url:
        if before.total == have:
            return
        headers["Range"] = f"bytes={have}-"
        if before.validator:
            headers["If-Range"] = before.validator  # if the file has changed, all of it is sent
    try:
        coming = watched(answer(session, url, headers, job.retries), 2 * stall_s)
        got = cast("requests.Response", next(coming))
        total = _receive(got, cast("Iterator[bytes]", coming), job, before)
    except DownloadError:
        raise
    except requests.exceptions.SSLError as error:
        if "CERTIFICATE_VERIFY_FAILED" not in str(error):
            raise RetryableError("the secure connection failed") from error
        raise DownloadError(
            f"{url}: the server's certificate cannot be verified; get the file in another way (a browser on another "
            f"network, say), put it as {part.with_suffix('')}, and run the same command again"
        ) from error
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout, urllib3.exceptions.HTTPError) as error:
        raise RetryableError(_cause(error)) from error
    except requests.exceptions.RequestException as error:
        raise DownloadError(f"{url}: {error}") from error
    except OSError as error:
        if error.errno is None:  # raised by requests, about certificates and proxies
            raise DownloadError(f"{url}: {error}") from error
        raise DownloadError(f"{part}: {error.strerror}; fix that, and the same command continues") from error
    except (ValueError, OverflowError) as error:
        raise DownloadError(f"{url}: the server's response is invalid ({str(error)[:100]!r}); try later") from error
    if total is not None and _size(part) != total:
        raise RetryableError(f"the connection ended after {_size(part):,} of {total:,} bytes")


def _receive(response: requests.Response, blocks: Iterator[bytes], job: _Job, before: _Note) -> int | None:
    """Write what the server sends into `part`, at the offset that it gives; returns the whole file's size."""
    url, part, note, size = job.url, job.part, job.note, job.size
    have, headers = _size(part), response.headers
    if response.status_code == 416 and have:
        _discard(part, note)
        raise RetryableError("the server's file is not longer than the part already here, so it is a different file")
    _refuse(response, url)
    start, total = _range(response)
    etag, modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
    seen = ((before.etag, etag), (before.modified, modified), (before.total, total))
    changed = [now for earlier, now in seen if now and earlier and now != earlier]
    if start is None or start > have or (start and changed):
        _discard(part, note)
        raise RetryableError(
            "the server's file has changed" if changed else "the server sent a different part than requested"
        )
    total = total or (before.total if start else None) or size
    if size is not None and total != size:
        raise DownloadError(f"{url} has {total:,} bytes, not the {size:,} of the file that is wanted; try later")
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise DownloadError(f"{url} has {total - start:,} bytes to come, {part.parent} has room for {free:,}")
    if not start:
        part.unlink(missing_ok=True)  # before the note describes another file
    is_strong = etag and not etag.startswith("W/")
    new_note = _Note(url, etag, modified, etag if is_strong else modified, total)
    write_atomically(note, json.dumps(asdict(new_note)).encode())
    bar = progress_bar(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True, unit_divisor=1000)
    received, limit = start, total or job.most or start + free
    with part.open("r+b" if start else "wb") as file, bar:
        file.seek(start)
        file.truncate()
        for block in blocks:
            received += len(block)
            if received > limit:
                break
            file.write(block)
            bar.update(len(block))
    if received > limit:
        _discard(part, note)
        raise DownloadError(
            f"{url} sends more than the {limit:,} bytes that it may have, so it is not the file that is wanted; try later"
        )
    return total


def _refuse(response: requests.Response, url: str) -> None:
    """Raise if the response is not a file."""
    import urllib3

    status = response.status_code
    phrase = f" ({HTTPStatus(status).phrase})" if status in set(HTTPStatus) else ""
    if status in BUSY:
        asked = response.headers.get("Retry-After")
        try:
            pause_s = urllib3.Retry().parse_retry_after(asked) if asked else None
        except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
            pause_s = None
        raise RetryableError(f"the server responded with {status}{phrase}", pause_s)
    moved = (
        "If the file has moved, get it from its new place and put it where the download would have gone (--dry-run "
        "names it); the same command then continues"
    )
    if status not in (200, 206):
        raise DownloadError(f"{url}: the server responded with {status}{phrase}. {moved}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise DownloadError(f"{url}: the server sent a web page instead of the file (a sign-in page?). {moved}")


def _range(response: requests.Response) -> tuple[int | None, int | None]:
    """The offset of the first byte sent (None if unknown) and the size of the whole file (None if not given).

    The header decides, not the status: some servers send a range with status 200, or one that begins earlier.
    """
    sent = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("Content-Range", "").strip())
    if sent:
        return int(sent[1]), None if sent[2] == "*" else int(sent[2])
    if response.status_code == 206:
        return None, None
    length = response.headers.get("Content-Length")
    if length is None or "Transfer-Encoding" in response.headers:
        return 0, None
    if not re.fullmatch(r"\d{1,18}", length.strip()):
        raise RetryableError(f"the server's response is invalid (Content-Length {length[:40]!r})")
    return 0, int(length)


def _cause(error: Exception) -> str:
    """The cause of a connection error, in plain words."""
    text = str(error)
    if "timed out" in text:
        return "the server does not respond"
    if "IncompleteRead" in text or "Connection broken" in text or "RemoteDisconnected" in text:
        return "the connection broke"
    if "Name or service not known" in text or "getaddrinfo failed" in text or "NameResolutionError" in text:
        return "the server's name cannot be resolved (is there a network?)"
    if "refused" in text:
        return "the server refuses the connection"
    return f"no connection ({type(error).__name__})"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read_note(note: Path) -> _Note:
    """The note beside the part; an empty one if it is missing or not ours, so that the download starts over."""
    try:
        if not note.is_file() or note.stat().st_size > 1 << 16:
            return _NO_NOTE
        content = _NOTE.validate_json(note.read_bytes(), strict=True)
    except (OSError, ValidationError):
        return _NO_NOTE
    texts = (content.url, content.etag, content.modified, content.validator)
    return content if all(text.isprintable() for text in texts) else _NO_NOTE


def _discard(part: Path, note: Path) -> None:
    part.unlink(missing_ok=True)
    note.unlink(missing_ok=True)
