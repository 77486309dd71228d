"""How an attack is run: every case in a process of its own, with limits on time and memory, and a verdict at its end."""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.errors import UserError
from common.files import DamagedFileError, UnsafeFileError

# A killed process would keep the lock that tqdm shares with its forks, and its thread has none of them.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0
# What reading something hostile may end in; scripts print the first as one line with status 2.
REFUSALS = (UserError, DamagedFileError, UnsafeFileError)
LONGEST_MESSAGE = 1_000
CASE_S = 60.0
CASE_BYTES = 3_000_000_000  # of address space, beyond what the process has at the start
RIGHT, REFUSED, BROKEN = "right", "refused", "broken"


class Broken(AssertionError):
    """A case did not hold; the message says how."""


class CannotRunError(Exception):
    """This machine cannot run the attack; the message says why."""


@dataclass(frozen=True)
class Case:
    """One attack on one thing.

    Attributes:
        name: what is done, so that a broken case can be found again.
        run: does it in an empty folder. It returns if the result is the right one, raises one of `REFUSALS` if the attack was
            noticed, and anything else if it did not hold.
    """

    name: str
    run: Callable[[Path], object]


@dataclass(frozen=True)
class Attack:
    """A class of attacks.

    Attributes:
        name: for --only and the table.
        what: a sentence for the table.
        cases: makes the cases, endless or not, with the given source of chance.
        quick: how many of them `make test` runs.
        most: how many `make torture` runs.
        has_answer: whether the right result is known; otherwise any usable one is accepted.
        seconds: after which no further case is begun; None: an equal share of the suite's time.
    """

    name: str
    what: str
    cases: Callable[[random.Random, Path], Iterator[Case]]
    quick: int = 5
    most: int = 400
    seconds: float | None = None
    has_answer: bool = True


@dataclass
class Tally:
    """How the cases of an attack ended; `broken` has a line for each, `skipped` says why it could not be run."""

    attack: Attack
    right: int = 0
    refused: int = 0
    broken: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0

    @property
    def cases(self) -> int:
        return self.right + self.refused + len(self.broken)


def run_attack(attack: Attack, most: int, seconds: float, seed: int, only_case: int | None = None) -> Tally:
    """Run up to `most` cases, for about `seconds` at most."""
    tally, started = Tally(attack), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        common = Path(folder) / "common"
        common.mkdir()
        os.environ["MPLCONFIGDIR"] = folder  # where matplotlib writes when it is imported
        try:
            cases = attack.cases(random.Random(f"{seed} {attack.name}"), common)  # noqa: S311 - no secret
            for number in range(most):
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    case = next(cases, None)
                if case is None or time.monotonic() - started > seconds:
                    break
                if only_case is not None and number != only_case:
                    continue
                verdict, words = verdict_of(case, Path(folder) / "case")
                if verdict == BROKEN:
                    tally.broken.append(f"{attack.name}, case {number} ({case.name}): {words}")
                tally.right += verdict == RIGHT
                tally.refused += verdict == REFUSED
        except CannotRunError as error:
            tally.skipped = str(error)
    tally.seconds = time.monotonic() - started
    return tally


