"""Kills, and errors of the file system, at every operation on a file; the same command again must give the same files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_nothing, extract_clips, write_wav
from heads_helpers import grouped_features, saved
from loopback import serving
from stand_in import StandIn

from common import entry
from common.cli import classify_main
from common.datasets import Clip
from common.download.command import Archive, get
from common.extraction import Shard
from common.extraction import extract as extract_module
from common.files import PROJECT_ROOT
from common.heads import HEADS, Job, Recipe, Split, fit_heads
from esc50_feature_fc.esc50 import TASK
from tests.torture.harness import Attack, Case, require, require_same, silence, tree

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
ERRORS = {"disk full": errno.ENOSPC, "input/output error": errno.EIO, "too many open files": errno.EMFILE}
# What a record says of the moment in which it was made.
MOMENTARY = ("seconds", "time", "created", "date")


@dataclass(frozen=True)
class Work:
    """Something that writes files, may be interrupted, and is then done again."""

    name: str
    do: Callable[[Path, Path], None]  # (what is shared, where to write)
    quick: int
    most: int


# The works


def _clips(common: Path) -> list[Clip]:
    """Seven short clips; one cannot be decoded."""
    root = common / "audio"
    if not root.exists():
        for index in range(7):
            write_wav(root / f"clip{index}.wav", index, 0.05 + 0.01 * index)
        (root / "clip3.wav").write_bytes(b"no audio")
    return [Clip(path, "ab"[index % 2], fold=1 + index % 2) for index, path in enumerate(sorted(root.glob("*.wav")))]


def extract_all(common: Path, folder: Path) -> None:
    """An extraction with a chunk for every clip."""
    extract_module.SAVE_EVERY_S = -1.0
    extract_clips(_clips(common), common / "audio", StandIn(), folder / "features.pt", workers=1)


def extract_in_shards(common: Path, folder: Path) -> None:
    """The same in three shards, one after another."""
    extract_module.SAVE_EVERY_S = -1.0
    for index in range(3):
        shard = Shard(index, 3)
        extract_clips(_clips(common), common / "audio", StandIn(), folder / "features.pt", workers=1, shard=shard)


def compile_steps() -> None:
    """Compile the steps of both heads before anything is interrupted: they are kept beside the project, where a case may not
    write."""
    features = grouped_features()
    rows = np.arange(len(features))
    for kind in HEADS:
        fit_heads(kind, features, [Job(Split("all", rows, rows), 0)], Recipe(1, 8, 1e-3), torch.device("cpu"))


def classify_all(common: Path, folder: Path) -> None:
    """A classification of both heads."""
    features = common / "features.pt"
    if not features.exists():
        saved(grouped_features(folds=2), features)
    patch = pytest.MonkeyPatch()
    draw_nothing(patch)
    flags = (
        "--feature-dim",
        24,
        "--device",
        "cpu",
        "--epochs",
        1,
        "--features",
        features,
        "--output-dir",
        folder / "out",
    )
    _main(lambda: classify_main(TASK, [str(flag) for flag in flags]))


def download_all(common: Path, folder: Path) -> None:
    """The download of an archive of six files, checked and unpacked."""
    packed = common / "data.tar.gz"
    if not packed.exists():
        for number in range(6):
            (common / f"{number}.wav").write_bytes(random.Random(number).randbytes(9_000))  # noqa: S311 - no secret
        with tarfile.open(packed, "w:gz") as archive:
            for number in range(6):
                archive.add(common / f"{number}.wav", f"top/{number}.wav")
    with serving() as server:
        server.content = packed.read_bytes()
        get(Archive("data.tar.gz", server.url, into="here", unpacked=60_000, holds={"top/*.wav": 6}), folder)


def _main(main: Callable[[], None]) -> None:
    """A script's main function. What it ends with is looked at where it is done again."""
    status = 0
    try:
        main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    require(status in (0, 2, 130), f"ended with status {status}")
    if status:
        raise OSError(f"ended with status {status}")


WORKS = [
    Work("extraction", extract_all, 2, 160),
    Work("extraction in three shards", extract_in_shards, 1, 200),
    Work("download", download_all, 2, 120),
    Work("classification", classify_all, 1, 100),
]


# Interrupting them


def _hook(folder: Path, act: Callable[[int, str], None]) -> None:
    """Call `act` with the number of each operation that changes something below the folder, before it is done."""
    prefix, count = str(folder), [0]

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in OPERATIONS or not str(arguments[0]).startswith(prefix):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        count[0] += 1
        act(count[0], str(arguments[0]))

    sys.addaudithook(hear)
    sync = os.fsync

    def fsync(handle: int) -> None:
        count[0] += 1
        act(count[0], f"/proc/self/fd/{handle}")
        sync(handle)

    os.fsync = fsync


