"""Work shared out among as many threads as torch computes with on a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import torch

from common.compiled import call


def in_parallel(count: int, function: Callable[..., object], *arguments: object) -> None:
    """Call a compiled function(*arguments, first, last) for parts of range(count) that cover it, on as many threads as torch
    uses, and wait for all."""
    parts = max(1, min(torch.get_num_threads(), count))
    first, *others = pairwise(count * part // parts for part in range(parts + 1))
    futures = [_pool(parts - 1).submit(call, function, *arguments, *part) for part in others]
    call(function, *arguments, *first)
    for future in futures:
        future.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="convolution")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads
