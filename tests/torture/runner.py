"""How a case is run: a command in forked processes, watched, with limits of time and memory."""

from __future__ import annotations

import contextlib
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
from collections.abc import Callable, Iterator
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
FILES = tempfile.TemporaryDirectory(prefix="torture-")  # of all cases, until the suite ends
ROOT = Path(os.path.realpath(FILES.name))
os.environ["MPLCONFIGDIR"] = str(ROOT)  # where matplotlib writes when it is imported
LIMIT_S = 60.0
LIMIT_BYTES = 3_000_000_000  # of address space, beyond what the process starts with
LONGEST_MESSAGE = 1_000
INTERRUPTED = 130
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
WROTE_OUTSIDE = "wrote outside the folder of the case"
ALLOWED_OUTSIDE = ("/proc/", "/dev/null/")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Audit event -> the places of a path, and of the descriptor of the folder that it is relative to.
CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "open": ((0, None),),
    "os.rename": ((0, 2), (1, 3)),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.chmod": ((0, 2),),
}
# In keys of JSON files: what differs in every run, or with harmless damage of the features.
VARYING = ("seconds", "time", "created", "date", "checksum", "sha256")


class Broken(AssertionError):
    """A case did not hold; the message says how."""


class CannotRunError(Exception):
    """This machine cannot run an attack; the message says why."""


class Verdict(Enum):
    """How a case that holds has ended."""

    SAME = "the files of an undisturbed run"
    ACCEPTED = "another valid result"
    REFUSED = "one line and exit status 2"


Build = Callable[[Path], object]
Main = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Command:
    """A command of the project.

    Attributes:
        name: for the table.
        build: writes what the command reads into an empty folder.
        mains: its processes. Each reads that folder and writes into another.
        attacked: the files that are attacked, as a glob pattern.
        class_names: all classes that a data set has; None: any.
    """

    name: str
    build: Build
    mains: tuple[Main, ...]
    attacked: str = ""
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Attack:
    """An attack on commands, which take turns. `act` attacks a case and raises `Broken` or not."""

    act: Callable[[Case], Verdict]
    commands: tuple[Command, ...]
    cases: int
    quick: int = 1

    @property
    def name(self) -> str:
        return self.act.__name__.replace("_", " ")

    @property
    def summary(self) -> str:
        """What is done, for the table."""
        return " ".join((self.act.__doc__ or "").split()).rstrip(".")


@dataclass(frozen=True)
class Ended:
    """How a process ended (minus the signal that killed it), and what it printed."""

    status: int
    printed: str

    @property
    def is_refused(self) -> bool:
        return self.status == 2


class Script:
    """A process of a command. It is forked, because starting Python and torch takes seconds."""

    numbers = itertools.count()

    def __init__(self, main: Main, folder: Path, prepare: Callable[[], object]) -> None:
        self.log = folder.with_name(f"log{next(self.numbers)}")
        self.is_running = True
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the fork can end in order
        self.process = os.fork()
        if not self.process:
            self._run(partial(main, folder / "data", folder / "out"), prepare)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _run(self, main: Callable[[], object], prepare: Callable[[], object]) -> None:
        """In the forked process: run the command and end with its status."""
        status = 1
        try:
            os.setpgid(0, 0)
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for number in (1, 2):
                os.dup2(log, number)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            torch.set_num_threads(1)  # the parent's threads do not exist here
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            most_bytes = pages * resource.getpagesize() + LIMIT_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
            WATCH.forbids_outside = True
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

    def wait(self, *, is_interrupted: bool = False) -> Ended:
        """Wait for the end; `Broken` unless it is success, a refusal or an interruption."""
        deadline = time.monotonic() + LIMIT_S
        while not (waited := os.waitpid(self.process, os.WNOHANG))[0]:
            require(time.monotonic() < deadline, f"did not end within {LIMIT_S:.0f} s")
            time.sleep(0.002)
        self.is_running = False
        printed = self.log.read_text(errors="replace") if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        ended = Ended(os.waitstatus_to_exitcode(waited[1]), printed.replace("\r", "\n"))
        tail = ended.printed[-400:]
        require(WROTE_OUTSIDE not in ended.printed, tail)
        if is_interrupted and ended.status in (INTERRUPTED, *(-number for number in SIGNALS)):
            return ended  # with a traceback if tqdm was half made
        require("Traceback (most recent call last)" not in ended.printed, tail)
        require(ended.status in (0, 2), f"ended with status {ended.status}: {tail}")
        if ended.is_refused:
            errors = [line for line in ended.printed.splitlines() if line.startswith("error: ")]
            require([len(error) <= LONGEST_MESSAGE for error in errors] == [True], tail)
        return ended

    def end(self) -> None:
        """Kill the process and what it started, if it still runs."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)


def status_of(main: Callable[[], object]) -> int:
    """The exit status of a script's main function."""
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


