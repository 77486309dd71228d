"""The command that checks everything before a long run: ``python -m common.doctor``."""

from dataclasses import dataclass
from enum import StrEnum


class Mark(StrEnum):
    """The result of a check, as printed."""

    GOOD = "✓"
    NOTE = "!"
    BAD = "✗"


@dataclass(frozen=True)
class Finding:
    """A line of the doctor's table: a check, its result, and how to fix it if it failed."""

    mark: Mark
    what: str
    text: str
    fix: str = ""
