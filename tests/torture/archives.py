"""Archives that are damaged, or made to write elsewhere, to fill the disk or to never end."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.download.unpack import UnpackError, unpack
from tests.torture.harness import Attack, Case, mutated, require, require_same, tree

MOST_BYTES, MOST_FILES = 1_000_000, 200
FILES = {
    "top/audio/a.wav": b"a" * 3000,
    "top/audio/b.wav": bytes(range(256)) * 20,
    "top/list.csv": b"x,y\n",
    "top/empty": b"",
}
KEPT = {"top/audio/kept.wav": b"kept", "other/kept.txt": b"kept too"}  # in the target folder before
KINDS = ("zip", "zip stored", "tar", "tar.gz", "tar.bz2", "tar.xz")
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}


@dataclass(frozen=True)
class Hostile:
    """An archive, and the files that it may become; None: it must be refused. With `is_loose`, contents may be others, as in
    a plain tar, which has no checksums of them. What is large is made in the case."""

    name: str
    content: bytes | Callable[[], bytes]
    files: dict[str, bytes] | None = None
    is_loose: bool = False
    file_name: str = "archive"

    def run(self, folder: Path) -> None:
        """Unpack it where other files are, and look at everything."""
        archive, target = folder / self.file_name, folder / "data"
        archive.write_bytes(self.content() if callable(self.content) else self.content)
        for name, content in KEPT.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
        (folder / "beside").mkdir()
        (folder / "beside" / "file").write_bytes(b"beside")
        before = tree(folder)
        try:
            count = unpack(archive, target, MOST_BYTES, MOST_FILES)
        except UnpackError:
            require_same(tree(folder), before)
            raise
        require(self.files is not None, f"it was not refused: {sorted(tree(folder).keys() - before.keys())[:5]}")
        files = {f"data/{name}": content for name, content in (self.files or {}).items()}
        folders = {f"{parent}/": b"" for name in files for parent in map(str, Path(name).parents) if parent != "."}
        found, expected = tree(folder), before | folders | files
        if self.is_loose:
            expected = {name: found.get(name, b"") if name in files else expected[name] for name in expected}
        require_same(found, expected)
        require(count >= len(files), f"{count} files are reported, {len(files)} are there")


def make_zip(files: dict[str, bytes], stored: bool = False) -> bytes:
    """A zip of these files."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, archive.compression)
    return made.getvalue()


