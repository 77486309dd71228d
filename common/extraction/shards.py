"""One extraction over several processes or machines: which shard embeds which clips, and which one writes the file.

The shards do not communicate. Each writes its rows as chunks into the same ``<output>.partial/`` and marks itself done.
The last one to finish assembles the file. So a shard may run on any machine that sees the folder, at any time, and one
that was killed can simply be started again.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from common.datasets import Clip
from common.errors import UserError
from common.files import (
    DamagedFileError,
    OutputError,
    UnsafeFileError,
    exclusive,
    load_torch,
    read_json,
    save_torch,
    write_json,
)

ASSUMED_BYTES_PER_SECOND = 64_000  # of a file, to compare it with a segment of known length


class ShardError(UserError):
    """--shard is not i/n."""


class _Done(BaseModel):
    """The note of a shard that is done: what its rows were made with, and why which of its clips failed."""

    model_config = ConfigDict(frozen=True)
    settings: str
    failed: dict[int, str]


@dataclass(frozen=True)
class Shard:
    """Shard `index`, from 0, of `count`."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"

    @classmethod
    def parse(cls, text: str | None, environment: Mapping[str, str] = os.environ) -> Shard:
        """From ``"i/n"``, i from 1, or from torchrun's RANK and WORLD_SIZE; 1/1 if there is neither.

        Raises:
            ShardError: not i/n with 1 <= i <= n.
        """
        if text is None:
            if "WORLD_SIZE" not in environment or "RANK" not in environment:
                return cls()
            return cls(int(environment["RANK"]), int(environment["WORLD_SIZE"]))
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ShardError(f"invalid shard {text!r}: expected i/n with 1 <= i <= n, such as --shard 3/8")
        return cls(int(match[1]) - 1, int(match[2]))

    def assign(self, lengths: Sequence[float]) -> list[int]:
        """The indices of this shard's clips, longest first. Every clip belongs to exactly one shard.

        Each clip goes to the shard with the least work so far (Graham's longest processing time first), so that all
        shards finish at about the same time.
        """
        loads = [(0.0, shard) for shard in range(self.count)]  # a heap: the least work is first
        mine = []
        for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
            load, shard = loads[0]
            heapq.heapreplace(loads, (load + lengths[index], shard))
            if shard == self.index:
                mine.append(index)
        return mine

    @contextlib.contextmanager
    def hold(self, work_folder: Path, what: str) -> Iterator[None]:
        """Hold this shard's lock for the block; OutputError if another process holds it, or runs another number of
        shards."""
        mine = what if self.count == 1 else f"shard {self} of {what}"
        with exclusive(work_folder / f"lock-{self.index}-of-{self.count}", mine):
            for other in work_folder.glob("lock-*-of-*"):
                if not other.name.endswith(f"-of-{self.count}") and _is_held(other):
                    raise OutputError(
                        f"another run is writing {what} in {other.name.rpartition('-')[2]} shard(s); wait for it to "
                        "end, or write elsewhere"
                    )
            self._note(work_folder).unlink(missing_ok=True)  # not done: clips that failed are tried again
            yield

    def mark_done(self, work_folder: Path, failed: Mapping[int, str], identity: str) -> None:
        """Record that this shard is done, which of its clips failed, and what its rows were made with."""
        write_json(self._note(work_folder), _Done(settings=identity, failed=dict(failed)).model_dump_json())

    def failures_of_all(self, work_folder: Path, identity: str) -> dict[int, str] | None:
        """The failed clips of all shards, by index; None until all shards are done with these settings.

        Raises:
            OutputError: the note of a shard is damaged.
        """
        failed: dict[int, str] = {}
        for index in range(self.count):
            shard = Shard(index, self.count)
            path = shard._note(work_folder)
            try:
                note = _Done.model_validate_json(read_json(path))
            except FileNotFoundError:
                return None
            except (DamagedFileError, ValidationError) as error:
                raise OutputError(
                    f"{path} is damaged; run --shard {shard} again: finished clips are not repeated"
                ) from error
            if note.settings != identity:
                return None
            failed |= note.failed
        return failed

    def _note(self, work_folder: Path) -> Path:
        return work_folder / f"done-{self.index}-of-{self.count}.json"


@contextlib.contextmanager
def one_at_a_time(work_folder: Path) -> Iterator[None]:
    """Hold the lock for work that concerns all shards: the settings, and the final file; other processes wait."""
    work_folder.mkdir(parents=True, exist_ok=True)
    with FileLock(work_folder / "common.lock"):
        yield


def clip_lengths(work_folder: Path, clips: Sequence[Clip], identity: str) -> list[float]:
    """The approximate length of each clip in seconds: of its segment, or estimated from its file's size.

    The first shard saves them, since all shards must assign clips alike, even if the files change.
    """
    path = work_folder / "lengths.pt"
    with contextlib.suppress(FileNotFoundError, DamagedFileError, UnsafeFileError):
        kept = load_torch(path)
        lengths = kept.get("lengths") if isinstance(kept, dict) and kept.get("settings") == identity else None
        if isinstance(lengths, torch.Tensor) and lengths.shape == (len(clips),):
            kept_lengths: list[float] = lengths.double().tolist()
            return kept_lengths
    lengths = [_length_s(clip) for clip in clips]
    save_torch({"settings": identity, "lengths": torch.tensor(lengths, dtype=torch.float64)}, path)
    return lengths


def _length_s(clip: Clip) -> float:
    if clip.end_s is not None:
        return clip.end_s - (clip.start_s or 0.0)
    try:
        return clip.path.stat().st_size / ASSUMED_BYTES_PER_SECOND
    except OSError:
        return 0.0  # embedding it will fail and name it


def remove_locks(work_folder: Path) -> None:
    """Remove the locks of shards that were killed; those that a process holds stay."""
    for path in work_folder.glob("lock-*-of-*"):
        if not _is_held(path):
            path.unlink(missing_ok=True)


def _is_held(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
