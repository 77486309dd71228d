"""What a script does with some flags, without the seconds of starting Python anew."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from common.files import PROJECT_ROOT


@dataclass(frozen=True)
class Result:
    """How a script ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def words(self) -> str:
        """What was printed, in one line."""
        return " ".join(self.stdout.split())


def call(main: Callable[[list[str]], object], *flags: object) -> Result:
    """Call a script's main function with these flags."""
    printed, errors, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            main([str(flag) for flag in flags])
        except SystemExit as stop:
            status = int(stop.code or 0)
    return Result(status, printed.getvalue(), errors.getvalue())


def run_command(script: str, *flags: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    words = [sys.executable, str(PROJECT_ROOT / script), *map(str, flags)]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=PROJECT_ROOT)


def refused(result: Result) -> str:
    """The line of an error, which is the only one and comes with exit status 2."""
    assert result.returncode == 2, (result.stdout, result.stderr)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("error: "), result.stderr
    assert "Traceback" not in result.stderr
    return lines[-1]
