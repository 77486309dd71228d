"""Unfinished work of an extraction: rows by clip index, and the folder in which they wait for the next run.

While a run is under way its finished rows lie in ``<output>.partial/`` as chunks, each written whole or not at
all; the next run with the same settings goes on from them.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.audio import AudioError, audio_stamp
from common.clips import Clip
from common.features import FeatureSet
from common.files import DamagedFileError, OutputError, difference_in_words, load_torch, save_torch, write_atomically

# What a finished file must share with a run to stand for it. The versions are kept too, but only as a record.
SETTINGS = (
    "dataset",
    "encoder",
    "checkpoint",
    "condition",
    "precision",
    "layer",
    "pool",
    "sample_rate",
    "clips",
    "clip_list",
)


@dataclass
class Rows:
    """What has been computed so far, by clip index.

    `samples` holds the waveform's length once a clip is embedded, and 0 before; `stamps` what its file's content
    was then; `failed` the reason where it cannot be, which is not saved: a run that goes on tries those clips
    again. `unsaved` are the indices that no chunk holds yet. `settings_id` says what the rows were made with.
    """

    features: torch.Tensor  # (N, D)
    samples: torch.Tensor  # (N,) int64
    stamps: torch.Tensor  # (N,) int64
    failed: dict[int, str]
    unsaved: list[int]
    settings_id: str = ""

    @classmethod
    def empty(cls, rows: int, size: int, settings_id: str) -> Rows:
        return cls(torch.zeros(rows, size), *torch.zeros(2, rows, dtype=torch.int64), {}, [], settings_id)

    def embedded(self) -> int:
        return int((self.samples > 0).sum())

    def pending(self) -> list[int]:
        return [index for index in (self.samples == 0).nonzero()[:, 0].tolist() if index not in self.failed]

    def add(self, index: int, embedding: torch.Tensor, samples: int, stamp: int) -> None:
        self.features[index] = embedding
        self.stamps[index] = stamp
        self.samples[index] = samples
        self.unsaved.append(index)

    def adopt(self, existing: FeatureSet, clip_ids: list[str]) -> None:
        """Take over the rows of a finished file."""
        place = {clip_id: index for index, clip_id in enumerate(clip_ids)}
        indices = torch.tensor([place[clip_id] for clip_id in existing.clip_ids])
        self.features[indices] = existing.features
        self.samples[indices] = existing.meta["samples"]
        self.stamps[indices] = existing.meta["audio_stamps"]

    def save_chunk(self, partial: Path) -> None:
        """Write the unsaved rows as one more chunk."""
        if not self.unsaved:
            return
        indices = torch.tensor(self.unsaved)
        chunk = {
            "settings": self.settings_id,
            "indices": indices,
            "features": self.features[indices],
            "samples": self.samples[indices],
            "stamps": self.stamps[indices],
        }
        # Never the name of another chunk: a clip whose audio changed stands in an old one too, beside good rows.
        save_torch(chunk, partial / f"chunk-{time.time_ns()}-{os.getpid()}.pt")
        self.unsaved.clear()

    def read_chunks(self, partial: Path, clips: Sequence[Clip], wanted: Sequence[int]) -> int:
        """Take over the wanted rows of chunks of the same settings, but for clips whose audio has changed; how many.

        Chunks of other settings may still come from a process that has not noticed that its work was dropped.
        """
        count, is_wanted = 0, torch.zeros(len(clips), dtype=torch.bool)
        is_wanted[torch.tensor(wanted, dtype=torch.int64)] = True
        for path in sorted(partial.glob("chunk-*.pt")):
            try:
                chunk = load_torch(path)
            except DamagedFileError as error:
                print(f"{path} is damaged ({error}); its clips are computed again")
                path.unlink()
                continue
            if chunk.get("settings") != self.settings_id:
                continue
            keep = is_wanted[chunk["indices"]]
            chunk = {key: value[keep] for key, value in chunk.items() if key != "settings"}
            indices = chunk["indices"]
            changed = set(changed_files(clips, dict(zip(indices.tolist(), chunk["stamps"].tolist(), strict=True))))
            if changed:
                print(f"{len(changed)} audio files have changed since the last run; their clips are computed again")
            same = torch.tensor([clips[index].path not in changed for index in indices.tolist()], dtype=torch.bool)
            self.features[indices[same]] = chunk["features"][same]
            self.samples[indices[same]] = chunk["samples"][same]
            self.stamps[indices[same]] = chunk["stamps"][same]
            count += int(same.sum())
        return count


def difference(earlier: dict[str, Any], settings: dict[str, Any]) -> str:
    """What differs of the settings that count, in words; empty where nothing does."""
    return difference_in_words(earlier, _counting(settings))


def settings_id(settings: dict[str, Any]) -> str:
    """A name for the settings that count."""
    return hashlib.sha256(json.dumps(_counting(settings), sort_keys=True).encode()).hexdigest()


def _counting(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key in (*SETTINGS, "device")}


def changed_files(clips: Sequence[Clip], stamps: dict[int, int]) -> list[Path]:
    """The files whose content is no longer what it was when their clips were embedded."""
    now: dict[Path, int | None] = {}
    for index in stamps:
        path = clips[index].path
        if path not in now:
            try:
                now[path] = audio_stamp(path)
            except AudioError:
                now[path] = None
    return list(dict.fromkeys(clips[index].path for index, stamp in stamps.items() if now[clips[index].path] != stamp))


def claim(partial: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Make the folder one of these settings, which name the kind of device too; work of other ones is refused, or
    dropped where it may be."""
    note = partial / "settings.json"
    if note.exists():
        try:
            different = difference(json.loads(note.read_text()), settings)
        except (ValueError, AttributeError) as error:
            different = f"its settings cannot be read: {error}"
        if not different:
            return
        if not overwrite:
            raise OutputError(f"{partial} holds unfinished work of other settings ({different}); --overwrite drops it")
        discard(partial)
    write_atomically(note, json.dumps(settings, indent=1).encode())


def discard(partial: Path) -> None:
    """Remove the chunks and their settings, once the finished file holds their rows."""
    for pattern in ("chunk-*.pt", ".chunk-*.tmp", "done-*.json", "lengths.pt", "settings.json"):
        for file in partial.glob(pattern):
            file.unlink(missing_ok=True)
