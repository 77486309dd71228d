"""How far an extraction is, told from its parts alone."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from common.extraction.claims import alive_claims
from common.extraction.extract import MOST_JOINED, parts_folder
from common.files import DamagedFileError
from common.parts import NAME, PartInfo, part_files, read_info

RECENT_S = 600.0  # the speed is that of the last ten minutes of work


@dataclass(frozen=True)
class Status:
    """How far an extraction is.

    Attributes:
        output: what is written.
        is_finished: whether it is.
        clips, clips_done, clips_failed: numbers of clips; None while nothing is made.
        parts_done, parts_in_work: numbers of parts.
        parts_missing: how many are neither, about.
        clips_per_s: the speed of late, of all processes together; None: too few parts.
        seconds_left: at that speed.
    """

    output: str
    is_finished: bool
    clips: int | None = None
    clips_done: int = 0
    clips_failed: int = 0
    parts_done: int = 0
    parts_in_work: int = 0
    parts_missing: int | None = None
    clips_per_s: float | None = None
    seconds_left: float | None = None

    def __str__(self) -> str:
        if self.clips is None:
            state = "finished" if self.is_finished else f"no part is made; {self.parts_in_work} in work"
            return f"{self.output}: {state}"
        clips = f"{self.clips_done:,} of {self.clips:,} clips done, {self.clips_failed:,} failed"
        parts = f"{self.parts_done:,} done, {self.parts_in_work} in work, {self.parts_missing:,} missing"
        left = f"; {self.clips_per_s:.3g} clips/s, {self.seconds_left / 60:,.1f} min left" if self.seconds_left else ""
        return f"{self.output}: {clips}; parts: {parts}{left}" + "; finished" * self.is_finished


def read_status(output: Path) -> Status:
    """How far the extraction of an output is."""
    if output.is_file():
        return Status(str(output), is_finished=True)
    to_join, to_stay = (parts_folder(output, n_clips) for n_clips in (0, MOST_JOINED + 1))
    folder = to_join if to_join.is_dir() else to_stay
    in_work = sum(NAME.fullmatch(path.stem) is not None for path in alive_claims(folder))
    infos: dict[Path, PartInfo] = {}
    for path in part_files(folder).values():
        with contextlib.suppress(DamagedFileError, FileNotFoundError):  # the next run tells, or another has joined them
            infos[path] = read_info(path)
    if not infos:
        return Status(str(output), is_finished=False, parts_in_work=in_work)
    last, done = max(infos.values(), key=lambda info: info.stop), sum(len(info.place) for info in infos.values())
    left, speed = last.clips - done, _speed(infos)
    return Status(
        str(output),
        is_finished=not left and folder == to_stay,
        clips=last.clips,
        clips_done=done,
        clips_failed=sum(len(info.failed) for info in infos.values()),
        parts_done=len(infos),
        parts_in_work=in_work,
        parts_missing=max(0, -(-left // int(str(last.settings["part_size"]))) - in_work),
        clips_per_s=speed,
        seconds_left=None if speed is None else left / speed,
    )


def _speed(infos: dict[Path, PartInfo]) -> float | None:
    """Clips per second of the parts that were written last, but the first of them, whose beginning is not known."""
    written = sorted((path.stat().st_mtime, len(info.place)) for path, info in infos.items())
    recent = [(moment, clips) for moment, clips in written if moment >= written[-1][0] - RECENT_S]
    seconds = recent[-1][0] - recent[0][0]
    return sum(clips for _, clips in recent[1:]) / seconds if seconds > 0 else None
