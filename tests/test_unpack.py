"""Archives that are what they should be, damaged ones, and hostile ones: nothing of those stays."""

from __future__ import annotations

import errno
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from common.download.unpack import UnpackError, unpack

Make = Callable[[Path, dict[str, bytes]], Path]
FILES = {"top/audio/a.wav": b"a" * 5000, "top/audio/b.wav": b"b" * 70_000, "top/list.csv": b"x,y\n"}
MOST = 100
LIMIT = 1_000_000


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], special: Sequence[tarfile.TarInfo] = ()) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in special:
            archive.addfile(info)
    return path


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def present(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_every_file_lands_in_its_place(make: Make, prefix: str, tmp_path: Path) -> None:
    archive = make(tmp_path / "archive", {prefix + name: content for name, content in FILES.items()})
    folder = tmp_path / "data"
    assert unpack(archive, folder, LIMIT, MOST) == 3
    assert present(folder) == FILES
    assert [path.name for path in folder.iterdir()] == ["top"]


def test_folders_of_one_name_become_one(tmp_path: Path) -> None:
    unpack(make_tar(tmp_path / "a", FILES), tmp_path / "data", LIMIT, MOST)
    unpack(make_tar(tmp_path / "b", {"top/list.csv": b"new", "top/more/c.wav": b"c"}), tmp_path / "data", LIMIT, MOST)
    assert present(tmp_path / "data") == FILES | {"top/list.csv": b"new", "top/more/c.wav": b"c"}


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "data" / ".unpacking.a" / "top"
    left.mkdir(parents=True)
    unpack(make_zip(tmp_path / "a", FILES), tmp_path / "data", LIMIT, MOST)
    assert not left.exists()


NAMES_THAT_LEAD_OUT = ["../out", "top/../../out", "/out", "C:\\out", "C:out", "..\\out", "top\\..\\..\\out"]


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", NAMES_THAT_LEAD_OUT)
def test_no_path_leads_out(make: Make, name: str, tmp_path: Path) -> None:
    archive = make(tmp_path / "archive", {"top/fine": b"1", name: b"2"})
    before = set(tmp_path.rglob("*")) | {tmp_path / "data"}
    with pytest.raises(UnpackError, match=r"leads out of the folder; .* nothing was unpacked"):
        unpack(archive, tmp_path / "data", LIMIT, MOST)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "info",
    [
        member("top/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("top/link", tarfile.SYMTYPE, "fine"),
        member("top/hard", tarfile.LNKTYPE, "top/fine"),
        member("top/pipe", tarfile.FIFOTYPE),
        member("top/device", tarfile.CHRTYPE),
        member("top/disk", tarfile.BLKTYPE),
    ],
    ids=lambda info: info.name + info.linkname,
)
def test_no_links_and_no_devices(info: tarfile.TarInfo, tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "archive", {"top/fine": b"1"}, [info])
    with pytest.raises(UnpackError, match="is a link or a device"):
        unpack(archive, tmp_path / "data", LIMIT, MOST)
    assert list((tmp_path / "data").iterdir()) == []


def test_no_links_in_a_zip(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "archive", {"top/fine": b"1"})
    with zipfile.ZipFile(archive, "a") as opened:
        info = zipfile.ZipInfo("top/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(info, "/etc/passwd")
    with pytest.raises(UnpackError, match="is a link or a device"):
        unpack(archive, tmp_path / "data", LIMIT, MOST)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("files", [{"one": bytes(2_000_000)}, {f"file{i}": bytes(200_000) for i in range(10)}])
def test_no_more_than_announced(make: Make, files: dict[str, bytes], tmp_path: Path) -> None:
    archive = make(tmp_path / "bomb", files)
    assert archive.stat().st_size < 20_000
    with pytest.raises(UnpackError, match="holds more than the 1,000,000 bytes that it may"):
        unpack(archive, tmp_path / "data", LIMIT, MOST)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("number", [101, 201])
def test_no_more_files_than_announced(number: int, make: Make, tmp_path: Path) -> None:
    """Not even empty ones."""
    archive = make(tmp_path / "archive", {f"{each}.wav": b"" for each in range(number)})
    with pytest.raises(UnpackError, match=r"holds more than the [12]00 entries that it may"):
        unpack(archive, tmp_path / "data", LIMIT, MOST)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_zip_that_lies_about_its_sizes(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "bomb", {"one": bytes(2_000_000)})
    # The size stands in the local header and in the directory.
    archive.write_bytes(archive.read_bytes().replace((2_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(UnpackError, match="is damaged"):
        unpack(archive, tmp_path / "data", LIMIT, MOST)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.9, -1])
def test_what_is_cut_short_is_refused(make: Make, keep: float, tmp_path: Path) -> None:
    noise = {f"file{i}": np.random.default_rng(i).bytes(20_000) for i in range(5)}
    whole = make(tmp_path / "archive", noise).read_bytes()
    (tmp_path / "archive").write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(UnpackError, match=r"is damaged \(.*\); delete it and get it again"):
        unpack(tmp_path / "archive", tmp_path / "data", LIMIT, MOST)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_flipped_bit_is_noticed(make: Make, tmp_path: Path) -> None:
    archive = make(tmp_path / "archive", {"one": np.random.default_rng(0).bytes(50_000)})
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 16
    archive.write_bytes(content)
    with pytest.raises(UnpackError, match="is damaged"):
        unpack(archive, tmp_path / "data", LIMIT, MOST)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_web_page_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "archive.zip").write_text("<html>please sign in</html>")
    with pytest.raises(UnpackError, match="is damaged"):
        unpack(tmp_path / "archive.zip", tmp_path / "data", LIMIT, MOST)


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_an_empty_archive(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UnpackError, match="holds no files"):
        unpack(make(tmp_path / "archive", {}), tmp_path / "data", LIMIT, MOST)


@pytest.mark.parametrize("size", [-512, -513])
def test_negative_sizes(size: int, tmp_path: Path) -> None:
    info = tarfile.TarInfo("two")
    info.size = size
    whole = make_tar(tmp_path / "archive", {"one": b"1"})
    with tarfile.open(whole) as opened:
        one = opened.getmember("one").tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "archive").write_bytes(one + b"1".ljust(512, b"\0") + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(UnpackError, match=r"has a negative size|is damaged"):
        unpack(tmp_path / "archive", tmp_path / "data", LIMIT, MOST)


@pytest.mark.parametrize("suffix", ["xz", "bz2", "gz"])
def test_damage_in_every_compression(suffix: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "archive", f"w:{suffix}") as archive:
        info = tarfile.TarInfo("one")
        info.size = 50_000
        archive.addfile(info, io.BytesIO(np.random.default_rng(0).bytes(50_000)))
    whole = (tmp_path / "archive").read_bytes()
    for place in range(100, len(whole), len(whole) // 7):
        content = bytearray(whole)
        content[place] ^= 255
        (tmp_path / "archive").write_bytes(content)
        with pytest.raises(UnpackError, match="is damaged"):
            unpack(tmp_path / "archive", tmp_path / "data", LIMIT, MOST)
    assert list((tmp_path / "data").iterdir()) == []


def test_names_of_damaged_bytes_and_of_nothing(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "archive", {"tön.wav": b"1"})
    archive.write_bytes(archive.read_bytes().replace("ö".encode(), b"\xff\xfe"))
    with pytest.raises(UnpackError, match="is damaged"):
        unpack(archive, tmp_path / "data", LIMIT, MOST)
    with pytest.raises(UnpackError, match="is not a file name"):
        unpack(make_tar(tmp_path / "archive", {".": b"1"}), tmp_path / "data", LIMIT, MOST)


@pytest.mark.parametrize(("there", "packed"), [("top/a/b", "top/a"), ("top/a", "top/a/b")])
def test_files_and_folders_do_not_replace_each_other(there: str, packed: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / there).parent.mkdir(parents=True)
    (data / there).write_bytes(b"mine")
    archive = make_tar(tmp_path / "archive", {"first": b"1", packed: b"2"})
    with pytest.raises(UnpackError, match="would replace what is there"):
        unpack(archive, data, LIMIT, MOST)
    assert present(data) == {there: b"mine"}


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "archive", {"a": b"1", "a/b": b"2"})
    with pytest.raises(UnpackError, match=r"archive cannot be unpacked into .*data: "):
        unpack(archive, tmp_path / "data", LIMIT, MOST)
    with pytest.raises(UnpackError, match=r"cannot be unpacked into .* name too long"):
        unpack(make_tar(tmp_path / "archive", {"a" * 300: b"1"}), tmp_path / "data", LIMIT, MOST)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_folder_on_another_disk_gets_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def on_another_disk(path: Path, target: Path) -> Path:
        if ".unpacking." in str(path):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", on_another_disk)
    unpack(make_tar(tmp_path / "archive", FILES), tmp_path / "data", LIMIT, MOST)
    assert present(tmp_path / "data") == FILES
