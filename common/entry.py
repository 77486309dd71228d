"""How every script starts and ends: errors as one line with exit status 2, an interruption with 130."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.datasets import DatasetNote
from common.errors import UserError

OUT_OF_MEMORY = "there is not enough memory; close other programs, or use a machine with more: finished work is kept"


def run(main: Callable[[], None]) -> None:
    """Call `main`. An error that the user can fix is one line on stderr and exit status 2; Ctrl-C is status 130."""
    # A job scheduler sends SIGTERM before SIGKILL, and a closed terminal SIGHUP: treat them like Ctrl-C. Signals that nohup
    # ignores stay ignored; Windows has no SIGHUP.
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
    except BrokenPipeError:  # such as that of `| head`
        _end("error: the program that reads the output has ended; finished work is kept, the same command continues", 2)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # as torch says it
            raise
        _end(f"error: {OUT_OF_MEMORY} ({next(iter(str(error).splitlines()), 'Python got no more')})", 2)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _end(f"error: {place}{error.strerror or error}", 2)


def _open_closed_streams() -> None:
    """Lead streams that the caller has closed (`2>&-`) nowhere: else the next file that is opened gets the stream's number,
    and what is printed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - open to the end


def _end(text: str, status: int) -> None:
    """Exit, with the text as one line on stderr; what a stream without a reader still holds is dropped."""
    for stream, line in ((sys.stdout, ""), (sys.stderr, " ".join(text.split()) + "\n")):
        try:
            print(line, end="", file=stream, flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else Python's own flush at exit fails
    sys.exit(status)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any
) -> None:
    """Show a note about the data as one line, and any other warning with its location, as Python does."""
    place = "note: " if issubclass(category, DatasetNote) else f"{filename}:{lineno}: {category.__name__}: "
    print(f"{place}{message}", file=sys.stderr)
