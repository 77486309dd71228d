"""What is around a run: full disks, clocks, memory, other processes, closed terminals, odd places, decoders that hang."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import extract_clips, write_wav
from stand_in import StandIn

from common import entry
from common.datasets import Clip
from common.extraction import Shard, prefetch
from common.extraction import extract as extract_module
from common.files import OutputError
from tests.torture.harness import Attack, CannotRunError, Case, limit_memory, require, require_same, tree


def _clips(common: Path, count: int = 8) -> list[Clip]:
    root = common / "audio"
    if not root.exists():
        for index in range(count):
            write_wav(root / f"clip{index}.wav", index, 0.05 + 0.01 * index)
    return [Clip(path, "ab"[index % 2]) for index, path in enumerate(sorted(root.glob("*.wav")))]


def _extract(common: Path, output: Path, **options: object) -> None:
    extract_module.SAVE_EVERY_S = -1.0
    extract_clips(_clips(common), common / "audio", StandIn(), output, workers=1, **options)


def _expected(common: Path) -> dict[str, bytes]:
    (common / "whole").mkdir()
    _extract(common, common / "whole" / "features.pt")
    return tree(common / "whole")


def script(main: Callable[[], None], prepare: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Run a function as a script does, in a process of its own; its exit status, and what it said on stderr."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.dup2(writer, 2)
            prepare()
            _new_streams()
            try:
                entry.run(main)
                status = 0
            except SystemExit as stop:
                status = int(stop.code or 0)
        except BaseException:  # noqa: BLE001 - as Python itself would end
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, AttributeError, ValueError):
                sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    said = b""
    while block := os.read(reader, 1 << 16):
        said += block
    os.close(reader)
    _, status = os.waitpid(child, 0)
    ended = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return ended, said.decode(errors="replace")


def _new_streams() -> None:
    """What Python prints to, as a new process has it: the descriptors are others than those that it was started with."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        with contextlib.suppress(OSError):
            os.fstat(number)
            setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))


