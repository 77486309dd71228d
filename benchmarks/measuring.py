"""What the benchmarks share: seconds of a call, peak memory of a process, figures as JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def peak_memory() -> int:
    """Bytes of this process's largest resident set."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def save_figures(path: Path | None, figures: dict[str, object]) -> None:
    """Write figures as JSON, if a file is asked for."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=1, default=str) + "\n")