def verdict_of(case: Case, folder: Path, limit_s: float = CASE_S) -> tuple[str, str]:
    """Run a case in a forked process; the verdict, and what went wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _run_and_exit(case, folder, writer)
    os.close(writer)
    words, deadline = b"", time.monotonic() + limit_s
    os.set_blocking(reader, False)
    while True:
        with contextlib.suppress(BlockingIOError):
            words += os.read(reader, 1 << 16)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reader)
            return BROKEN, f"did not end within {limit_s:.0f} s"
        time.sleep(0.002)
    with contextlib.suppress(BlockingIOError):
        words += os.read(reader, 1 << 16)
    os.close(reader)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # what it has started and left
        os.killpg(child, signal.SIGKILL)
    if os.WIFSIGNALED(status):
        return BROKEN, f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    verdict, _, text = words.decode(errors="replace").partition(" ")
    return (verdict, text) if verdict in (RIGHT, REFUSED, BROKEN) else (BROKEN, f"ended with {status} without a word")


def _run_and_exit(case: Case, folder: Path, writer: int) -> None:
    """In the child: run the case quietly, write the verdict into the pipe, and end at once."""
    verdict = f"{BROKEN} it ended early"
    try:
        os.setpgid(0, 0)
        silence()
        tempfile.tempdir = str(folder.parent / "common")
        forbid_elsewhere(folder.parent)
        torch.set_num_threads(1)  # the threads of the parent are not here
        limit_memory(CASE_BYTES)
        case.run(folder)
        verdict = RIGHT
    except REFUSALS as error:
        verdict = judged(str(error))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the case is broken
        place = traceback.extract_tb(error.__traceback__)[-1]
        verdict = f"{BROKEN} {type(error).__name__}: {str(error)[:300]} ({Path(place.filename).name}:{place.lineno})"
    finally:
        os.write(writer, verdict.encode(errors="backslashreplace")[:4000])
        os._exit(0)


def judged(message: str) -> str:
    """The verdict of a refusal: its message is one line, not too long."""
    if not message or len(message) > LONGEST_MESSAGE:
        return f"{BROKEN} its message has {len(message)} letters: {message[:200]}"
    return f"{REFUSED} {message}"


def forbid_elsewhere(folder: Path) -> None:
    """Let nothing be written, moved or removed outside this folder: a case in which that is tried does not hold, and must do no
    harm to the machine."""
    allowed = (os.path.realpath(folder) + "/", "/proc/", "/dev/null/", "/dev/full/")
    # The event -> the places of a path and of the descriptor of the folder that it is relative to.
    changing = {
        "os.rename": ((0, 2), (1, 3)),
        "os.link": ((0, 2), (1, 3)),
        "os.remove": ((0, 1),),
        "os.rmdir": ((0, 1),),
        "os.mkdir": ((0, 2),),
        "os.chmod": ((0, 2),),
        "os.chown": ((0, 3),),
    }
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    def refuse_outside(event: str, path: object, parent: str, follows: bool) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        whole = Path(parent, os.fsdecode(path)).absolute()
        real = os.path.realpath(whole) if follows else f"{os.path.realpath(whole.parent)}/{whole.name}"
        if not f"{real}/".startswith(allowed):
            raise Broken(f"{event} outside its folder: {real}")

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & writing:
            refuse_outside(event, arguments[0], "", follows=True)
        for place, descriptor in changing.get(event, ()):
            number = arguments[descriptor]
            parent = os.path.realpath(f"/proc/self/fd/{number}") if isinstance(number, int) and number >= 0 else ""
            refuse_outside(event, arguments[place], parent, follows=False)

    sys.addaudithook(hear)


def silence() -> None:
    """Send what is printed nowhere, also what other processes of this one print."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def limit_memory(more_bytes: int) -> None:
    """No more than this above what the process has."""
    with Path("/proc/self/statm").open(encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


def require(condition: object, words: str) -> None:
    """`Broken` with these words unless the condition holds."""
    if not condition:
        raise Broken(words)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name from there; folders end in a slash."""
    return {
        str(path.relative_to(folder)) + "/" * path.is_dir(): b"" if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def require_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """`Broken` unless the two trees have the same files with the same bytes."""
    require(found.keys() == expected.keys(), f"files differ: {sorted(found.keys() ^ expected.keys())[:5]}")
    changed = [name for name in found if found[name] != expected[name]]
    require(not changed, f"contents differ: {changed[:5]}")


def mutated(content: bytes, rng: random.Random, first: int = 0, last: int | None = None) -> tuple[str, bytes]:
    """The content with a bit or a byte changed, cut, or a piece doubled or zeroed, and what was done; the first byte touched is
    in [first, last)."""
    last = len(content) if last is None else min(last, len(content))
    place = rng.randrange(first, max(first + 1, last))
    length = rng.choice((1, 2, 4, 8, 64, 1000))
    kind = rng.choice(("flip", "flip", "flip", "byte", "cut", "zero", "ones", "double", "drop"))
    before, piece, after = content[:place], content[place : place + length], content[place + length :]
    made = {
        "flip": lambda: before + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :],
        "byte": lambda: before + bytes([rng.randrange(256)]) + content[place + 1 :],
        "cut": lambda: before,
        "zero": lambda: before + bytes(len(piece)) + after,
        "ones": lambda: before + b"\xff" * len(piece) + after,
        "double": lambda: before + piece + piece + after,
        "drop": lambda: before + after,
    }[kind]()
    return f"{kind} {length} at {place} of {len(content)}", made
