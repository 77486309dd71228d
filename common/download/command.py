"""Download data sets and the AudioSep weights: python -m common.download esc50 (or without a name, for the list)."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from common.datasets import DatasetNote
from common.download.fetch import DownloadError, differs, fetch, remove_notes
from common.download.unpack import remove_unpacked_leftovers, unpack
from common.files import PROJECT_ROOT, exclusive, sha256_of
from common.flags import Parser, user_path

ARCHIVES = Path(__file__).with_name("archives.yaml")
WEIGHTS_FOLDER = PROJECT_ROOT / "pretrained_models" / "AudioSep"
HUGGING_FACE = "https://huggingface.co"
DONE = "there"  # the state of an archive whose files are all in place


@dataclass(frozen=True)
class Archive:
    """One file to download, as archives.yaml describes it; `into` is the folder below the root to unpack it into."""

    file: str
    url: str
    size: int | None = None
    about: int | None = None
    checksum: str | None = None
    part: str = ""
    into: str = ""
    may_change: bool = False
    optional: bool = False
    unpacked: int = 0
    holds: dict[str, int] = field(default_factory=dict)

    @property
    def resolved_url(self) -> str:
        """The URL; if it is Hugging Face's, at the mirror that HF_ENDPOINT names."""
        mirror = os.environ.get("HF_ENDPOINT", "").rstrip("/")
        if mirror and self.url.startswith(HUGGING_FACE + "/"):
            return mirror + self.url.removeprefix(HUGGING_FACE)
        return self.url

    @property
    def most_bytes(self) -> int | None:
        """The limit on its size, where only about that is known."""
        return None if self.about is None else 2 * self.about + 100_000_000

    @property
    def most_files(self) -> int:
        """The limit on the number of files in it: there may be more than those that are counted, such as a README."""
        return 2 * sum(self.holds.values()) + 10_000

    def found(self, root: Path) -> dict[str, int]:
        """How many files of each kind in `holds` exist."""
        return {
            pattern: sum(1 for path in (root / self.into).glob(pattern) if not path.name.startswith("."))
            for pattern in self.holds
        }

    def lacks(self, root: Path) -> list[str]:
        """Which kinds of files are incomplete, in words. Extra files are left to the doctor."""
        return [
            f"{found:,} instead of {self.holds[pattern]:,} {pattern}"
            for pattern, found in self.found(root).items()
            if found < self.holds[pattern]
        ]

    def is_done(self, root: Path) -> bool:
        """Whether all its files are in place."""
        return not self.lacks(root) if self.holds else (root / self.file).is_file()

    def state(self, root: Path) -> str:
        """How much of it is there, in a word or two."""
        if self.is_done(root):
            return DONE
        if (root / self.file).is_file():
            return "to unpack"
        part = root / f"{self.file}.part"
        return f"{_bytes(part.stat().st_size)} there" if part.is_file() else "missing"

    def needs(self, root: Path) -> int:
        """Disk space in bytes that an unfinished archive still needs, as far as its size is known."""
        part = root / f"{self.file}.part"
        here = part.stat().st_size if part.is_file() else 0
        return self.unpacked + (0 if (root / self.file).is_file() else max(0, (self.size or self.about or 0) - here))


@dataclass(frozen=True)
class Source:
    """A data set, or the weights: an entry of archives.yaml."""

    title: str
    licence: str
    archives: list[Archive]


_SOURCES = TypeAdapter(dict[str, Source])


@cache
def _read_sources(archives: Path) -> dict[str, Source]:
    return _SOURCES.validate_python(yaml.safe_load(archives.read_text(encoding="utf-8")))


def main(argv: Sequence[str] | None = None, archives: Path = ARCHIVES) -> None:
    """The command; `archives` is the table of known archives."""
    sources = _read_sources(archives)
    parser = Parser(__doc__, prog="python -m common.download")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(sources))
    parser.add_argument(
        "--root",
        type=user_path,
        metavar="FOLDER",
        help="folder to use (default: data; weights: pretrained_models/AudioSep)",
    )
    parser.add_argument("--only", metavar="PART", help="only this part of a data set, as --list names it")
    parser.add_argument("--list", action="store_true", help="list everything, its size and how much of it is here")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, and stop")
    given = parser.parse_args(argv)
    unknown = [name for name in given.names if name not in sources]
    if unknown:
        parser.error(f"{unknown[0]} is unknown; choose from {', '.join(sources)}")
    every = given.list or not given.names
    plan = [
        (name, _root(name, given.root), _archives(sources[name], given.only, every)) for name in given.names or sources
    ]
    for name, root, wanted in plan:
        _show(name, sources[name], root, wanted, every)
    if every or given.dry_run:
        return
    for _, root, wanted in plan:
        for archive in wanted:
            try:
                with exclusive(root / f".{archive.file}.lock", str(root / archive.file)):
                    get(archive, root)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    "interrupted; what was received is kept, and the same command continues"
                ) from None


