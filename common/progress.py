"""Progress bars: updated often in a terminal, rarely in a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(**options: Any) -> tqdm[Any]:
    """A tqdm bar on stderr; if stderr is not a terminal, at most one line every 30 seconds."""
    interactive = sys.stderr.isatty()
    return tqdm(mininterval=0.2 if interactive else 30, dynamic_ncols=interactive, **options)
