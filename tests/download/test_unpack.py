"""Archives that are as they should be, damaged ones, of which nothing stays, and unsafe ones."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from common.download.unpack import UnpackError, unpack
from tests.support.archives import contents, make_tar, make_zip

Make = Callable[[Path, dict[str, bytes]], Path]
FILES = {"top/audio/a.wav": b"a" * 5000, "top/audio/b.wav": b"b" * 70_000, "top/list.csv": b"x,y\n"}


def refused(archive: Path, match: str) -> None:
    """The archive is refused with this message, and leaves nothing anywhere."""
    before = set(archive.parent.rglob("*")) | {archive.parent / "data"}
    with pytest.raises(UnpackError, match=match):
        unpack(archive, archive.parent / "data")
    assert set(archive.parent.rglob("*")) == before


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_every_file_gets_to_its_place(make: Make, prefix: str, tmp_path: Path) -> None:
    archive = make(tmp_path / "archive", {prefix + name: FILES[name] for name in FILES})
    unpack(archive, tmp_path / "data")
    assert contents(tmp_path / "data") == FILES


def test_folders_of_the_same_name_are_merged(tmp_path: Path) -> None:
    unpack(make_tar(tmp_path / "a", FILES), tmp_path / "data")
    more = {"top/list.csv": b"new", "top/more/c.wav": b"c"}
    unpack(make_tar(tmp_path / "b", more), tmp_path / "data")
    assert contents(tmp_path / "data") == FILES | more


def test_nothing_appears_before_all_is_read(tmp_path: Path) -> None:
    (tmp_path / "data" / ".unpacking.archive" / "top").mkdir(parents=True)  # of a killed run
    archive, extract = make_zip(tmp_path / "archive", FILES), zipfile.ZipFile.extract

    def checked(*arguments: object) -> object:
        assert {path.name for path in (tmp_path / "data").iterdir()} == {".unpacking.archive"}
        return extract(*arguments)

    with mock.patch.object(zipfile.ZipFile, "extract", checked):
        unpack(archive, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["top"]


OUTSIDE = ["../out", "top/../../out", "/out", "a/../../../b"]


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_gets_out_of_the_folder(make: Make, name: str, tmp_path: Path) -> None:
    archive = make(tmp_path / "archive", {"top/fine": b"1", name: b"2"})
    with contextlib.suppress(UnpackError):
        unpack(archive, tmp_path / "data")
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "data"}
    assert not Path("/out").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../archive"])
def test_links_out_of_the_folder_and_devices_are_refused(kind: bytes, target: str, tmp_path: Path) -> None:
    for type_ in (kind, tarfile.FIFOTYPE):
        info = tarfile.TarInfo("top/special")
        info.type, info.linkname = type_, target
        with tarfile.open(tmp_path / "archive", "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("top/fine"))
            archive.addfile(info)
        refused(tmp_path / "archive", "is damaged .*top/special")


def test_a_link_in_a_zip_becomes_a_file(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("top/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = make_zip(tmp_path / "archive", {})
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(info, "/etc/passwd")
    unpack(archive, tmp_path / "data")
    assert not (tmp_path / "data" / "top" / "link").is_symlink()


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.9999])
def test_a_cut_archive_is_refused(make: Make, share: float, tmp_path: Path) -> None:
    noise = {f"{seed}.wav": np.random.default_rng(seed).bytes(20_000) for seed in range(5)}
    archive = make(tmp_path / "archive", noise)
    os.truncate(archive, int(share * archive.stat().st_size))
    refused(archive, r"is damaged \(.*\); delete it and get it again")


@pytest.mark.parametrize("compression", ["gz", "zip"])
def test_a_changed_byte_is_noticed(compression: str, tmp_path: Path) -> None:
    noise, archive = {"a.wav": np.random.default_rng(0).bytes(50_000)}, tmp_path / "archive"
    make_zip(archive, noise) if compression == "zip" else make_tar(archive, noise)
    content = archive.read_bytes()
    for place in range(100, len(content) - 100, len(content) // 7):
        changed = bytes([content[place] ^ 255])
        archive.write_bytes(content[:place] + changed + content[place + 1 :])
        refused(archive, "is damaged")


def test_a_zip_in_pieces_may_have_offsets_of_64_bits(tmp_path: Path) -> None:
    with mock.patch.object(zipfile, "ZIP_FILECOUNT_LIMIT", 1):
        whole = make_zip(tmp_path / "whole.zip", FILES)
    with zipfile.ZipFile(whole) as archive:
        directory = archive.start_dir
    content = bytearray(whole.read_bytes())
    locator, end = len(content) - 42, len(content) - 22
    assert content[locator : locator + 4] == b"PK\6\7"
    (record,) = struct.unpack_from("<Q", content, locator + 8)
    # The second piece begins with the directory, from which its offsets count.
    struct.pack_into("<2LQ", content, record + 16, 1, 1, len(FILES))
    struct.pack_into("<Q", content, record + 48, 0)
    struct.pack_into("<LQL", content, locator + 4, 1, record - directory, 2)
    struct.pack_into("<2H", content, end + 4, 1, 1)
    pieces = [tmp_path / "a.z01", tmp_path / "a.zip"]
    pieces[0].write_bytes(content[:directory])
    pieces[1].write_bytes(content[directory:])
    unpack(pieces[1], tmp_path / "data", pieces[:1])
    assert contents(tmp_path / "data") == FILES
