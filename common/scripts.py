"""This project's scripts, run from others: shown before they start, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common.encoder_name import EncoderName
from common.files import PROJECT_ROOT

ENCODERS_FOLDER = "encoders"  # below the results: what `common.encoder.check` measured of each encoder


def flags(**values: object) -> list[object]:
    """Flags by their names: none for None and False, the name alone for True."""
    words: list[object] = []
    for name, value in values.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    return words


def run_script(script: str, *flags: object) -> int:
    """Show a command and run it; returns its exit status."""
    show_command(script, *flags)
    what = [str(PROJECT_ROOT / script)] if script.endswith(".py") else ["-m", script]
    return subprocess.run([sys.executable, *what, *map(str, flags)], check=False).returncode


def call(script: str, *flags: object, advice: str = "stopped; once that is fixed, the same command continues") -> None:
    """The same, but if it fails, print the advice and exit with its status."""
    status = run_script(script, *flags)
    if status:
        print(advice, file=sys.stderr)
        sys.exit(status)


def show_command(script: str, *flags: object) -> None:
    shown = [str(flag).replace(f"{PROJECT_ROOT}/", "") for flag in flags]
    print(f"\n$ python {'' if script.endswith('.py') else '-m '}{script} {' '.join(shown)}", flush=True)


def measure_encoders(encoders: Sequence[EncoderName], results: Path, overwrite: bool, *settings: object) -> None:
    """Load and check every encoder, and measure its speed on this machine; if one cannot be had, exit before any work."""
    folder = results / ENCODERS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for encoder in encoders:
        path = folder / f"{encoder.slug}.json"
        is_needed = overwrite or not path.exists()
        if is_needed and run_script("common.encoder.check", encoder, *settings, "--json", path) > 1:
            sys.exit(2)