@dataclass
class Watch:
    """Hears every operation that changes a file."""

    folder: str = ""  # of the case
    operations: int = 0  # that changed files in it
    interrupt_at: int = 0  # the operation before which `interrupt` is called
    interrupt: Callable[[], object] = lambda: None
    forbids_outside: bool = False
    opened: tuple[str, int] = ("", 0)  # the file that was opened last, and its size then

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The audit hook."""
        if event not in CHANGES or not self.folder:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        for path in changed_paths(event, arguments):
            if f"{path}/".startswith(f"{self.folder}/"):
                self.operations += 1
                if self.operations == self.interrupt_at:
                    self.interrupt()
                if event == "open":
                    is_new = arguments[2] & os.O_TRUNC or not Path(path).exists()
                    self.opened = path, 0 if is_new else Path(path).stat().st_size
            elif self.forbids_outside and not f"{path}/".startswith(ALLOWED_OUTSIDE):
                os.write(2, f"\n{WROTE_OUTSIDE}: {event} {path}\n".encode(errors="replace"))
                raise PermissionError(WROTE_OUTSIDE)


def changed_paths(event: str, arguments: tuple[Any, ...]) -> Iterator[str]:
    """The files that an operation changes."""
    for place, parent_place in CHANGES[event]:
        path, parent = arguments[place], -1 if parent_place is None else arguments[parent_place]
        if isinstance(path, int):
            continue  # the descriptor of a file that was opened before
        folder = os.path.realpath(f"/proc/self/fd/{parent}") if parent >= 0 else str(Path.cwd())
        whole = Path(folder, os.fsdecode(path))
        if event in ("open", "os.chmod"):  # which follow links
            yield os.path.realpath(whole)
        else:
            yield f"{os.path.realpath(whole.parent)}/{whole.name}"


WATCH = Watch()
sys.addaudithook(WATCH.hear)


def interrupt_at(operation: int, interrupt: Callable[[], object]) -> None:
    """Call a function before this process changes a file for the n-th time."""
    WATCH.operations, WATCH.opened = 0, ("", 0)
    WATCH.interrupt_at, WATCH.interrupt = operation, interrupt


class Case:
    """A command with fresh files in `folder`, which is to be attacked.

    Attributes:
        expected: a folder with the files of an undisturbed run.
        operations: how often such a run changes a file.
        log: what the attack did, so that a broken case can be understood.
    """

    def __init__(self, command: Command, rng: random.Random) -> None:
        self.command, self.rng = command, rng
        self.expected, self.operations = undisturbed(command)
        self.folder = fresh_folder(command)
        self.data, self.out = self.folder / "data", self.folder / "out"
        self.log: list[str] = []
        self.scripts: list[Script] = []

    def pick(self, pattern: str) -> Path:
        """Any file of the case that matches and is not empty."""
        paths = sorted(self.folder.glob(pattern))
        return self.rng.choice([path for path in paths if path.is_file() and path.stat().st_size])

    def start(self, main: Main, prepare: Callable[[], object] = lambda: None) -> Script:
        """Start a process of the command, after `prepare` in that process."""
        self.scripts.append(Script(main, self.folder, prepare))
        return self.scripts[-1]

    def finish(self) -> Ended:
        """Run the command to its end, with its processes in any order, or to a refusal."""
        mains = self.rng.sample(self.command.mains, len(self.command.mains))
        for main in [*mains, *mains[:-1]]:  # the first may have lacked what the second did
            ended = self.start(main).wait()
            if ended.is_refused:
                break
        return ended

    def require_same(self) -> Verdict:
        """`Broken` unless the files are those of an undisturbed run, byte by byte."""
        files, expected = tree(self.out), tree(self.expected)
        require(files.keys() == expected.keys(), f"other files: {files.keys() ^ expected.keys()}")
        changed = [name for name in files if files[name] != expected[name]]
        require(not changed, f"other contents: {changed}")
        return Verdict.SAME

    def finish_the_same(self) -> Verdict:
        """Run the command to its end and compare its files."""
        ended = self.finish()
        require(ended.status == 0, f"the command was refused: {ended.printed[-300:]}")
        return self.require_same()


@cache
def undisturbed(command: Command) -> tuple[Path, int]:
    """Run the command in this process, so that what it imports is ready for its forks."""
    folder = fresh_folder(command)
    for main in command.mains:
        run_here(partial(main, folder / "data", folder / "out"))
    return (folder / "out").rename(folder.with_name("expected")), WATCH.operations


@cache
def subject(command: Command) -> Path:
    """A folder with what a command reads."""
    folder = ROOT / command.name.replace(" ", "_") / "subject"
    (folder / "data").mkdir(parents=True)
    run_here(partial(command.build, folder / "data"))
    return folder


def fresh_folder(command: Command) -> Path:
    """A copy of what a command reads, always in the same place, because files may hold its name."""
    folder = subject(command).with_name("case")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(subject(command), folder)
    tempfile.tempdir = str(folder)
    WATCH.folder, WATCH.operations = str(folder), 0
    return folder


def run_here(main: Callable[[], object]) -> None:
    """Run a function quietly; RuntimeError unless it ends well."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = status_of(main)
    if status:
        raise RuntimeError(f"status {status} without an attack: {printed.getvalue()[-500:]}")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its name, without times; names of folders end in a slash."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            files[f"{name}/"] = b""
        elif path.suffix == ".json":
            files[name] = json.dumps(without_varying(json.loads(path.read_bytes()))).encode()
        else:
            files[name] = path.read_bytes()
    return files