def require_one_line(status: int, said: str) -> None:
    """Status 0, or 2 with one line of error."""
    errors = [line for line in said.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    require("Traceback" not in said, said[-400:])
    require(status == 0 or (status == 2 and len(errors) == 1), f"status {status}, {len(errors)} lines: {said[-300:]}")


# Full disks


def _mount(folder: Path, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, options.encode()):
        raise CannotRunError("mounting a small file system needs root")


def _full_disks(rng: random.Random, common: Path) -> Iterator[Case]:
    """A file system of a few kilobytes or files; then it has room, and the same command goes on."""
    expected = _expected(common)
    probe = common / "probe"
    probe.mkdir()
    _mount(probe, "size=64k")
    ctypes.CDLL(None).umount2(str(probe).encode(), 2)

    def attack(folder: Path, options: str) -> None:
        libc = ctypes.CDLL(None)
        disk = folder / "disk"
        disk.mkdir()
        _mount(disk, options)
        try:
            status, said = script(lambda: _extract(common, disk / "features.pt"))
            require_one_line(status, said)
            require(
                libc.mount(b"tmpfs", str(disk).encode(), b"tmpfs", 32, b"size=100m,nr_inodes=10000") == 0, "remount"
            )
            status, said = script(lambda: _extract(common, disk / "features.pt"))
            require(status == 0, f"again: status {status}: {said[-300:]}")
            require_same(tree(disk), expected)
        finally:
            libc.umount2(str(disk).encode(), 2)

    while True:
        size = f"size={rng.randint(1, 40) * 4}k,nr_inodes=10000"
        options = size if rng.random() < 0.6 else f"size=100m,nr_inodes={rng.randint(2, 16)}"
        yield Case(options, lambda folder, options=options: attack(folder, options))


# Other processes, clocks, memory


def _two_processes(rng: random.Random, common: Path) -> Iterator[Case]:
    expected = _expected(common)

    def one(output: Path, pause: float, shard: Shard) -> int:
        child = os.fork()
        if not child:
            status = 1
            with contextlib.suppress(BaseException):
                time.sleep(pause)
                try:
                    _extract(common, output, shard=shard)
                    status = 0
                except OutputError:
                    status = 2
            os._exit(status)
        return child

    def attack(folder: Path, pauses: Sequence[float], shards: Sequence[Shard]) -> None:
        children = [one(folder / "features.pt", *each) for each in zip(pauses, shards, strict=True)]
        statuses = [os.WEXITSTATUS(os.waitpid(child, 0)[1]) for child in children]
        require(set(statuses) <= {0, 2}, f"statuses {statuses}")
        _extract(common, folder / "features.pt")
        require_same(tree(folder), expected)

    while True:
        count = rng.randint(2, 5)
        pauses = [rng.uniform(0, 0.1) for _ in range(count)]
        of = rng.choice([1, 1, 2, 3])
        shards = [Shard(rng.randrange(of), of) for _ in range(count)]
        names = ", ".join(map(str, shards))
        yield Case(f"shards {names}", lambda folder, p=pauses, s=shards: attack(folder, p, s))


def _clocks(rng: random.Random, common: Path) -> Iterator[Case]:
    """The clock stands still, or jumps back by years; the run is killed and done again."""
    expected = _expected(common)

    def attack(folder: Path, step_s: float, kill_at: int) -> None:
        def jump() -> None:
            now = [time.time_ns()]

            def clock() -> int:
                now[0] += int(step_s * 1e9)
                return now[0]

            time.time_ns, time.time = clock, lambda: clock() / 1e9

        def killed() -> None:
            slow = StandIn()
            slow.before_call = lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == kill_at else None
            extract_module.SAVE_EVERY_S = -1.0
            extract_clips(_clips(common), common / "audio", slow, folder / "features.pt", workers=1)

        status, said = script(killed, jump)
        require(status in (0, -signal.SIGKILL), f"status {status}: {said[-300:]}")
        status, said = script(lambda: _extract(common, folder / "features.pt"), jump)
        require(status == 0, f"again: status {status}: {said[-300:]}")
        require_same(tree(folder), expected)

    while True:
        step = rng.choice([0.0, -1.0, -3600.0, -1e8, 1e8])
        kill_at = rng.randrange(9)
        yield Case(f"{step} s a call, killed at clip {kill_at}", lambda folder, s=step, k=kill_at: attack(folder, s, k))


def _memory(rng: random.Random, common: Path) -> Iterator[Case]:
    """A long clip among short ones, and not enough memory for it: it fails alone, or the run ends in a line."""
    clips = _clips(common)
    soundfile.write(common / "audio" / "long.wav", np.zeros(32_000 * 600, np.int16), 32_000)
    clips.append(Clip(common / "audio" / "long.wav", "a"))

    def attack(folder: Path, megabytes: int) -> None:
        def main() -> None:
            extract_clips(clips, common / "audio", StandIn(), folder / "features.pt", workers=1)

        status, said = script(main, lambda: limit_memory(megabytes * 1_000_000))
        require_one_line(status, said)
        status, said = script(main)
        require(status == 0 and (folder / "features.pt").exists(), f"again: status {status}: {said[-300:]}")

    while True:
        megabytes = rng.choice([10, 20, 30, 50, 80, 100, 150, 200, 300])
        yield Case(f"{megabytes} MB", lambda folder, m=megabytes: attack(folder, m))


# Terminals and places


def _terminals(rng: random.Random, common: Path) -> Iterator[Case]:
    expected = _expected(common)

    def attack(folder: Path, prepare: Callable[[], None], is_whole: bool) -> None:
        status, said = script(lambda: _extract(common, folder / "features.pt"), prepare)
        require("Traceback" not in said, said[-300:])
        require(status == 0 or (not is_whole and status == 2), f"status {status}: {said[-300:]}")
        if status:
            status, said = script(lambda: _extract(common, folder / "features.pt"))
            require(status == 0, f"again: status {status}: {said[-300:]}")
        require_same(tree(folder), expected)

    def close(*numbers: int) -> Callable[[], None]:
        def prepare() -> None:
            for number in numbers:
                os.close(number)
                setattr(sys, ("stdin", "stdout", "stderr")[number], None)

        return prepare

    def break_pipe(*numbers: int) -> Callable[[], None]:
        def prepare() -> None:
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            for number in numbers:
                reader, writer = os.pipe()
                os.close(reader)
                os.dup2(writer, number)

        return prepare

    def full(number: int) -> Callable[[], None]:
        def prepare() -> None:
            os.dup2(os.open("/dev/full", os.O_WRONLY), number)

        return prepare

    made = {
        "stderr is closed": (close(2), True),
        "stdout is closed": (close(1), True),
        "all are closed": (close(0, 1, 2), True),
        "the reader of stdout has ended": (break_pipe(1), False),
        "the reader of stderr has ended": (break_pipe(2), False),
        "both readers have ended": (break_pipe(1, 2), False),
        "stdout is a full disk": (full(1), False),
        "stderr is a full disk": (full(2), False),
    }
    for name, (prepare, is_whole) in made.items():
        yield Case(name, lambda folder, p=prepare, w=is_whole: attack(folder, p, w))


def _places(rng: random.Random, common: Path) -> Iterator[Case]:
    """Names and kinds of places for the output."""
    expected = _expected(common)["features.pt"]

    def make_socket(path: Path) -> None:
        here = Path.cwd()
        os.chdir(path.parent)  # the names of sockets are short
        socket.socket(socket.AF_UNIX).bind(path.name)
        os.chdir(here)

    kinds: dict[str, Callable[[Path], object]] = {
        "nothing": lambda path: None,
        "a folder": lambda path: path.mkdir(),
        "a pipe": os.mkfifo,
        "a socket": make_socket,
        "a link to a file": lambda path: path.symlink_to(path.parent / "real.pt"),
        "a link to a link": lambda path: (path.parent / "l").symlink_to("real.pt") or path.symlink_to("l"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a link to a folder": lambda path: path.symlink_to(path.parent),
        "a link to nowhere": lambda path: path.symlink_to(path.parent / "no" / "where.pt"),
        "a link to /dev/null": lambda path: path.symlink_to("/dev/null"),
        "a link to /dev/full": lambda path: path.symlink_to("/dev/full"),
        "an empty file": lambda path: path.touch(),
        "another file": lambda path: path.write_bytes(b"mine"),
        "the .partial is a file": lambda path: path.with_name(path.name + ".partial").touch(),
        "the .partial is a link": lambda path: path.with_name(path.name + ".partial").symlink_to(path.parent / "p"),
        "the list of failures is a folder": lambda path: path.with_name(path.name + ".failed.csv").mkdir(),
    }
    names = [
        "features.pt",
        "a b'c\"d.pt",
        "ä☃𝄞.pt",
        "-rf",
        "line\nend.pt",
        os.fsdecode(b"\xff\xfe.pt"),
        "n" * 200,
        "n" * 235,
    ]
    names += ["n" * 245, "n" * 255, "n" * 300, "*?[a].pt", "%s%n{}.pt", "~", "sub/deeper/f.pt"]

    def attack(folder: Path, name: str, kind: str) -> None:
        path = folder / name
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            kinds[kind](path)
        except OSError:
            return  # no such place can be made
        before = path.read_bytes() if os.path.isfile(path) else b""  # noqa: PTH113 - the name may be too long
        for overwrite in (False, True):
            status, said = script(lambda o=overwrite: _extract(common, path, overwrite=o))
            require_one_line(status, said)
            if status == 0:
                require(path.read_bytes() == expected, "another file")
            elif before and not overwrite:
                require(path.read_bytes() == before, "the file that was there is gone")
        left = (
            [] if status else [each for each in folder.rglob("*") if each.name.endswith(".tmp") or "lock" in each.name]
        )
        require(not left, f"left behind: {left[:3]}")

    every = [(name, kind) for name in names for kind in kinds]
    rng.shuffle(every)
    for name, kind in every:
        yield Case(f"{name[:30]!r}, {kind}", lambda folder, n=name, k=kind: attack(folder, n, k))


# Decoders


def _hanging(rng: random.Random, common: Path) -> Iterator[Case]:
    """Some clips never end to be decoded, or kill their thread."""
    clips = _clips(common)
    _extract(common, common / "whole.pt")
    read = prefetch.read_audio

    def attack(folder: Path, hanging: set[Path], workers: int) -> None:
        def read_or_hang(path: Path, *arguments: object) -> object:
            if path in hanging:
                time.sleep(1000)
            return read(path, *arguments)

        def main() -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(prefetch, "DECODE_LIMIT_S", 0.1)
                patch.setattr(prefetch, "read_audio", read_or_hang)
                extract_clips(clips, common / "audio", StandIn(), folder / "features.pt", workers=workers)

        started = time.monotonic()
        status, said = script(main)
        require_one_line(status, said)
        require(time.monotonic() - started < 20, "it waits for the clips that hang")
        ended_early = status == 2 and "3 clips in a row" in said
        require(ended_early or said.count("could not be read within") == len(hanging), said[-300:])
        status, said = script(lambda: _extract(common, folder / "features.pt"))
        require(status == 0, f"again: {said[-300:]}")
        require((folder / "features.pt").read_bytes() == (common / "whole.pt").read_bytes(), "another file")

    while True:
        hanging = {clip.path for clip in clips if rng.random() < 0.4}
        workers = rng.randint(1, 4)
        yield Case(
            f"{len(hanging)} of {len(clips)}, {workers} threads", lambda f, h=hanging, w=workers: attack(f, h, w)
        )


def _few_descriptors(rng: random.Random, common: Path) -> Iterator[Case]:
    """Only a few files may be open at once."""
    expected = _expected(common)

    def attack(folder: Path, most: int) -> None:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

        status, said = script(lambda: _extract(common, folder / "features.pt"), limit)
        require_one_line(status, said)
        status, said = script(lambda: _extract(common, folder / "features.pt"))
        require(status == 0, f"again: status {status}: {said[-300:]}")
        require_same(tree(folder), expected)

    for most in range(3, 40):
        yield Case(f"{most} files", lambda folder, most=most: attack(folder, most))


ATTACKS = [
    Attack(
        "full disks", "a file system with room for a few kilobytes, or a few files; then with room", _full_disks, 1, 100
    ),
    Attack(
        "several processes", "two to five processes, or shards, write one file at the same time", _two_processes, 2, 200
    ),
    Attack("clocks", "a clock that stands still or jumps by years, with a kill between", _clocks, 1, 100),
    Attack("little memory", "a clip of ten minutes where 10 to 300 MB are left", _memory, 1, 40),
    Attack("terminals", "closed streams, readers that have ended, a terminal on a full disk", _terminals, 3, 20),
    Attack(
        "places",
        "names of 1 to 300 letters, links, pipes, sockets and devices in the place of the output",
        _places,
        4,
        240,
    ),
    Attack("hanging decoders", "clips whose decoding never ends", _hanging, 1, 40),
    Attack("few open files", "a limit of 3 to 39 open files", _few_descriptors, 2, 40),
]
