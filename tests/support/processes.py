"""Other processes that run a function of the tests, to be killed or interrupted.

They are forked from a process that has imported torch once, since every Python that imports it anew takes seconds.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

IMPORTED_ONCE = ["pytest", "pandas", "common.cli", "common.extraction", "common.encoder"]


def start(printed: Path, function: Callable[..., object], *arguments: object) -> BaseProcess:
    """Run a function of a module in another process; what it prints goes to a file."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    process = context.Process(target=_run, args=(printed, function, arguments))
    process.start()
    return process


def _run(printed: Path, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    # A test run in the background of a shell ignores SIGINT, and its children would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with printed.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        function(*arguments)


def wait_for(sign: Path, process: BaseProcess) -> None:
    """Wait until another process has made a file; AssertionError where it ends without, or takes over a minute."""
    deadline = time.monotonic() + 60
    while not sign.exists():
        assert process.is_alive(), f"ended with status {process.exitcode} before {sign.name} was there"
        assert time.monotonic() < deadline, f"no {sign.name} within a minute"
        time.sleep(0.005)


def end(process: BaseProcess) -> int:
    """Wait for a process to end; its exit status, which is minus the signal that killed it."""
    process.join(60)
    assert process.exitcode is not None, "it does not end"
    return process.exitcode
