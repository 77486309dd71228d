"""The command that checks everything before a long run: ``python -m common.doctor``."""

from dataclasses import dataclass
from enum import StrEnum


class Mark(StrEnum):
    """The result of a check, as it is shown."""

    GOOD = "✓"
    NOTE = "!"
    BAD = "✗"


@dataclass(frozen=True)
class Finding:
    """A line of the doctor's table: what was checked, with what result, and how to fix a failed check."""

    mark: Mark
    what: str
    text: str
    fix: str = ""