def entry(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """A member of a tar."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def make_tar(files: dict[str, bytes], *more: tarfile.TarInfo, form: int = tarfile.GNU_FORMAT) -> bytes:
    """A plain tar of these files, and of members without content."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        for name, content in files.items():
            archive.addfile(entry(name, len(content)), io.BytesIO(content))
        for info in more:
            archive.addfile(info)
    return made.getvalue()


def made(kind: str, files: dict[str, bytes]) -> bytes:
    """An archive of a kind."""
    if kind.startswith("zip"):
        return make_zip(files, kind == "zip stored")
    return PACKERS.get(kind, bytes)(make_tar(files))


def damaged(rng: random.Random, common: Path) -> Iterator[Case]:
    """Every kind of archive, changed somewhere."""
    whole = {kind: made(kind, FILES) for kind in KINDS}
    for kind, content in whole.items():
        yield Case(f"{kind} as it is", Hostile(kind, content, FILES).run)
    while True:
        for kind, content in whole.items():
            # The directory of a zip is at its end, and a plain tar is mostly padding.
            first = rng.choice((0, max(0, len(content) - 400)))
            last = rng.choice((None, first + 700))
            done, content = mutated(content, rng, first, last)
            if kind != "tar" and rng.random() < 0.2:
                more, content = mutated(content or b"\0", rng)
                done = f"{done}, {more}"
            yield Case(f"{kind}: {done}", Hostile(kind, content, FILES, is_loose=kind == "tar").run)


OUT = (
    *(
        "../out",
        "top/../../out",
        "/out",
        "//out",
        "C:\\out",
        "C:out",
        "..\\out",
        "top\\..\\..\\out",
        "./../out",
        "top/..",
    ),
    *(
        "top/audio/../../../beside/file",
        "../beside/file",
        "\\\\host\\share\\out",
        "/proc/self/cwd/out",
        "..",
        "../data2/x",
    ),
)
ODD = (
    ".",
    "./",
    "",
    "top/x\ny",
    "top/é音",
    "top/ x ",
    "top/-rf",
    "top/x\x1b[2J",
    "top/%s",
    "top/con",
    "top/x:y",
    "top/~",
    "~/x",
)


def names(rng: random.Random) -> Iterator[Hostile]:
    """Names of members that lead out, are none, or are too long."""
    kind = rng.choice(KINDS)
    for name in OUT:
        yield Hostile(f"{kind} with {name!r}", made(kind, FILES | {name: b"x"}))
    for name in ODD:
        right = FILES | {name: b"x"} if Path(name).name else None
        yield Hostile(f"{kind} with {name!r}", made(kind, FILES | {name: b"x"}), right)
    for depth in (10, 100, rng.randrange(300, 900), rng.randrange(900, 1900), 3_000, 10_000):
        name = "d/" * depth + "x"
        yield Hostile(f"{kind}, {depth} folders deep", made(kind, FILES | {name: b"x"}), FILES | {name: b"x"})
    yield Hostile(f"{kind} with a name of 300 letters", made(kind, FILES | {"top/" + "x" * 300: b"x"}))
    own = FILES | {".unpacking.archive/x": b"x", ".unpacking.archive/top/y": b"y"}
    yield Hostile(f"{kind} with the name of the folder in use", made(kind, own), own)
    for name in ("top", "top/list.csv/below", "top/audio/kept.wav/below", "other", "top/audio"):
        yield Hostile(f"{kind} with {name!r} as a file and a folder", made(kind, {name: b"x"} | FILES))
        yield Hostile(f"{kind} with {name!r} as a folder and a file", made(kind, FILES | {name: b"x"}))
    zipped = make_zip(FILES | {"top/nul_x../out": b"x"}).replace(b"top/nul_x", b"top/nul\0x")
    yield Hostile("zip with NUL in a name", zipped, FILES | {"top/nul": b"x"})
    yield Hostile("tar with NUL in a name", make_tar(FILES, pax(path="top/nul\0/../../out"), form=tarfile.PAX_FORMAT))
    bytes_name = make_tar(FILES | {"top/QQ": b"x"}).replace(b"top/QQ", b"top/\xff\xfe")
    yield Hostile("tar with a name not UTF-8", retarred(bytes_name), FILES | {os.fsdecode(b"top/\xff\xfe"): b"x"})


def pax(**headers: str) -> tarfile.TarInfo:
    """An empty member top/x with extended headers."""
    info = entry("top/x")
    info.pax_headers = {key.replace("_", "."): value for key, value in headers.items()}
    return info


def retarred(content: bytes) -> bytes:
    """A tar with the headers' checksums made right again."""
    blocks = bytearray(content)
    for place in range(0, len(blocks), 512):
        if blocks[place + 257 : place + 262] == b"ustar":
            blocks[place + 148 : place + 156] = b" " * 8
            blocks[place + 148 : place + 156] = b"%06o\0 " % sum(blocks[place : place + 512])
    return bytes(blocks)


def with_field(first: int, value: bytes, member: int = 0) -> bytes:
    """A tar, one field of a header of which is set."""
    content = bytearray(make_tar(FILES))
    headers = [place for place in range(0, len(content), 512) if content[place + 257 : place + 262] == b"ustar"]
    place = headers[member] + first
    content[place : place + len(value)] = value
    return retarred(bytes(content))


def members(rng: random.Random) -> Iterator[Hostile]:
    """Members that are no files, are sparse, are there twice, or lie about their size."""
    pack = PACKERS.get(rng.choice(("tar", *PACKERS)), bytes)
    for kind in (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        b"Z",
        b"V",
        b"M",
    ):
        for link in ("/etc/passwd", "../beside/file", "top/list.csv", "top/x"):
            info = entry("top/x", 0, kind, link)
            yield Hostile(f"tar with a {kind!r} to {link}", pack(make_tar(FILES, info)))
    info = entry("top/audio2", 0, tarfile.SYMTYPE, "../../beside")
    through = make_tar({}, info)[:512] + make_tar({"top/audio2/file": b"x"} | FILES)
    yield Hostile("tar that writes through its own link", pack(through))
    for mode in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFDIR):
        file = io.BytesIO(make_zip(FILES))
        with zipfile.ZipFile(file, "a") as archive:
            link_info = zipfile.ZipInfo("top/x")
            link_info.external_attr = (mode | 0o777) << 16
            archive.writestr(link_info, "/etc/passwd")
        yield Hostile(f"zip with a member of mode {mode:o}", file.getvalue())
    twice = io.BytesIO(make_zip(FILES))
    with zipfile.ZipFile(twice, "a") as archive:
        archive.writestr("top/./list.csv", b"again")
    yield Hostile("zip with a file twice", twice.getvalue(), FILES | {"top/list.csv": b"again"})
    yield Hostile(
        "tar with a file twice",
        pack(make_tar(FILES | {"./top/list.csv": b"again"})),
        FILES | {"top/list.csv": b"again"},
    )
    numbers = [
        struct.pack(">B3xq", 0x80, 2**62),
        b"\xff" * 12,
        struct.pack(">B3xq", 0xFF, -512),
        b"77777777777\0",
        b"-0000000512\0",
    ]
    numbers += [b"zzzzzzzzzzz\0", b"\0" * 12, b"00000000001\0", b"00000177777\0", b"\x80" + b"\xff" * 11]
    for number in numbers:
        for place in (0, 2):
            lying = pack(with_field(124, number, place))
            yield Hostile(f"tar, member {place} claims {number!r}", lying, FILES, is_loose=True)
    for claimed in ("-1", "0", "1", "99999999999", "1" * 5000, "x", "1e9", " 5", "٣"):
        lying = pack(make_tar(FILES, pax(size=claimed), form=tarfile.PAX_FORMAT))
        yield Hostile(f"tar with PAX size {claimed[:20]}", lying, FILES | {"top/x": b""}, is_loose=True)
    for headers in (
        {"GNU_sparse_major": "1", "GNU_sparse_minor": "0", "GNU_sparse_realsize": "9" * 15},
        {"GNU_sparse_map": "0,1,99999999999,1", "GNU_sparse_size": "9" * 15, "GNU_sparse_numblocks": "2"},
        {"GNU_sparse_map": "-5,10", "GNU_sparse_size": "100", "GNU_sparse_numblocks": "1"},
        {"GNU_sparse_map": "0,x", "GNU_sparse_size": "-100"},
        {"GNU_sparse_size": "1000000000"},
        {"hdrcharset": "BINARY", "path": "../out"},
        {"path": "/out"},
        {"linkpath": "x" * 10**6, "path": "top/../../out"},
        {"path": "x/" * 100_000 + "y"},
        {"comment": "x" * 20_000_000, "path": "../out"},
    ):
        lying = pack(make_tar(FILES, pax(**headers), form=tarfile.PAX_FORMAT))
        right = None if "path" in headers else FILES | {"top/x": b""}
        yield Hostile(f"tar with {str(headers)[:100]}", lying, right, is_loose=True)
    for kind in (
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.GNUTYPE_SPARSE,
    ):
        for size in (b"77777777777\0", b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7, b"\xff" * 12, b"00000000000\0"):
            header = bytearray(with_field(124, size))
            header[156:157] = kind
            yield Hostile(f"tar with {kind!r} of {size!r}", pack(retarred(bytes(header))), FILES, is_loose=True)
    yield Hostile(
        "tar with GNU names after names", pack(make_tar({}, *[entry("x" * 200, 0, b"L")] * 3000) + make_tar(FILES))
    )


