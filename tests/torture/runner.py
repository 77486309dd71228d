"""How a case is run: a command in forked processes, watched, with limits of time and memory."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

# A killed process would keep the lock that tqdm shares between processes.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0
LIMIT_S = 60.0
LIMIT_BYTES = 3_000_000_000  # of address space, beyond what the process starts with
LONGEST_MESSAGE = 1_000
INTERRUPTED = 130
WROTE_OUTSIDE = "wrote outside the folder of the case"
ALLOWED_OUTSIDE = ("/proc/", "/dev/null/")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Audit event -> the places of a path, and of the descriptor of the folder that it is relative to.
CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "open": ((0, None),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.chmod": ((0, 2),),
}
TIMES = ("seconds", "time", "created", "date")  # in keys of JSON files: they differ in every run


class Broken(AssertionError):
    """A case did not hold; the message says how."""


class CannotRunError(Exception):
    """This machine cannot run an attack; the message says why."""


class Verdict(Enum):
    """How a case that holds has ended."""

    SAME = "the same files as without the attack"
    ACCEPTED = "another valid result"
    REFUSED = "one line and exit status 2"


@dataclass(frozen=True)
class Command:
    """A command of the project.

    Attributes:
        name: for the table.
        build: writes what the command reads into an empty folder.
        mains: its processes. Each takes that folder and writes below its `out`.
        listings: glob patterns of the tables and lists that it reads.
        class_names: all classes that its features may have; None: any.
    """

    name: str
    build: Callable[[Path], object]
    mains: tuple[Callable[[Path], object], ...]
    listings: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Attack:
    """A kind of attack on some commands.

    Attributes:
        name: for the table and for --only.
        what: is done, in a sentence for the table.
        act: attacks one case. It raises `Broken` if the case does not hold.
        commands: the cases take turns between them.
        cases, quick: how many cases there are in all, and with --quick.
    """

    name: str
    what: str
    act: Callable[[Case], Verdict]
    commands: tuple[Command, ...]
    cases: int
    quick: int = 1


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it printed. A negative status is the signal that killed it."""

    status: int
    printed: str

    @property
    def is_refused(self) -> bool:
        return self.status == 2


@dataclass
class Case:
    """A command with fresh files, to be attacked.

    Attributes:
        done: what the attack did, so that a broken case can be understood.
        scripts: the processes that were started.
    """

    command: Command
    rng: random.Random
    done: list[str] = field(default_factory=list)
    scripts: list[Script] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.undisturbed = undisturbed(self.command)
        self.folder = _fresh(self.command)
        self.out = self.folder / "out"

    def did(self, what: str) -> None:
        """Note what the attack did."""
        self.done.append(what)

    def pick(self, *patterns: str) -> Path:
        """Any file of the case that matches, is not empty, and is not a lock."""
        paths = sorted(path for pattern in patterns for path in self.folder.glob(pattern))
        return self.rng.choice([path for path in paths if path.is_file() and path.stat().st_size])

    def start(self, main: Callable[[Path], object], *preparations: Callable[[], object]) -> Script:
        """Start a process of the command, after these preparations in the process."""
        script = Script(main, self.folder, preparations)
        self.scripts.append(script)
        return script

    def finish(self) -> Ended:
        """Run the command to its end, with its processes in any order; stop at a refusal."""
        mains = self.rng.sample(self.command.mains, len(self.command.mains))
        for main in [*mains, *mains[:-1]]:  # what an earlier process could not finish yet
            ended = self.start(main).wait()
            if ended.is_refused:
                break
        return ended

    def require_same(self) -> Verdict:
        """`Broken` unless the files are those of an undisturbed run, byte by byte."""
        files, expected = tree(self.out), self.undisturbed.files
        differing = sorted(files.keys() ^ expected.keys())
        require(not differing, f"other files: {differing[:5]}")
        changed = [name for name in files if files[name] != expected[name]]
        require(not changed, f"other contents: {changed[:5]}")
        return Verdict.SAME

    def finish_the_same(self) -> Verdict:
        """Run the command to its end; `Broken` unless its files are those of an undisturbed run."""
        ended = self.finish()
        require(ended.status == 0, f"ended with status {ended.status}: {ended.printed[-300:]}")
        return self.require_same()

    def finish_the_same_or_refuse(self) -> Verdict:
        """As `finish_the_same`; but a refusal will do."""
        return Verdict.REFUSED if self.finish().is_refused else self.require_same()


