"""What the benchmarks share: ways that take turns, and the seconds of a call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

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


def medians_in_turns(ways: list[Callable[[], object]], rounds: int, device: torch.device) -> list[float]:
    """Median seconds of every way over rounds in which all take turns; a first round warms up and is not counted."""
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(rounds + 1):
        for place in range(len(ways)) if turn % 2 else reversed(range(len(ways))):
            time.sleep(0.3)  # until the threads of the previous way are idle
            seconds[place].append(timed(ways[place], device))
    return [statistics.median(of_way[1:]) for of_way in seconds]
