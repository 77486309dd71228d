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
from common.files import OutputError, exclusive, load_torch, save_torch, write_atomically

ASSUMED_BYTES_A_SECOND = 64_000  # of a file, to weigh it against a segment whose seconds are known


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

    def own(self, lengths: Sequence[float]) -> list[int]:
        """The indices of this part's clips, longest first; all shards together have every clip once.

        Clips are dealt to the shard that has the least so far (Graham's longest processing time first), so that all
        end together.
        """
        loads = [(0.0, shard) for shard in range(self.count)]
        own = []
        for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
            load, shard = min(loads)
            loads[shard] = (load + lengths[index], shard)
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

    def is_done(self, partial: Path, failed: Mapping[int, str], settings_id: str) -> None:
        """Say so, with the clips of this part that failed, and what its rows were made with."""
        note = {"settings": settings_id, "failed": {str(index): why for index, why in failed.items()}}
        write_atomically(self._note(partial), json.dumps(note).encode())

    def failures_of_all(self, partial: Path, settings_id: str) -> dict[int, str] | None:
        """The failed clips of all parts, by index; None while one is not done with these settings."""
        failed: dict[int, str] = {}
        for index in range(self.count):
            try:
                note = json.loads(Shard(index, self.count)._note(partial).read_text(encoding="utf-8"))
            except FileNotFoundError:
                return None
            if note["settings"] != settings_id:
                return None
            failed |= {int(clip): why for clip, why in note["failed"].items()}
        return failed

    def _note(self, partial: Path) -> Path:
        return partial / f"done-{self.index}-of-{self.count}.json"


@contextlib.contextmanager
def one_at_a_time(partial: Path) -> Iterator[None]:
    """Hold the lock of what concerns all parts: the settings, and the assembling, for which others wait."""
    partial.mkdir(parents=True, exist_ok=True)
    with FileLock(partial / "common.lock"):
        yield


def clip_lengths(partial: Path, clips: Sequence[Clip], settings_id: str) -> list[float]:
    """About how many seconds each clip has: of its segment, or by the size of its file. Written down by the first part
    that asks, since all must deal alike, whatever becomes of the files or lies on another machine."""
    import torch  # late: --help reads this file too

    path = partial / "lengths.pt"
    if path.exists():
        kept = load_torch(path)
        if kept["settings"] == settings_id:
            return kept["lengths"].tolist()
    lengths = [_length_s(clip) for clip in clips]
    save_torch({"settings": settings_id, "lengths": torch.tensor(lengths, dtype=torch.float64)}, path)
    return lengths


def _length_s(clip: Clip) -> float:
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
