"""One extraction over several processes or machines: who embeds which clips, and who puts the parts together.

Nothing is sent between them. Each writes its rows as chunks into the same ``<output>.partial/``, says when it is done,
and the last one to be done assembles the file. So a shard may run on any machine that sees the folder, at any time, and
one that was killed is started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from common.clips import Clip
from common.files import OutputError, exclusive, write_atomically

ASSUMED_BYTES_A_SECOND = 64_000  # of a file, to weigh it against a segment whose seconds are known
WAIT_S = 600  # for another shard that reads or assembles


@dataclass(frozen=True)
class Shard:
    """Part `index`, from 0, of `count`."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"

    @classmethod
    def of(cls, text: str | None, environment: Mapping[str, str] = os.environ) -> Shard:
        """From ``"i/n"``, i from 1, or from torchrun's RANK and WORLD_SIZE; the whole where there is neither.

        Raises:
            ValueError: no such part.
        """
        if text is None:
            if "WORLD_SIZE" not in environment or "RANK" not in environment:
                return cls()
            return cls(int(environment["RANK"]), int(environment["WORLD_SIZE"]))
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"shard {text!r} is none; give i/n with i from 1 to n, such as 3/8")
        return cls(int(match[1]) - 1, int(match[2]))

    def own(self, clips: Sequence[Clip]) -> list[int]:
        """The indices of this part's clips, longest first; all shards together have every clip once.

        Clips are dealt to the shard that has the least so far (Graham's longest processing time first), so that all
        end together. Lengths are those of segments, or by the sizes of files; the same on every machine.
        """
        if self.count == 1:
            return list(range(len(clips)))
        weights = [_weight(clip) for clip in clips]
        loads = [(0.0, shard) for shard in range(self.count)]
        own = []
        for index in sorted(range(len(clips)), key=lambda index: (-weights[index], index)):
            load, shard = min(loads)
            loads[shard] = (load + weights[index], shard)
            if shard == self.index:
                own.append(index)
        return own

    @contextlib.contextmanager
    def working(self, partial: Path, what: str) -> Iterator[None]:
        """Hold this part's lock for the block; OutputError where another process holds it, or another division's."""
        mine = what if self.count == 1 else f"shard {self} of {what}"
        with exclusive(partial / f"lock-{self.index}-of-{self.count}", mine):
            for other in partial.glob("lock-*-of-*"):
                if not other.name.endswith(f"-of-{self.count}") and _is_held(other):
                    raise OutputError(
                        f"another run is writing {what} in {other.name.rpartition('-')[2]} part(s); wait for it to "
                        "end, or write elsewhere"
                    )
            self._note(partial).unlink(missing_ok=True)  # not done: clips that failed are tried again
            yield

    def is_done(self, partial: Path, failed: Mapping[int, str]) -> None:
        """Say so, with the clips of this part that failed."""
        write_atomically(self._note(partial), json.dumps({str(index): why for index, why in failed.items()}).encode())

    def failures_of_all(self, partial: Path) -> dict[int, str] | None:
        """The failed clips of all parts, by index; None while one is not done."""
        failed: dict[int, str] = {}
        for index in range(self.count):
            try:
                note = json.loads(Shard(index, self.count)._note(partial).read_text(encoding="utf-8"))
            except FileNotFoundError:
                return None
            failed |= {int(clip): why for clip, why in note.items()}
        return failed

    def _note(self, partial: Path) -> Path:
        return partial / f"done-{self.index}-of-{self.count}.json"


@contextlib.contextmanager
def one_at_a_time(partial: Path) -> Iterator[None]:
    """Hold the lock of what concerns all parts: the settings, and the assembling."""
    partial.mkdir(parents=True, exist_ok=True)
    lock = FileLock(partial / "common.lock")
    try:
        lock.acquire(timeout=WAIT_S)
    except Timeout as error:
        raise OutputError(f"another process has held {lock.lock_file} for {WAIT_S} s; is it stuck?") from error
    try:
        yield
    finally:
        lock.release()


def _weight(clip: Clip) -> float:
    if clip.end_s is not None:
        return clip.end_s - (clip.start_s or 0.0)
    try:
        return clip.path.stat().st_size / ASSUMED_BYTES_A_SECOND
    except OSError:
        return 0.0  # it will fail, and be named


def _is_held(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
