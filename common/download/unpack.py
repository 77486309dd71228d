"""Unpack an archive below a folder: nothing outside it, no links, not more than expected."""

from __future__ import annotations

import bisect
import io
import itertools
import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from gzip import BadGzipFile
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

from common.errors import UserError
from common.progress import progress_bar

FORMAT_ERRORS = (tarfile.TarError, zipfile.BadZipFile, BadGzipFile, zlib.error, lzma.LZMAError)
# Of a zip: its end without a comment, and what comes before it if offsets have 64 bits.
END, LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL")
DAMAGE = (*FORMAT_ERRORS, EOFError, ValueError, LookupError, ArithmeticError, RuntimeError)


class UnpackError(UserError):
    """An archive cannot be unpacked; nothing was."""


def unpack(archive: Path, folder: Path, max_bytes: int, pieces: Sequence[Path] = ()) -> None:
    """Unpack a zip or (compressed) tar archive into `folder`, once all of it has been read; files are replaced.

    Args:
        pieces: of a split zip, those before the last, in order; `archive` is the last.

    Raises:
        UnpackError: it is damaged or unsafe, or its files have more than `max_bytes` in total.
        OSError: it cannot be written.
    """
    temporary = remove_leftovers(archive, folder)
    temporary.mkdir(parents=True)
    label = f"unpacking {archive.name}"
    members = progress_bar(iterable=_members(archive, pieces), desc=label, unit=" files")
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


class _Joined(io.RawIOBase):
    """The pieces of a split zip as one file, which says of itself that it is whole: zipfile refuses others."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files: list[BinaryIO] = [path.open("rb") for path in paths]
        self.starts = [0, *itertools.accumulate(path.stat().st_size for path in paths)]
        self.place = 0
        # The end's record, and before it that of 64-bit offsets, in which zipfile reads the number of pieces.
        self.files[-1].seek(-END.size - LOCATOR.size, io.SEEK_END)
        last = self.files[-1].read()
        self.end = END.unpack(last[-END.size :])
        if last.startswith(b"PK\6\7"):
            sign, _, offset, _ = LOCATOR.unpack(last[: LOCATOR.size])
            last = LOCATOR.pack(sign, 0, offset, 1) + last[LOCATOR.size :]
        self.files.append(io.BytesIO(last))
        self.starts.insert(-1, self.starts[-1] - len(last))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        for file in self.files:
            file.close()
        super().close()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.starts[-1]}[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any) -> int:
        number = bisect.bisect_right(self.starts, self.place) - 1
        if number == len(self.files):
            return 0
        self.files[number].seek(self.place - self.starts[number])
        part = self.files[number].read(min(len(buffer), self.starts[number + 1] - self.place))
        buffer[: len(part)] = part
        self.place += len(part)
        return len(part)


def _open_zip(archive: Path, pieces: Sequence[Path]) -> zipfile.ZipFile:
    """A zip, whose offsets count from the beginning of each piece if it is split."""
    if not pieces:
        return zipfile.ZipFile(archive)
    joined = _Joined([*pieces, archive])
    zip_file = zipfile.ZipFile(io.BufferedReader(joined))
    # zipfile takes what lies before the directory's own piece for a prefix of the whole.
    prefix = joined.starts[joined.end[2]]
    for info in zip_file.infolist():
        info.header_offset += joined.starts[info.volume] - prefix
    return zip_file


def _members(archive: Path, pieces: Sequence[Path]) -> Iterator[tuple[int, Callable[[Path], object]]]:
    """The size in bytes of every file or folder, and the function that extracts it."""
    if pieces or zipfile.is_zipfile(archive):
        with _open_zip(archive, pieces) as zip_file:
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
