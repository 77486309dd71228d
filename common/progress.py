"""Progress bars that are lively in a terminal and sparse in a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(**options: Any) -> tqdm[Any]:
    """A tqdm bar on stderr; where stderr is no terminal, a line every 30 seconds at most."""
    interactive = sys.stderr.isatty()
    return tqdm(mininterval=0.2 if interactive else 30, dynamic_ncols=interactive, **options)
