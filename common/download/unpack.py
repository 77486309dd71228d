"""Unpack an archive below a folder: nothing outside it, and nothing before all of it has been read."""

from __future__ import annotations

import bisect
import io
import itertools
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from gzip import BadGzipFile
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.progress import progress_bar

DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, BadGzipFile, zlib.error),
    *(EOFError, ValueError, LookupError, ArithmeticError, RuntimeError),
)
# Of a zip: its end without a comment, and what comes before it if offsets have 64 bits.
END, LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL")


class UnpackError(UserError):
    """An archive cannot be unpacked; nothing was."""


def unpack(archive: Path, folder: Path, pieces: Sequence[Path] = ()) -> None:
    """Unpack a zip or (compressed) tar archive into `folder`, once all of it has been read; files are replaced. `pieces` are
    those of a split zip before the last, in order. UnpackError if it is damaged, or has links that lead out of the folder."""
    temporary = remove_leftovers(archive, folder)
    temporary.mkdir(parents=True)
    try:
        _extract(archive, pieces, temporary)
        _move(temporary, folder)
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


def _extract(archive: Path, pieces: Sequence[Path], folder: Path) -> None:
    """Extract every file; the libraries let nothing out of the folder."""
    bar = partial(progress_bar, desc=f"unpacking {archive.name}", unit=" files")
    if pieces or zipfile.is_zipfile(archive):
        with _open_zip(archive, pieces) as zip_file:
            for info in bar(iterable=zip_file.infolist()):
                zip_file.extract(info, folder)
        return
    with tarfile.open(archive) as tar:
        for member in bar(iterable=tar):
            tar.extract(member, folder, filter="data")
        # gzip's checksum is at the very end, and tarfile takes a damaged header as the end.
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        while block := tar.fileobj.read(1 << 20):
            if block.strip(b"\0"):
                raise tarfile.ReadError("a damaged header, or bytes behind the end")


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


class _Joined(io.RawIOBase):
    """The pieces of a split zip as one file, which says of itself that it is whole: zipfile refuses others."""

    def __init__(self, paths: Sequence[Path]) -> None:
        import numpy as np  # a third of what --help takes

        self.pieces = [np.memmap(path, np.uint8, "c").data for path in paths]  # copied on write
        self.starts = [0, *itertools.accumulate(map(len, self.pieces))]
        self.place = 0
        # The end's record, and before it that of 64-bit offsets, in which zipfile reads the number of pieces.
        last = self.pieces[-1][-END.size - LOCATOR.size :]
        self.end = END.unpack(last[-END.size :])
        if bytes(last[:4]) == b"PK\6\7":
            sign, _, offset, _ = LOCATOR.unpack_from(last)
            LOCATOR.pack_into(last, 0, sign, 0, offset, 1)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.starts[-1]}[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:
        number = bisect.bisect_right(self.starts, self.place) - 1
        if number == len(self.pieces):
            return 0
        part = self.pieces[number][self.place - self.starts[number] :][: len(buffer)]
        buffer[: len(part)] = part
        self.place += len(part)
        return len(part)


def _move(source: Path, target: Path) -> None:
    """Move a file or folder to its place; folders of the same name are merged."""
    if source.is_dir() and target.is_dir():
        for entry in source.iterdir():
            _move(entry, target / entry.name)
    else:
        shutil.move(source, target)
