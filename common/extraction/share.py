"""Which share of an extraction a process does: from ``--shard``, or from what launched it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from common.errors import UserError

Part = TypeVar("Part")


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

    def assigned(self, parts: Sequence[Part]) -> Sequence[Part]:
        """This share's parts; all, where the count is unknown."""
        return parts[self.index :: self.count] if self.count else parts

    def order(self, parts: Sequence[Part]) -> list[Part]:
        """All parts in the order in which this process looks for work: its own, then the others' from the end.

        Where the count is unknown, processes begin at places far apart.
        """
        if self.count:
            first = self.assigned(parts)
            taken = set(first)
            return [*first, *(part for part in reversed(parts) if part not in taken)]
        start = int(len(parts) * (self.index * 0.618034 % 1))
        return [*parts[start:], *parts[:start]]


def _of_slurm(environment: Mapping[str, str]) -> Share:
    """Of an array; one with gaps, such as ``--array=1,3,7``, has ids that are no ranks."""
    task, step = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", 1)) for name in ("ID", "STEP"))
    # A container may be handed the id alone.
    first, last, count = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", 0)) for name in ("MIN", "MAX", "COUNT"))
    has_gaps = (last - first) // step + 1 != count or (task - first) % step
    return (
        Share(task, 0, "a Slurm array with gaps") if has_gaps else Share((task - first) // step, count, "a Slurm array")
    )
