"""Which share of an extraction a process does: from ``--shard``, or from what launched it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from common.errors import UserError


class ShardError(UserError):
    """--shard is not i/n."""


@dataclass(frozen=True)
class Share:
    """Share `index`, from 0, of `count`; a count of 0: unknown, so the parts are divided by claims alone.

    `launcher` says where it is from; empty: nothing asked for one.
    """

    index: int = 0
    count: int = 1
    launcher: str = ""

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}" if self.count else str(self.index)

    @property
    def is_all(self) -> bool:
        """Whether there is only one process."""
        return self.count == 1

    @classmethod
    def parse(cls, text: str | None, environment: Mapping[str, str] = os.environ) -> Share:
        """From ``"i/n"``, i from 1; else from torchrun, a Slurm array or a Kubernetes indexed job; else everything.

        Raises:
            ShardError: not i/n with 1 <= i <= n.
        """
        if text is not None:
            match = re.fullmatch(r"(\d+)/(\d+)", text)
            if not match or not 1 <= int(match[1]) <= int(match[2]):
                raise ShardError(f"invalid shard {text!r}: expected i/n with 1 <= i <= n, such as --shard 3/8")
            return cls(int(match[1]) - 1, int(match[2]), "--shard")
        if {"RANK", "WORLD_SIZE"} <= environment.keys():
            return cls(int(environment["RANK"]), int(environment["WORLD_SIZE"]), "torchrun")
        if "SLURM_ARRAY_TASK_ID" in environment:
            return _of_slurm(environment)
        if "JOB_COMPLETION_INDEX" in environment:
            return cls(int(environment["JOB_COMPLETION_INDEX"]), 0, "a Kubernetes indexed job")
        return cls()

    def divided(self, count: int) -> list[Share]:
        """This share as the shares of so many processes."""
        return [Share(self.index * count + number, self.count * count) for number in range(count)]

    def assigned(self, parts: int) -> range:
        """The numbers of this share's parts."""
        return range(self.index, parts, self.count) if self.count else range(0)

    def order(self, parts: int) -> list[int]:
        """All parts in the order in which this process looks for work: its own, then the others' from the end.

        Where the count is unknown, processes begin at places far apart.
        """
        if self.count:
            first = self.assigned(parts)
            return [*first, *(number for number in reversed(range(parts)) if number not in first)]
        start = int(parts * (self.index * 0.618034 % 1))
        return [*range(start, parts), *range(start)]


def _of_slurm(environment: Mapping[str, str]) -> Share:
    """Of an array; one with gaps, such as ``--array=1,3,7``, has ids that are no ranks."""
    task, step = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", 1)) for name in ("ID", "STEP"))
    # A container may be handed the id alone.
    first, last, count = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", 0)) for name in ("MIN", "MAX", "COUNT"))
    has_gaps = (last - first) // step + 1 != count or (task - first) % step
    return (
        Share(task, 0, "a Slurm array with gaps") if has_gaps else Share((task - first) // step, count, "a Slurm array")
    )
