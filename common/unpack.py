"""An archive -> files below a folder: nothing outside it, no links, no devices, not more than announced.

Members are read and written here as plain bytes, so that it does not matter which extraction filters the running
Python's tarfile has (none before 3.10.12 and 3.11.4).
"""

from __future__ import annotations

import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, BinaryIO

from common.progress import progress_bar

TEMPORARY = ".unpacking."


class UnpackError(ValueError):
    """An archive is damaged or hostile; the message is one line."""


def unpack(archive: Path, folder: Path, max_bytes: int) -> int:
    """Unpack a zip or (compressed) tar archive, then move what it holds into `folder`, over what is there.

    Until the whole archive was read, nothing appears under its final name.

    Args:
        max_bytes: the most that the files may hold together.

    Returns:
        The number of files.

    Raises:
        UnpackError: the archive is damaged, is of another kind, holds a path that leads out of the folder, a link, a
            device, or more than `max_bytes`. Nothing of it stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{TEMPORARY}*"):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder))
    try:
        n_files = _unpack(archive, temporary, max_bytes)
        _move_into(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return n_files


def _unpack(archive: Path, folder: Path, max_bytes: int) -> int:
    n_files = n_bytes = 0
    bar = progress_bar(
        total=archive.stat().st_size, desc=f"unpacking {archive.name}", unit="B", unit_scale=True, leave=False
    )
    try:
        with archive.open("rb") as raw, bar, _members(raw, archive) as members:
            for name, size, content in members:
                target = folder.joinpath(*_safe_parts(name, archive))
                n_bytes += size
                if n_bytes > max_bytes:
                    raise UnpackError(
                        f"{archive} holds more than the {max_bytes:,} bytes that it may; refused, nothing was unpacked"
                    )
                target.parent.mkdir(parents=True, exist_ok=True)
                with content() as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                n_files += 1
                bar.update(raw.tell() - bar.n)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UnpackError(f"{archive} is damaged ({error}); delete it and get it again") from error
    except OSError as error:
        if error.errno is not None:  # of the disk; gzip's and lzma's complaints about content have no number
            raise
        raise UnpackError(f"{archive} is damaged ({error}); delete it and get it again") from error
    if not n_files:
        raise UnpackError(f"{archive} holds no files; delete it and get it again")
    return n_files


@contextmanager
def _members(raw: BinaryIO, archive: Path) -> Iterator[Iterator[tuple[str, int, object]]]:
    """The archive's files as (name, size, function that opens them), in one pass."""
    if zipfile.is_zipfile(raw):
        with zipfile.ZipFile(raw) as opened:
            yield _zip_members(opened, archive)
        return
    raw.seek(0)
    try:
        opened = tarfile.open(fileobj=raw, mode="r:*")  # noqa: SIM115 - closed below
    except tarfile.ReadError as error:  # which lists every format that it is not
        raise tarfile.ReadError("cut short, or neither zip nor tar") from error
    with opened:
        yield _tar_members(opened, archive)


def _zip_members(opened: zipfile.ZipFile, archive: Path) -> Iterator[tuple[str, int, object]]:
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir():
            _safe_parts(info.filename, archive)
            continue
        if kind not in (0, stat.S_IFREG):
            raise _forbidden(archive, info.filename, "is a link or a device")
        yield info.filename, info.file_size, lambda info=info: opened.open(info)


def _tar_members(opened: tarfile.TarFile, archive: Path) -> Iterator[tuple[str, int, object]]:
    for member in opened:
        if member.isdir():
            _safe_parts(member.name, archive)
            continue
        if not member.isreg():
            raise _forbidden(archive, member.name, "is a link or a device")

        def content(member: tarfile.TarInfo = member) -> IO[bytes]:
            return opened.extractfile(member)

        yield member.name, member.size, content
    # To the very end, where gzip keeps the checksum of it all.
    while opened.fileobj.read(1 << 20):
        pass


def _safe_parts(name: str, archive: Path) -> tuple[str, ...]:
    """A member's name as parts that lead nowhere but down, on any system."""
    path = PurePosixPath(name)
    if path.is_absolute() or "\\" in name or "\0" in name or PureWindowsPath(name).drive or ".." in path.parts:
        raise _forbidden(archive, name, "leads out of the folder")
    return path.parts


def _forbidden(archive: Path, name: str, what: str) -> UnpackError:
    return UnpackError(
        f"{archive}: {name!r} {what}; the archive is not what it should be: refused, nothing was unpacked"
    )


def _move_into(source: Path, folder: Path) -> None:
    """Move what is in `source` into `folder`; folders of the same name become one."""
    for entry in sorted(source.iterdir()):
        there = folder / entry.name
        if entry.is_dir() and there.is_dir():
            _move_into(entry, there)
        else:
            there.unlink(missing_ok=True)
            shutil.move(entry, there)  # which copies where the folder there is a link to another disk
