"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mark = Literal["good", "note", "bad"]
GOOD: Mark = "good"
NOTE: Mark = "note"
BAD: Mark = "bad"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table: what was checked, what was found, and for a failed check how to fix it."""

    mark: Mark
    what: str
    found: str
    fix: str = ""
