"""Download data sets and the AudioSep weights; without a name, list them."""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import yaml
from pydantic import TypeAdapter
from tqdm import tqdm

from common.datasets import DatasetNote
from common.download.fetch import DownloadError, fetch
from common.download.unpack import remove_leftovers, unpack
from common.files import PROJECT_ROOT, exclusive
from common.flags import Parser, user_path
from common.progress import progress_bar

ARCHIVES = Path(__file__).with_name("archives.yaml")
_text = partial(tqdm.format_sizeof, suffix="B")
HUGGING_FACE = "https://huggingface.co"


@dataclass(frozen=True)
class Archive:
    """One file to download; archives.yaml explains the fields."""

    file: str
    url: str
    size: int = 0  # unknown
    checksum: str = ""
    part: str = ""
    into: str = ""
    may_change: bool = False
    optional: bool = False
    unpacked: int = 0
    holds: dict[str, int] = field(default_factory=dict)
    pieces: dict[str, str] = field(default_factory=dict)

    @property
    def resolved_url(self) -> str:
        mirror = os.environ.get("HF_ENDPOINT", "").rstrip("/")
        return self.url.replace(HUGGING_FACE, mirror or HUGGING_FACE)

    @property
    def as_files(self) -> list[Archive]:
        """The pieces of a split zip, the last of which is the archive itself; of others only that."""
        urls = {name: self.url.replace(self.file, name) for name in self.pieces}
        before = [replace(self, file=name, url=urls[name], checksum=self.pieces[name], pieces={}) for name in urls]
        return [*before, self]

    def missing(self, root: Path) -> list[str]:
        counts = [(len(list((root / self.into).glob(kind))), most, kind) for kind, most in self.holds.items()]
        return [f"{count:,} instead of {most:,} {kind}" for count, most, kind in counts if count < most]

    def needed_bytes(self, root: Path) -> int:
        """Disk space still needed, as far as sizes are known; 0 if everything is in place."""
        missing, names = self.missing(root), [file.file for file in self.as_files]
        if all((root / name).exists() for name in names) or (self.holds and not missing):
            return self.unpacked if missing else 0
        paths = [root / f"{name}{suffix}" for name in names for suffix in ("", ".part")]
        received = sum(path.stat().st_size for path in paths if path.exists())
        return self.unpacked + max(1, self.size - received)


@dataclass(frozen=True)
class Source:
    """A data set, or the weights: an entry of archives.yaml."""

    title: str
    licence: str
    archives: list[Archive]


def main(argv: Sequence[str] | None = None, archives: Path = ARCHIVES) -> None:
    """The command; `archives` is the table of known archives."""
    content = yaml.safe_load(archives.read_text(encoding="utf-8"))
    sources = TypeAdapter(dict[str, Source]).validate_python(content)
    parser = Parser(__doc__, prog="python -m common.download")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(sources))
    folder = "folder to use (default: data; weights: pretrained_models/AudioSep)"
    parser.add_argument("--root", type=user_path, metavar="FOLDER", help=folder)
    parser.add_argument("--only", metavar="PART", help="only this part, as --list names it")
    parser.add_argument("--list", action="store_true", help="list all parts and what they need")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, and stop")
    flags = parser.parse_args(argv)
    for name in flags.names:
        if name not in sources:
            parser.error(f"{name} is unknown; choose from {', '.join(sources)}")
    is_list = flags.list or not flags.names
    plan = []
    for name in flags.names or sources:
        default = "pretrained_models/AudioSep" if name == "weights" else "data"
        root = (flags.root or PROJECT_ROOT / default).absolute()
        source = sources[name]
        chosen = [
            row
            for row in source.archives
            if is_list or (row.part == flags.only if flags.only is not None else not row.optional)
        ]
        if not chosen:
            raise DownloadError(f"{source.title} has no part {flags.only}; --list names the parts")
        print(f"{source.title}; licence: {source.licence}")
        for archive in chosen:
            needed = archive.needed_bytes(root)
            sizes = f"{_text(archive.size) if archive.size else 'unknown size'}, {_text(archive.unpacked)} unpacked"
            state = f"needs {_text(needed)}" if needed else "in place"
            print(f"  {archive.part or archive.file}: {archive.resolved_url}")
            print(f"    {sizes}; {state} -> {root / archive.file}")
        existing = next(path for path in (root, *root.parents) if path.is_dir())
        print(f"  {_text(shutil.disk_usage(existing).free)} are free in {existing}\n")
        plan += [(archive, root) for archive in chosen]
    if is_list or flags.dry_run:
        return
    for archive, root in plan:
        with exclusive(root / f".{archive.file}.lock", str(root / archive.file)):
            get(archive, root)


def get(archive: Archive, root: Path) -> None:
    """Download an archive, verify it, and unpack it below `root`, except what is in place."""
    path, folder = root / archive.file, root / archive.into
    remove_leftovers(path, folder)
    needed, free = archive.needed_bytes(root), shutil.disk_usage(root).free
    if archive.holds and not needed:
        return
    if needed > free:
        room = f"needs about {_text(needed)}, and only {_text(free)} are free in {root}"
        raise DownloadError(f"{archive.file} {room}; make room, or use another --root")
    for file in archive.as_files:
        complete, part = root / file.file, root / f"{file.file}.part"
        if complete.exists():
            _verify(file, complete)
        else:
            fetch(file.resolved_url, part)
            _verify(file, part)
            part.replace(complete)
    if archive.holds:
        pieces = [root / name for name in archive.pieces]
        unpack(path, folder, pieces)
        if missing := ", ".join(archive.missing(root)):
            raise DownloadError(f"{path} was unpacked, but is incomplete: {folder} holds {missing}")
        print(f"unpacked into {folder}; no longer needed: {', '.join(map(str, [*pieces, path]))}")


def _verify(archive: Archive, path: Path) -> None:
    """DownloadError if a file has a different checksum; only a note if its host may change the file."""
    algorithm, _, expected = (archive.checksum or "sha256:").partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    bar = progress_bar(total=path.stat().st_size, desc=f"checking {path.name}", unit="B", unit_scale=True)
    with path.open("rb") as file, bar:
        while block := file.read(1 << 22):
            digest.update(block)
            bar.update(len(block))
    result = f"{path}: its {algorithm} is {digest.hexdigest()}"
    if digest.hexdigest() == expected:
        print(f"{path}: verified")
    elif not expected:
        print(f"{result}; no checksum is published")
    elif archive.may_change:
        note = f"{result}, not {expected}; its host may change it, so its files are counted instead"
        warnings.warn(note, DatasetNote, stacklevel=2)
    else:
        raise DownloadError(f"{result}, not {expected}; delete it, and run the same command again")