def forked(function: Callable[[], None]) -> int:
    """Run a function in a fork of its own: 0 if it returned, 2 for an error that a script tells in one line, 1 for any other;
    minus the signal that killed it."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    status = 1
    silence()
    try:
        try:
            entry.run(function)
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
    finally:
        os._exit(status)


def _count_operations(work: Work, common: Path, folder: Path) -> int:
    noted = common / f"{work.name}.count"

    def count() -> None:
        _hook(folder, lambda number, path: noted.write_text(str(number)))
        work.do(common, folder)

    assert forked(count) == 0, work.name
    return int(noted.read_text())


def _interrupted(work: Work, common: Path, expected: dict[str, bytes], kind: str, numbers: list[int]) -> Case:
    """The work, interrupted at these of its operations, in one run after another; then done to its end."""

    def run(folder: Path) -> None:
        target = folder / "work"
        for number in numbers:
            target.mkdir(exist_ok=True)

            def interrupt(number: int = number) -> None:
                _hook(target, lambda now, path: _interrupt(kind, path) if now == number else None)
                work.do(common, target)

            status = forked(interrupt)
            allowed = (0, -signal.SIGKILL) if kind.startswith("kill") else (0, 2)
            require(status in allowed, f"{kind} at operation {number}: ended with {status}")
        status = forked(lambda: work.do(common, target))
        require(status == 0, f"again: ended with {status}, with {sorted(tree(target))[:8]}")
        require_same(settled_below(target), expected)

    return Case(f"{kind} at operation {', '.join(map(str, numbers))}", run)


def _interrupt(kind: str, path: str) -> None:
    if kind in ERRORS:
        raise OSError(ERRORS[kind], os.strerror(ERRORS[kind]), path)
    if kind == "kill with half of it written" and path.startswith("/proc"):
        handle = int(path.rpartition("/")[2])
        with contextlib.suppress(OSError):
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def settled(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without what tells only when it was made."""
    kept = {}
    for name, content in files.items():
        if name.endswith(".json"):
            content = json.dumps(_without_moments(json.loads(content)), sort_keys=True).encode()
        kept[name] = content
    return kept


def settled_below(folder: Path) -> dict[str, bytes]:
    """What a work wrote, whatever the folder is called."""
    return settled({name: content.replace(str(folder).encode(), b"HERE") for name, content in tree(folder).items()})


def _without_moments(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_moments(each)
            for key, each in value.items()
            if key != "checksum" and not any(word in key for word in MOMENTARY)
        }
    return [_without_moments(each) for each in value] if isinstance(value, list) else value


def _cases_of(work: Work) -> Callable[[random.Random, Path], Iterator[Case]]:
    def cases(rng: random.Random, common: Path) -> Iterator[Case]:
        folder = common / "whole"
        folder.mkdir()
        total = _count_operations(work, common, folder)
        expected = settled_below(folder)
        one_each = [
            (kind, [number]) for number in range(1, total + 1) for kind in ("kill", "kill with half of it written")
        ]
        one_each += [(kind, [number]) for number in range(1, total + 1) for kind in ERRORS]
        rng.shuffle(one_each)
        for kind, numbers in one_each:
            yield _interrupted(work, common, expected, kind, numbers)
        while True:  # several in a row
            kind = rng.choice(["kill", "kill with half of it written", *ERRORS])
            yield _interrupted(work, common, expected, kind, [rng.randint(1, total) for _ in range(rng.randint(2, 5))])

    return cases


def _killed_at_random(rng: random.Random, common: Path) -> Iterator[Case]:
    """Real kills after some milliseconds, of two shards at work at the same time."""
    clips = _clips(common)
    extract_clips(clips, common / "audio", StandIn(), common / "whole.pt", workers=1)
    expected = {name.replace("whole", "features"): content for name, content in tree(common).items() if "whole" in name}

    def one(folder: Path, index: int, count: int) -> None:
        extract_module.SAVE_EVERY_S = -1.0
        slow = StandIn()
        slow.before_call = lambda number: time.sleep(0.01)
        extract_clips(clips, common / "audio", slow, folder / "features.pt", workers=1, shard=Shard(index, count))

    def run(folder: Path, pauses: list[float]) -> None:
        for pause in pauses:
            children = []
            for index in range(2):
                child = os.fork()
                if not child:
                    with contextlib.suppress(BaseException):
                        one(folder, index, 2)
                    os._exit(0)
                children.append(child)
            time.sleep(pause)
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        for index in (0, 1, 0):
            status = forked(lambda index=index: one(folder, index, 2))
            require(status == 0, f"again: shard {index + 1} ended with {status}")
        require_same(tree(folder), expected)

    while True:
        pauses = [rng.uniform(0, 0.15) for _ in range(rng.randint(1, 4))]
        yield Case(f"two shards killed after {pauses} s", lambda folder, pauses=pauses: run(folder, pauses))


def _study(rng: random.Random, common: Path) -> Iterator[Case]:
    """make reproduce, killed with all its scripts; the numbers of the whole study must come out."""
    from demo.generate import generate_esc50

    generate_esc50(common / "data" / "ESC-50-master")
    command = [
        sys.executable,
        "-m",
        "analysis.reproduce",
        "esc50",
        "--encoders",
        "logmel",
        "--data",
        str(common / "data"),
    ]
    command += ["--no-doctor", "--seeds", "1", "--epochs", "1", "--device", "cpu"]

    def start(results: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, "--results", str(results)], cwd=PROJECT_ROOT, start_new_session=True)

    def scores(results: Path) -> object:
        record = json.loads(next(results.rglob("result.json")).read_text())
        return _without_moments(record["protocols"])

    whole = start(common / "results")
    started = time.monotonic()
    assert whole.wait() == 0
    total = time.monotonic() - started
    expected = scores(common / "results")

    def run(folder: Path, share: float) -> None:
        process = start(folder / "results")
        time.sleep(share * total)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        again = start(folder / "results")
        require(again.wait() == 0, f"again: ended with {again.returncode}")
        require(scores(folder / "results") == expected, "other scores")

    while True:
        share = rng.random()
        yield Case(f"killed after {share:.2f} of it", lambda folder, share=share: run(folder, share))


ATTACKS = [
    *(
        Attack(
            f"interrupted {work.name}",
            "killed, killed with half a file on the disk, or an error of the disk, at every operation on a file; then run again",
            _cases_of(work),
            work.quick,
            work.most,
        )
        for work in WORKS
    ),
    Attack(
        "kills at random times",
        "two shards at work are killed up to four times, then run again",
        _killed_at_random,
        1,
        60,
    ),
    Attack("a killed study", "make reproduce is killed with all its scripts, then run again", _study, 0, 5, 240.0),
]

compile_steps()