def without_varying(value: Any) -> Any:
    """JSON without what differs in every run."""
    if isinstance(value, list):
        return [without_varying(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    kept = [key for key in sorted(value) if not any(word in key for word in VARYING)]
    return {key: without_varying(value[key]) for key in kept}


def require(condition: object, words: str) -> None:
    """`Broken` with these words unless the condition holds."""
    if not condition:
        raise Broken(words)


@dataclass
class Tally:
    """How the cases of an attack ended; `broken` has a line for each that did not hold."""

    attack: Attack
    verdicts: list[Verdict] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    skipped: str = ""

    @property
    def counts(self) -> list[int]:
        """Cases; those with each verdict; broken."""
        counts = [self.verdicts.count(verdict) for verdict in Verdict] + [len(self.broken)]
        return [sum(counts), *counts]


def run_attack(attack: Attack, cases: int, seed: int) -> Tally:
    """Run the cases of an attack."""
    tally = Tally(attack)
    for number in range(cases):
        command = attack.commands[number % len(attack.commands)]
        case = Case(command, random.Random(f"{seed} {attack.name} {number}"))  # noqa: S311
        try:
            tally.verdicts.append(attack.act(case))
        except CannotRunError as error:
            tally.skipped = str(error)
            break
        except Exception as error:  # noqa: BLE001 - also what checks raise on damaged results
            log = f"{command.name}: {', '.join(case.log)}"
            tally.broken.append(f"BROKEN case {number} ({log}): {type(error).__name__}: {error}")
        finally:
            for script in case.scripts:
                script.end()
    return tally
