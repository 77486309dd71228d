"""Work shared out among the threads that torch computes with on a CPU."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import torch

_Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def in_parallel(work: Callable[[int, int], object], count: int) -> None:
    """Call work(first, last) for parts of range(count) that cover it, on as many threads as torch uses, and wait for all.

    To gain from it, the work must release the GIL. What it raises is raised here.
    """
    parts = min(torch.get_num_threads(), count)
    if parts < 2:
        work(0, count)
        return
    # One list's iterator, which threads may share: each takes what is left, so nothing is left out if there are fewer.
    left = iter(list(pairwise(count * part // parts for part in range(parts + 1))))
    entered: set[int] = set()
    errors: list[BaseException] = []

    def take(_: object = None) -> None:
        try:
            entered.add(threading.get_ident())
            for first, last in left:
                work(first, last)
        except BaseException as error:  # noqa: BLE001  # in a callback it would be lost, an interruption too
            errors.append(error)

    openmp = _openmp()
    if openmp is None:
        with ThreadPoolExecutor(parts) as pool:
            list(pool.map(take, range(parts)))
    else:
        # As many threads as torch has, also if there are fewer parts: with another number, libgomp would end some of them, and
        # start them again for torch's next operation.
        openmp(_Callback(take), None, 0, 0)
        if threading.get_ident() not in entered:  # Python was interrupted as it called back, and could only print that
            raise KeyboardInterrupt
    if errors:
        raise errors[0]


@cache
def _openmp() -> Callable[..., Any] | None:
    """What starts OpenMP's threads, in the library that torch is linked with; None where it has no such function.

    After each of torch's operations its threads wait for the next one in a busy loop, for milliseconds. Threads of our own
    would have to share the cores with them, and are slower to start: measured, 0.17 ms instead of 0.04.
    """
    if sys.platform != "linux":
        return None
    try:
        start = ctypes.CDLL(torch._C.__file__).GOMP_parallel  # also looks in the libraries that this one needs
    except (OSError, AttributeError):
        return None
    start.argtypes = [_Callback, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    start.restype = None
    return start