def get(archive: Archive, root: Path) -> None:
    """Download one archive, check it, and unpack it below `root`; what is already there is used.

    Raises:
        DownloadError: it cannot be downloaded, or is not the expected file.
        UnpackError: it is damaged or malicious.
    """
    path, folder = root / archive.file, root / archive.into
    remove_unpacked_leftovers(path, folder)
    if archive.holds and archive.is_done(root):
        if path.exists():
            remove_notes(path)
        print(f"{archive.file}: unpacked already in {folder}")
        return
    _refuse_a_full_disk(archive, root)
    was_there, difference = path.exists(), ""
    if was_there:
        remove_notes(path)
    else:
        checksum = None if archive.may_change else archive.checksum
        fetch(archive.resolved_url, path, checksum, archive.size, most=archive.most_bytes)
    if archive.checksum is None:
        print(f"{path}: no checksum is published for it; its sha256 is {sha256_of(path)}")
    elif (was_there or archive.may_change) and (difference := differs(path, archive.checksum)):
        if not archive.may_change:
            raise DownloadError(
                f"{path} already exists, but {difference}: move it away or delete it, and run the same command again"
            )
        warnings.warn(
            f"{path}: {difference}; its host may change it, so the unpacked files are checked instead",
            DatasetNote,
            stacklevel=2,
        )
    if not archive.holds:
        print(f"{path}: there and verified" if archive.checksum and not difference else f"{path}: there")
        return
    files = unpack(path, folder, max_bytes=2 * archive.unpacked + 100_000_000, max_files=archive.most_files)
    if lacks := archive.lacks(root):
        raise DownloadError(f"{path} was unpacked into {folder}, which now holds {', '.join(lacks)}: is it complete?")
    print(f"{files:,} files -> {folder}; {path} ({_bytes(path.stat().st_size)}) is no longer needed")


def _root(name: str, given: Path | None) -> Path:
    if given is not None:
        try:
            return given.expanduser().absolute()
        except RuntimeError as error:
            raise DownloadError(f"--root {given}: {error}") from error
    return WEIGHTS_FOLDER if name == "weights" else PROJECT_ROOT / "data"


def _archives(source: Source, only: str | None, every: bool) -> list[Archive]:
    """The chosen archives: those of the named part, or all that are not optional."""
    archives = source.archives
    if every or only is None:
        return [archive for archive in archives if every or not archive.optional]
    chosen = [archive for archive in archives if archive.part == only]
    if not chosen:
        parts = ", ".join(archive.part for archive in archives if archive.part)
        raise DownloadError(
            f"{source.title} has no part {only}; " + (f"its parts are {parts}" if parts else "it is one")
        )
    return chosen


def _show(name: str, source: Source, root: Path, wanted: list[Archive], every: bool) -> None:
    """Print what would be downloaded: URL, size, licence, target, and the free space there."""
    free = shutil.disk_usage(_existing(root)).free
    print(f"{name}: {source.title}; licence: {source.licence}")
    states = [archive.state(root) for archive in wanted]
    for archive, state in zip(wanted, states, strict=True):
        estimate = "size unknown" if archive.about is None else f"about {_bytes(archive.about)}"
        size = estimate if archive.size is None else _bytes(archive.size)
        unpacked = f", about {_bytes(archive.unpacked)} unpacked" if archive.unpacked else ""
        part = f"--only {archive.part}: " if archive.part and every else ""
        print(f"  {part}{archive.resolved_url}")
        print(f"    {size}{unpacked}; {state} -> {root / archive.file}")
    needed = sum(archive.needs(root) for archive, state in zip(wanted, states, strict=True) if state != DONE)
    print(f"  still needs about {_bytes(needed)}; {_bytes(free)} are free in {_existing(root)}\n")


def _refuse_a_full_disk(archive: Archive, root: Path) -> None:
    needed, free = archive.needs(root), shutil.disk_usage(_existing(root)).free
    if needed > free:
        raise DownloadError(
            f"{archive.file} needs about {_bytes(needed)}, and only {_bytes(free)} are free in {_existing(root)}; "
            "make room, or give another place with --root"
        )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _bytes(number: float) -> str:
    """A human-readable size, in powers of 1,000."""
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
