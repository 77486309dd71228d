"""Clips that a data set lists, but whose files are missing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.datasets import Clip
from common.datasets.audio import AudioError
from common.errors import UserError
from common.extraction.settings import ClipList

AT_A_TIME = 256  # files that a thread looks for; a task for each takes ten times as long and 2 kB more


class MissingClipsError(UserError):
    """Files of clips are missing."""


def find_missing(source: ClipList, is_allowed: bool) -> frozenset[int]:
    """The indices of the clips whose files are missing, told in one line; MissingClipsError if there are any and that is not
    allowed."""
    clips = source.clips
    paths = list(dict.fromkeys(clip.path for clip in clips))
    parts = [paths[start : start + AT_A_TIME] for start in range(0, len(paths), AT_A_TIME)]
    with ThreadPoolExecutor(16) as threads:  # a network disk takes its time for each
        gone = {path for part in threads.map(_missing_of, parts) for path in part}
    missing = [index for index, clip in enumerate(clips) if clip.path in gone]
    if not missing:
        return frozenset()
    names = ", ".join(source.clip_ids[index] for index in missing[:3]) + ", ..." * (len(missing) > 3)
    words = f"{len(missing):,} of {len(clips):,} clips are missing ({names})"
    if not is_allowed:
        raise MissingClipsError(
            f"{words} in {source.root}; unpack the data set again, or leave them out with --allow-missing, which is recorded in "
            "the results"
        )
    print(f"{words}; they are left out", file=sys.stderr)
    return frozenset(missing)


def not_found(clip: Clip) -> str:
    """Why a missing clip failed, as `read_audio` says it too."""
    return str(AudioError(f"{clip.path}: not found"))


def _missing_of(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if _is_missing(path)]


def _is_missing(path: Path) -> bool:
    """Whether there is no such file; one that cannot be looked at for another reason fails where it is read."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False
