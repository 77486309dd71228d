"""Download a file over HTTP: resumed after an interruption, retried, limited in size. Unpack an archive below a folder:
nothing outside it, no links, not more than expected."""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from gzip import BadGzipFile
from pathlib import Path, PureWindowsPath

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
FORMAT_ERRORS = (tarfile.TarError, zipfile.BadZipFile, BadGzipFile, zlib.error, lzma.LZMAError)
DAMAGE = (*FORMAT_ERRORS, EOFError, ValueError, LookupError, ArithmeticError, RuntimeError)


class DownloadError(UserError):
    """A file cannot be downloaded, or is not the expected file, or nothing of it was unpacked."""


def note_of(part: Path) -> Path:
    """Where the URL and version of a partial file are noted."""
    return part.with_name(part.name + ".json")


def fetch(url: str, part: Path, max_bytes: int) -> None:
    """Download a file to `part`, after the bytes that an earlier run has left there.

    Raises:
        DownloadError: the server refuses, fails too often, or sends more than `max_bytes`.
    """
    start = furthest = _size(part)
    pauses = iter(PAUSES_S)
    while True:
        try:
            return _attempt(url, part, max_bytes)
        except RequestException as error:
            if _size(part) > furthest:
                furthest, pauses = _size(part), iter(PAUSES_S)
            cause = _cause(error)
            # Without a network, only a started download waits.
            is_offline = furthest == start and OFFLINE.search(str(error))
            is_transient = isinstance(error, TRANSIENT) and not isinstance(error, SSLError)
            pause_s = next(pauses, None) if is_transient and not is_offline else None
            if pause_s is None:
                raise DownloadError(
                    f"{url}: {cause}; the same command continues after {_size(part):,} bytes. Or "
                    f"get the file with a browser, and put it as {part.with_suffix('')}"
                ) from error
            print(f"{part.stem}: {cause}; trying again in {pause_s} s", file=sys.stderr)
            time.sleep(pause_s)
        except OSError as error:
            raise DownloadError(f"{part} cannot be written ({error.strerror}); the same command continues") from error


def _attempt(url: str, part: Path, max_bytes: int) -> None:
    """A request: continue after the bytes of `part`, or start over."""
    note = note_of(part)
    headers = {"Accept-Encoding": "identity"}
    if have := _size(part):
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        start, size = _span(response)
        if start and start == size == have:
            return  # an earlier run had received all
        tags = [response.headers.get(name) for name in ("ETag", "Last-Modified")]
        version = json.dumps([url, *tags, size]).encode()
        if start and (start != have or not note.exists() or note.read_bytes() != version):
            part.unlink()
            raise requests.ConnectionError("the server's file has changed", response=response)
        note.write_bytes(version)
        with (
            part.open("ab" if start else "wb") as file,  # first: an error must not follow a bar on its line
            progress_bar(total=size, initial=start, desc=part.stem, unit="B", unit_scale=True) as bar,
        ):
            for block in response.iter_content(BLOCK):
                if max(size or 0, file.tell() + len(block)) > max_bytes:
                    part.unlink()
                    raise DownloadError(f"{url} has more than the {max_bytes:,} bytes expected")
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


def unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    """Unpack a zip or (compressed) tar archive into `folder`, once all of it has been read; files are replaced.

    Raises:
        DownloadError: it is damaged or unsafe, or its files have more than `max_bytes` in total.
        OSError: it cannot be written.
    """
    temporary = remove_leftovers(archive, folder)
    temporary.mkdir(parents=True)
    label = f"unpacking {archive.name}"
    members = progress_bar(iterable=_members(archive), desc=label, unit=" files")
    n_bytes = 0
    try:
        for size, extract in members:
            n_bytes += size
            if n_bytes > max_bytes:
                raise DownloadError(f"{archive} holds more than the {max_bytes:,} bytes that are expected")
            extract(temporary)
        _move(temporary, folder)
    except DownloadError:
        raise
    except DAMAGE as error:
        cause = str(error).partition("\n")[0]
        raise DownloadError(f"{archive} is damaged ({cause}); delete it and get it again") from error
    finally:
        remove_leftovers(archive, folder)


def remove_leftovers(archive: Path, folder: Path) -> Path:
    """Remove what a killed run has unpacked; returns the folder it unpacks into."""
    temporary = folder / f".unpacking.{archive.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    return temporary


def _members(archive: Path) -> Iterator[tuple[int, Callable[[Path], object]]]:
    """The size in bytes of every file or folder, and the function that extracts it."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zip_file:
            for info in zip_file.infolist():
                _refuse_unsafe(archive, info.filename, stat.S_ISLNK(info.external_attr >> 16))
                yield info.file_size, partial(zip_file.extract, info)
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            _refuse_unsafe(archive, member.name, not (member.isreg() or member.isdir()))
            yield member.size, partial(tar.extract, member, filter="data")
        # gzip's checksum is at the very end, and tarfile takes a damaged header as the end.
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        while block := tar.fileobj.read(1 << 20):
            if block.strip(b"\0"):
                raise tarfile.ReadError("a damaged header, or bytes behind the end")


def _refuse_unsafe(archive: Path, name: str, is_special: bool) -> None:
    path = PureWindowsPath(name)  # with either separator
    if path.anchor or ".." in path.parts or is_special:
        cause = "is a link or a device" if is_special else "leads out of the folder"
        raise DownloadError(f"{archive}: {name!r} {cause}; nothing was unpacked")


def _move(source: Path, target: Path) -> None:
    """Move a file or folder to its place; folders of the same name are merged."""
    if source.is_dir() and target.is_dir():
        for entry in source.iterdir():
            _move(entry, target / entry.name)
        return
    # On another disk, moving is copying: only a complete copy gets the final name.
    copy = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.move(source, copy)
    copy.replace(target)
