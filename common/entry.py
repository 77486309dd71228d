"""How every script starts and ends: errors as one line with exit status 2, an interruption with 130."""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import stat
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from common.datasets import DatasetNote
from common.errors import UserError

OUT_OF_MEMORY = "there is not enough memory; close other programs, or use a machine with more: finished work is kept"


def run(main: Callable[[], None]) -> None:
    """Call `main`. An error that the user can fix is one line on stderr and exit status 2; Ctrl-C is status 130."""
    # A job scheduler sends SIGTERM before SIGKILL, and a terminal that is closed SIGHUP: treat them like Ctrl-C. What nohup
    # has told to ignore stays ignored; Windows has no SIGHUP.
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):  # escape characters that the terminal cannot encode
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", DatasetNote)
            warnings.showwarning = _show_warning
            main()
    except KeyboardInterrupt as interrupt:
        _end(str(interrupt) or "interrupted", 130)
    except UserError as error:
        _end(f"error: {error}", 2)
    except BrokenPipeError:
        # Such as that of `| head`. What is still to be flushed must not raise again.
        null = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            if _has_no_reader(number):
                os.dup2(null, number)
        _end(
            "error: the program that reads the output has ended; finished work is kept, and the same command continues",
            2,
        )
    except MemoryError as error:
        _end(f"error: {OUT_OF_MEMORY} ({error or 'Python could not get more'})", 2)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # as torch says it
            raise
        _end(f"error: {OUT_OF_MEMORY} ({str(error).splitlines()[0]})", 2)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _end(f"error: {place}{error.strerror or error}", 2)


def _has_no_reader(number: int) -> bool:
    """Whether a descriptor is the end of a pipe that nobody reads; where that cannot be seen, whether it is a pipe."""
    with contextlib.suppress(OSError):
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(number, select.POLLOUT)
            return any(event & select.POLLERR for _, event in poll.poll(0))
        return stat.S_ISFIFO(os.fstat(number).st_mode)
    return False


def _open_closed_streams() -> None:
    """What the caller has closed (`2>&-`) leads nowhere: otherwise the next file that is opened would get its number, and what
    is printed with it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open to the end


def _end(text: str, status: int) -> None:
    with contextlib.suppress(OSError):  # stderr may be what fails
        print(" ".join(text.split()), file=sys.stderr, flush=True)
    sys.exit(status)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a note about the data as one line, and any other warning with its location, as Python does."""
    del file, line
    place = "note: " if issubclass(category, DatasetNote) else f"{filename}:{lineno}: {category.__name__}: "
    print(f"{place}{message}", file=sys.stderr)
