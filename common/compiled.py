"""How loops that torch has no operation for are compiled: by numba, when they are first called.

Importing this module takes a quarter of a second: import it where compiled code is needed, not at the top of a script.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import numba

COMPILED_FUNCTIONS = 16  # that one call compiles, at most; each is kept on the disk by itself


# Sums may be reordered into vectors. Not allowed is what assumes that no value is infinite or not a number: a fit that
# diverges, or an embedding of damaged weights, must show it. numba does not see a change of these options: after one,
# delete the kept results (`__pycache__/*.nbi`).
_compiler = partial(numba.njit, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function when it is first called; keep the result for other processes, if there is a place to keep it."""
    try:
        kept: Callable[..., Any] = _compiler(cache=True)(function)
    except (RuntimeError, OSError):  # neither the project's folder nor the user's can be written
        kept = _compiler()(function)
    return kept


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function into those that call it; a call from an inner loop costs a fifth of the loop's time."""
    into_callers: Callable[..., Any] = _compiler(inline="always")(function)
    return into_callers


def call(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a compiled function. The first call compiles it and keeps the result on the disk; where that fails, on a full disk,
    the result is in memory, and nothing has been computed yet."""
    for _ in range(COMPILED_FUNCTIONS):
        with contextlib.suppress(OSError):
            return function(*arguments)
    return function(*arguments)


def import_compiled(name: str) -> Any:
    """Import a package whose loops numba compiles and keeps. Where neither its folder nor the user's can be written, which ends
    the import, they are kept for this process alone."""
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None:
        of_package = (lambda: None).__code__.replace(co_filename=spec.origin)
        try:
            numba.njit(cache=True)(FunctionType(of_package, {}))
        except RuntimeError:
            folder = tempfile.mkdtemp()  # nobody else can write there: what is kept is code
            vars(numba.config)["CACHE_DIR"] = folder
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return importlib.import_module(name)