class Script:
    """A process of a command. It is forked, because starting Python and torch takes seconds."""

    numbers = itertools.count()

    def __init__(
        self,
        main: Callable[[Path], object],
        folder: Path,
        preparations: Sequence[Callable[[], object]] = (),
    ) -> None:
        self.log = folder.with_name(f"log{next(self.numbers)}")
        self.is_running = True
        self.process = os.fork()
        if not self.process:
            _run_forked(partial(main, folder), folder, self.log, preparations)

    def kill(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.process, number)

    def end(self) -> None:
        """Kill the process and what it started, if it still runs."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
            self.is_running = False

    def wait(self, *other_statuses: int) -> Ended:
        """Wait for the end; `Broken` unless it is success, a refusal in one line, or one of these statuses."""
        deadline = time.monotonic() + LIMIT_S
        while not (waited := os.waitpid(self.process, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                self.end()
                raise Broken(f"did not end within {LIMIT_S:.0f} s")
            time.sleep(0.002)
        self.is_running = False
        printed = self.log.read_text(errors="replace") if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        ended = Ended(os.waitstatus_to_exitcode(waited[1]), printed.replace("\r", "\n"))
        _check(ended, (0, 2, *other_statuses))
        return ended


def _check(ended: Ended, statuses: Sequence[int]) -> None:
    """`Broken` for a traceback, another status, or a refusal that is not one line."""
    tail = ended.printed[-400:]
    require(WROTE_OUTSIDE not in ended.printed, tail)
    require("Traceback (most recent call last)" not in ended.printed, tail)
    require(ended.status in statuses, f"ended with status {ended.status}: {tail}")
    if ended.is_refused:
        errors = [line for line in ended.printed.splitlines() if line.startswith("error: ")]
        require(len(errors) == 1, f"{len(errors)} lines of error: {tail}")
        require(len(errors[0]) <= LONGEST_MESSAGE, f"an error of {len(errors[0])} letters")


def _run_forked(
    main: Callable[[], object],
    folder: Path,
    log: Path,
    preparations: Sequence[Callable[[], object]],
) -> None:
    """In the forked process: run the command and end with its status."""
    status = 1
    try:
        os.setpgid(0, 0)
        printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(printed, number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)  # the parent's threads do not exist here
        limit_memory(LIMIT_BYTES)
        _watch.forbids_outside = True
        for prepare in preparations:
            prepare()
        status = status_of(main)
    except KeyboardInterrupt:  # before the script has set its handlers
        status = INTERRUPTED
    except BaseException:  # noqa: BLE001 - as Python itself would end
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)


def status_of(main: Callable[[], object]) -> int:
    """The exit status of a script's main function."""
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def limit_memory(more_bytes: int) -> None:
    """Allow the process no more than this above what it has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


@dataclass
class _Watch:
    """Hears every operation that changes a file.

    Attributes:
        folder: of the case.
        operations: how many changed files in it.
        interrupt_at: the operation before which `interrupt` is called.
        forbids_outside: whether changes elsewhere are forbidden.
    """

    folder: str = ""
    operations: int = 0
    interrupt_at: int = 0
    interrupt: Callable[[], object] = lambda: None
    forbids_outside: bool = False

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The audit hook."""
        if event not in CHANGES or not self.folder:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        for path in self._changed(event, arguments):
            if f"{path}/".startswith(f"{self.folder}/"):
                self.operations += 1
                if self.operations == self.interrupt_at:
                    self.interrupt()
            elif self.forbids_outside and not f"{path}/".startswith(ALLOWED_OUTSIDE):
                os.write(2, f"\n{WROTE_OUTSIDE}: {event} {path}\n".encode(errors="backslashreplace"))
                raise PermissionError(WROTE_OUTSIDE)

    def _changed(self, event: str, arguments: tuple[Any, ...]) -> Iterator[str]:
        for place, parent_place in CHANGES[event]:
            path, parent = arguments[place], -1 if parent_place is None else arguments[parent_place]
            if isinstance(path, int):
                continue  # a descriptor of a file that was opened before
            folder = os.path.realpath(f"/proc/self/fd/{parent}") if parent >= 0 else str(Path.cwd())
            whole = Path(folder, os.fsdecode(path))
            follows_links = event in ("open", "os.chmod")
            yield os.path.realpath(whole) if follows_links else f"{os.path.realpath(whole.parent)}/{whole.name}"


_watch = _Watch()
sys.addaudithook(_watch.hear)


def interrupt_at(operation: int, interrupt: Callable[[], object]) -> None:
    """Call a function before the process changes a file for the n-th time."""
    _watch.operations, _watch.interrupt_at, _watch.interrupt = 0, operation, interrupt


@dataclass(frozen=True)
class Undisturbed:
    """What a command does without an attack: its files, where they lie, and how often it changes any."""

    files: dict[str, bytes]
    folder: Path
    operations: int


@cache
def _root() -> Path:
    """The folder of this run of the suite."""
    root = Path(os.path.realpath(tempfile.mkdtemp(prefix="torture-")))
    os.environ["MPLCONFIGDIR"] = str(root)  # matplotlib writes there when it is imported
    return root


def remove_root() -> None:
    """Remove all files of this run of the suite."""
    shutil.rmtree(_root())


@cache
def _subject(command: Command) -> Path:
    folder = _root() / command.name.replace(" ", "_") / "subject"
    folder.mkdir(parents=True)
    _run_here(partial(command.build, folder))
    return folder


def _fresh(command: Command) -> Path:
    """A folder with what the command reads. Its place is always the same, because files may hold its name."""
    folder = _subject(command).with_name("case")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(_subject(command), folder)
    tempfile.tempdir = str(folder)
    _watch.folder, _watch.operations = str(folder), 0
    return folder


@cache
def undisturbed(command: Command) -> Undisturbed:
    """Run the command in this process, so that what it imports and compiles is ready for its forks."""
    folder = _fresh(command)
    for main in command.mains:
        _run_here(partial(main, folder))
    operations = _watch.operations
    kept = folder.with_name("undisturbed")
    shutil.copytree(folder / "out", kept)
    return Undisturbed(tree(kept), kept, operations)


def _run_here(main: Callable[[], object]) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = status_of(main)
    if status:
        raise RuntimeError(f"without an attack, it ended with status {status}: {printed.getvalue()[-500:]}")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its name, without times; names of folders end in a slash."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            files[f"{name}/"] = b""
        elif path.suffix == ".json":
            files[name] = json.dumps(_without_times(json.loads(path.read_bytes())), sort_keys=True).encode()
        else:
            files[name] = path.read_bytes()
    return files


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_times(entry)
            for key, entry in value.items()
            if key != "checksum" and not any(word in key for word in TIMES)
        }
    return [_without_times(entry) for entry in value] if isinstance(value, list) else value


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def require(condition: object, words: str) -> None:
    """`Broken` with these words unless the condition holds."""
    if not condition:
        raise Broken(words)


@dataclass
class Tally:
    """How the cases of an attack ended.

    Attributes:
        verdicts: of those that held.
        broken: a line for each of the others.
        skipped: why the attack could not be run.
    """

    attack: Attack
    verdicts: list[Verdict] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0

    @property
    def counts(self) -> tuple[int, ...]:
        """Cases; those with each verdict; broken."""
        held = [self.verdicts.count(verdict) for verdict in Verdict]
        return sum(held) + len(self.broken), *held, len(self.broken)


def run_attack(attack: Attack, is_quick: bool, seed: int, only_case: int | None = None) -> Tally:
    """Run the cases of an attack."""
    tally, started = Tally(attack), time.monotonic()
    for number in range(attack.quick if is_quick else attack.cases):
        if only_case not in (None, number):
            continue
        command = attack.commands[number % len(attack.commands)]
        rng = random.Random(f"{seed} {attack.name} {number}")  # noqa: S311 - not a secret
        case = Case(command, rng)
        try:
            tally.verdicts.append(attack.act(case))
        except CannotRunError as error:
            tally.skipped = str(error)
            break
        except Exception as error:  # noqa: BLE001 - also what the check of damaged results raises
            name = "" if isinstance(error, Broken) else f"{type(error).__name__}: "
            place = f"{attack.name}, case {number} ({command.name}; {', '.join(case.done)})"
            tally.broken.append(f"{place}: {name}{error}")
        finally:
            for script in case.scripts:
                script.end()
    tally.seconds = time.monotonic() - started
    return tally
