"""Unpack an archive below a folder: nothing outside it, no links, no devices, no more bytes than announced.

Members are read and written here as plain bytes, so that it does not matter which extraction filters the running
Python's tarfile has (none before 3.10.12 and 3.11.4).
"""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, BinaryIO

from common.errors import UserError
from common.progress import progress_bar

# The exceptions that reading a damaged archive can raise.
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
    MemoryError,
)


TEMPORARY = ".unpacking."
MOST_DEPTH = 50


@dataclass(frozen=True)
class Member:
    """A file in an archive: its name, its announced size in bytes, and the function that opens it."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


class UnpackError(UserError):
    """An archive is damaged or malicious; the message is one line."""


def unpack(archive: Path, folder: Path, max_bytes: int, max_files: int) -> int:
    """Unpack a zip or (compressed) tar archive, then move its files into `folder`, replacing those that are there.

    Nothing appears under its final name until the whole archive has been read, and no file ever appears there in part.
    The caller must make sure that only one process at a time does this for one archive.

    Args:
        max_bytes: the limit on the files' total size.
        max_files: the limit on their number, and on that of the folders.

    Returns:
        The number of files.

    Raises:
        UnpackError: the archive is damaged, is of another kind, holds a path that leads out of the folder, a link, a
            device, or more than `max_bytes` or `max_files`; or it cannot be written. Nothing of it is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_unpacked_leftovers(archive, folder)
    temporary = _temporary(archive, folder)
    try:
        temporary.mkdir()
        n_files = _unpack(archive, temporary, max_bytes, max_files)
        _move_into(temporary, folder, archive)
    except OSError as error:
        raise UnpackError(
            f"{archive} cannot be unpacked into {folder}: {error.strerror or error}; fix that, and run the same "
            "command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return n_files


def remove_unpacked_leftovers(archive: Path, folder: Path) -> None:
    """Remove what a killed run left behind while unpacking `archive`."""
    if _temporary(archive, folder).exists():
        shutil.rmtree(_temporary(archive, folder))


def _temporary(archive: Path, folder: Path) -> Path:
    return folder / f"{TEMPORARY}{archive.name}"


def _unpack(archive: Path, folder: Path, max_bytes: int, max_files: int) -> int:
    n_files = n_bytes = 0
    folders: set[tuple[str, ...]] = set()
    size = archive.stat().st_size
    bar = progress_bar(total=size, desc=f"unpacking {archive.name}", unit="B", unit_scale=True, leave=False)
    try:
        with archive.open("rb") as raw, bar, _members(raw, archive, 2 * max_files) as members:
            for member in members:
                parts = _safe_parts(member.name, archive)
                target = folder.joinpath(*parts)
                folders.update(parts[:depth] for depth in range(1, len(parts)))
                if len(folders) > max_files:
                    raise _too_many(archive, max_files)
                n_bytes += member.size
                if n_bytes > max_bytes:
                    raise UnpackError(
                        f"{archive} holds more than the {max_bytes:,} bytes that it may; refused, nothing was unpacked"
                    )
                target.parent.mkdir(parents=True, exist_ok=True)
                with member.open() as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                    if file.tell() != member.size:  # a damaged list of files hides the checksum too
                        raise zipfile.BadZipFile(f"{parts[-1]!r} has {file.tell():,} bytes, not {member.size:,}")
                n_files += 1
                if n_files > max_files:
                    raise _too_many(archive, max_files)
                bar.update(raw.tell() - bar.n)
    except UnpackError:
        raise
    except DAMAGE as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        # gzip and bz2 report damaged content without an errno; an offset beyond the file's end gives EINVAL.
        if error.errno in (None, errno.EINVAL):
            raise _damaged(archive, error) from error
        raise
    if not n_files:
        raise UnpackError(f"{archive} holds no files; delete it and get it again")
    return n_files


def _damaged(archive: Path, error: Exception) -> UnpackError:
    cause = str(error) or type(error).__name__
    return UnpackError(f"{archive} is damaged ({cause[:200]}); delete it and get it again")


@contextmanager
def _members(raw: BinaryIO, archive: Path, most: int) -> Iterator[Iterator[Member]]:
    """The archive's files, in one pass; UnpackError if it has more than `most` entries, of any kind."""
    if zipfile.is_zipfile(raw):
        with zipfile.ZipFile(raw) as zip_file:
            if len(zip_file.filelist) > most:
                raise _too_many(archive, most)
            if not _counts_agree(raw, len(zip_file.filelist)):
                raise zipfile.BadZipFile("its list of files is cut short")
            yield _zip_members(zip_file, archive)
        return
    raw.seek(0)
    try:
        tar_file = tarfile.open(fileobj=raw, mode="r:*")  # noqa: SIM115 - closed below
    except tarfile.ReadError as error:  # its message lists every format that was tried
        raise tarfile.ReadError("cut short, or neither zip nor tar") from error
    with tar_file:
        yield _tar_members(tar_file, archive, most)


def _counts_agree(raw: BinaryIO, n_listed: int) -> bool:
    """Whether a zip lists as many files as its last record says, which has two bytes for the number."""
    raw.seek(-min(raw.seek(0, 2), 22 + 65_535), 2)
    tail = raw.read()
    place = tail.rfind(b"PK\x05\x06")
    count = int.from_bytes(tail[place + 10 : place + 12], "little")
    return count in (n_listed % (1 << 16), 0xFFFF)


def _zip_members(opened: zipfile.ZipFile, archive: Path) -> Iterator[Member]:
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir() and info.file_size:
            raise _forbidden(archive, info.filename, "is a folder with content")
        if info.is_dir():
            continue  # a file's folders are made for it
        if kind not in (0, stat.S_IFREG):
            raise _forbidden(archive, info.filename, "is a link or a device")
        yield Member(info.filename, info.file_size, partial(opened.open, info))


def _tar_members(opened: tarfile.TarFile, archive: Path, most: int) -> Iterator[Member]:
    for number, member in enumerate(opened):
        if number >= most:
            raise _too_many(archive, most)
        if member.size < 0:
            raise _forbidden(archive, member.name, "has a negative size")
        if member.isdir():
            continue  # a file's folders are made for it
        if not member.isreg():
            raise _forbidden(archive, member.name, "is a link or a device")
        yield Member(member.name, member.size, partial(_tar_content, opened, member))
    # Read to the very end, where gzip keeps the checksum of everything. tarfile takes a damaged header for the end.
    assert opened.fileobj is not None
    opened.fileobj.seek(opened.offset)
    while block := opened.fileobj.read(1 << 20):
        if block.strip(b"\0"):
            raise tarfile.ReadError("a header in it is damaged, or other bytes follow its end")


def _tar_content(opened: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = opened.extractfile(member)
    assert content is not None  # it is a regular file
    return content


def _safe_parts(name: str, archive: Path) -> tuple[str, ...]:
    """A member's name as path parts that stay below the folder, on any system."""
    path = PurePosixPath(name)
    if path.is_absolute() or "\\" in name or "\0" in name or PureWindowsPath(name).drive or ".." in path.parts:
        raise _forbidden(archive, name, "leads out of the folder")
    if not path.parts or path.parts[0].startswith(TEMPORARY):
        raise _forbidden(archive, name, "is not a file name")
    if len(path.parts) > MOST_DEPTH:
        raise _forbidden(archive, name, f"lies more than {MOST_DEPTH} folders deep")
    return path.parts


def _too_many(archive: Path, most: int) -> UnpackError:
    return UnpackError(f"{archive} holds more than the {most:,} entries that it may; refused, nothing was unpacked")


def _forbidden(archive: Path, name: str, what: str) -> UnpackError:
    return UnpackError(f"{archive}: {name[:200]!r} {what}; the archive is not safe: refused, nothing was unpacked")


def _move_into(source: Path, folder: Path, archive: Path) -> None:
    """Move every file in `source` to its place in `folder`; folders of the same name are merged."""
    moves = [
        (Path(parent) / name, folder / os.path.relpath(parent, source) / name)
        for parent, _, names in os.walk(source)
        for name in names
    ]
    for _, target in moves:
        is_below_a_file = next(path for path in target.parents if path.exists()).is_file()
        if target.is_dir() or is_below_a_file:
            raise UnpackError(f"{archive}: {target} would replace what is there; move that away, and try again")
    for path, target in moves:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # The folder there is a link to another disk: copying takes time, and only a whole copy gets the final name.
            copied = target.with_name(f".{target.name}.tmp")
            shutil.copyfile(path, copied)
            copied.replace(target)