def zips(rng: random.Random) -> Iterator[Hostile]:
    """Zips whose directory does not fit their content."""
    content = make_zip(FILES)
    central, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")

    def patched(place: int, form: str, value: int) -> bytes:
        return content[:place] + struct.pack(form, value) + content[place + struct.calcsize(form) :]

    fields = {"version": (6, "<H"), "flags": (8, "<H"), "method": (10, "<H"), "crc": (16, "<I"), "packed": (20, "<I")}
    fields |= {"size": (24, "<I"), "name": (28, "<H"), "extra": (30, "<H"), "comment": (32, "<H"), "offset": (42, "<I")}
    for name, (place, form) in fields.items():
        most = 2 ** (8 * struct.calcsize(form)) - 1
        for value in (0, 1, 9, 14, 99, most // 2, most):
            lie = patched(central + place, form, value)
            # Flags may be hints, and the first member is at offset 0; what is read must be right.
            yield Hostile(f"zip, {name} {value}", lie, FILES)
            if name in ("flags", "method"):
                both = lie[: place - 2] + struct.pack(form, value) + lie[place - 2 + struct.calcsize(form) :]
                yield Hostile(f"zip, {name} {value} in both places", both, FILES)
    ends = {
        "entries here": (8, "<H"),
        "entries": (10, "<H"),
        "bytes": (12, "<I"),
        "offset": (16, "<I"),
        "comment": (20, "<H"),
    }
    for name, (place, form) in ends.items():
        most = 2 ** (8 * struct.calcsize(form)) - 1
        for value in (0, 1, 2, most // 2, most):
            yield Hostile(f"zip, at its end {name} {value}", patched(end + place, form, value), FILES)
    for at, count, size in ((2**63, 4, 9), (0, 2**63, 2**40), (end, 2**32, 2**63 - 1), (central, 4, end - central)):
        directory = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, at)
        locator = b"PK\6\7" + struct.pack("<IQI", 0, rng.choice((end, 2**63, 0)), 1)
        last = content[end : end + 8] + b"\xff" * 12 + b"\0\0"
        yield Hostile(f"zip with Zip64 claims of {count} at {at}", content[:end] + directory + locator + last, FILES)
    yield Hostile("two zips", make_zip({"other/x": b"x"}) + content, FILES)
    yield Hostile("a zip after a program", b"#!/bin/sh\n" * 50 + content, FILES)
    overlap = bytearray(make_zip({f"f{number}": bytes(900_000) for number in range(3)}))
    places = [place for place in range(len(overlap) - 4) if overlap[place : place + 4] == b"PK\1\2"]
    for place in places:
        overlap[place + 42 : place + 46] = bytes(4)
    yield Hostile("zip whose members overlap", bytes(overlap))


def bombs(rng: random.Random) -> Iterator[Hostile]:
    """Small archives of much, or of many."""

    def many(kind: str, count: int, content: bytes = b"", ending: str = "") -> Callable[[], bytes]:
        return lambda: made(kind, FILES | {f"x{number}{ending}": content for number in range(count)})

    for kind in ("zip", "tar.gz", "tar.bz2", "tar.xz"):
        yield Hostile(f"{kind} of 30 MB", many(kind, 1, bytes(30_000_000)))
        yield Hostile(f"{kind} of 20 x 100 kB", many(kind, 20, bytes(100_000)))
        yield Hostile(f"{kind} of 1,000 empty files", many(kind, 1000))
        yield Hostile(f"{kind} of 1,000 folders", many(kind, 1000, ending="/"))
        yield Hostile(f"{kind} of 6,000 folders for 150 files", many(kind, 150, ending="/d" * 40 + "/x"))
        inner = made(kind, {"x": bytes(3_000_000)})
        yield Hostile(f"{kind} in a {kind}", made(kind, {f"top/inner.{kind}": inner}), {f"top/inner.{kind}": inner})
    size = 30_000_000
    lie = [struct.pack("<I", number) for number in (size, 10)]
    yield Hostile("zip of 30 MB that claims 10 bytes", lambda: make_zip({"x": bytes(size)}).replace(*lie))
    yield Hostile("zip of 50,000 empty files", many("zip stored", 50_000))
    yield Hostile("tar.gz of 50,000 empty files", many("tar.gz", 50_000))
    folders = partial(entry, kind=tarfile.DIRTYPE)
    yield Hostile(
        "tar.gz of 50,000 folders",
        lambda: gzip.compress(make_tar(FILES, *(folders(f"x{number}") for number in range(50_000)))),
    )
    yield Hostile("gzip of 200 MB that is no tar", lambda: gzip.compress(bytes(200_000_000), 1))
    start, nothing = gzip.compress(make_tar(FILES)), gzip.compress(bytes(10**6))
    yield Hostile("tar.gz followed by 500 MB of nothing", start + nothing * 500, FILES)
    yield Hostile("gzip in gzip", gzip.compress(start))


def hostile(rng: random.Random, common: Path) -> Iterator[Case]:
    """All that is made by hand."""
    while True:
        cases = [case for make in (names, members, zips, bombs) for case in make(rng)]
        rng.shuffle(cases)
        for case in cases:
            yield Case(case.name, case.run)


def nothing_like_it(rng: random.Random, common: Path) -> Iterator[Case]:
    """Other files in place of an archive."""
    starts = (
        b"",
        b"PK\3\4",
        b"PK\5\6" + bytes(18),
        b"\x1f\x8b\x08\0",
        b"BZh9",
        b"\xfd7zXZ\0",
        b"7z\xbc\xaf'\x1c",
        b"Rar!",
    )
    while True:
        for start in starts:
            content = start + rng.choice((b"", bytes(20_000), rng.randbytes(rng.randrange(3000)), b"<html></html>"))
            yield Case(f"noise after {start!r}, {len(content)} bytes", Hostile("noise", content).run)


ATTACKS = [
    Attack(
        "damaged archives",
        "bits flipped, pieces cut, zeroed or doubled in zip, tar, gzip, bzip2 and xz",
        damaged,
        2,
        300,
    ),
    Attack(
        "hostile archives", "paths that lead out, links, devices, bombs, lies about sizes and numbers", hostile, 2, 300
    ),
    Attack("not archives", "other files and noise in place of an archive", nothing_like_it, 2, 100),
]
