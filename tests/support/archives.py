"""Archives with a few small files, and what a folder holds."""

from __future__ import annotations

import io
import itertools
import struct
import tarfile
import zipfile
from pathlib import Path


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], compression: str = "gz") -> Path:
    with tarfile.open(path, f"w:{compression}") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def split_zip(path: Path, n_pieces: int) -> list[Path]:
    """Cut a zip into pieces as Info-ZIP's ``zip -s`` does (NAME.z01, ..., NAME.zip), offsets counting within each piece."""
    with zipfile.ZipFile(path) as archive:
        offsets, directory = [info.header_offset for info in archive.infolist()], archive.start_dir
    content = bytearray(path.read_bytes())
    step = directory // (n_pieces - 1)
    bounds = [*list(range(0, directory, step))[: n_pieces - 1], directory - 3, len(content)]
    place = directory
    for offset in offsets:
        piece = max(number for number in range(n_pieces) if bounds[number] <= offset)
        struct.pack_into("<H", content, place + 34, piece)
        struct.pack_into("<L", content, place + 42, offset - bounds[piece])
        name, extra, comment = struct.unpack_from("<3H", content, place + 28)
        place += 46 + name + extra + comment
    struct.pack_into("<2H", content, place + 4, n_pieces - 1, n_pieces - 1)
    struct.pack_into("<L", content, place + 16, directory - bounds[-2])
    names = [path.with_suffix(f".z{number:02}") for number in range(1, n_pieces)] + [path]
    for name, (start, end) in zip(names, itertools.pairwise(bounds), strict=True):
        name.write_bytes(content[start:end])
    return names
