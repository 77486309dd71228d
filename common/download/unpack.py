"""Unpack an archive below a folder: nothing outside it, no links, not more than expected."""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from gzip import BadGzipFile
from pathlib import Path, PureWindowsPath

from common.errors import UserError
from common.progress import progress_bar

FORMAT_ERRORS = (tarfile.TarError, zipfile.BadZipFile, BadGzipFile, zlib.error, lzma.LZMAError)
DAMAGE = (*FORMAT_ERRORS, EOFError, ValueError, LookupError, ArithmeticError, RuntimeError)


class UnpackError(UserError):
    """An archive cannot be unpacked; nothing was."""


def unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    """Unpack a zip or (compressed) tar archive into `folder`, once all of it has been read; files are replaced.

    Raises:
        UnpackError: it is damaged or unsafe, or its files have more than `max_bytes` in total.
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
                raise UnpackError(f"{archive} holds more than the {max_bytes:,} bytes that are expected")
            extract(temporary)
        _move(temporary, folder)
    except UnpackError:
        raise
    except DAMAGE as error:
        cause = str(error).partition("\n")[0]
        raise UnpackError(f"{archive} is damaged ({cause}); delete it and get it again") from error
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
        raise UnpackError(f"{archive}: {name!r} {cause}; nothing was unpacked")


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
