"""The unfinished work of an extraction, kept for the next run.

During a run, its finished rows are in ``<output>.partial/`` as chunks, each written atomically. The next run with the
same settings continues from them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from common.datasets import Clip
from common.datasets.audio import AudioError, audio_stamp
from common.extraction.settings import ExtractionSettings
from common.features import FeatureSet
from common.files import DamagedFileError, OutputError, load_torch, save_torch, write_atomically


@dataclass
class RowStore:
    """What has been computed so far, by clip index.

    Attributes:
        embeddings: (N, D).
        samples: (N,) int64, the waveform's length once a clip is embedded, and 0 before.
        stamps: (N,) int64, a checksum of the file that the clip was read from.
        failed: why a clip cannot be embedded. It is not saved: a run that continues tries those clips again.
        unsaved: the indices that are in no chunk yet.
        identity: a checksum of the settings that the rows were made with.
    """

    embeddings: torch.Tensor
    samples: torch.Tensor
    stamps: torch.Tensor
    failed: dict[int, str]
    unsaved: list[int]
    identity: str

    @classmethod
    def empty(cls, n_rows: int, width: int, identity: str) -> RowStore:
        samples, stamps = torch.zeros(2, n_rows, dtype=torch.int64)
        return cls(torch.zeros(n_rows, width), samples, stamps, {}, [], identity)

    def n_embedded(self) -> int:
        return int((self.samples > 0).sum())

    def n_saved(self) -> int:
        return self.n_embedded() - len(self.unsaved)

    def pending(self) -> list[int]:
        """Clips that are neither embedded nor failed."""
        return [index for index in (self.samples == 0).nonzero()[:, 0].tolist() if index not in self.failed]

    def add(self, index: int, embedding: torch.Tensor, samples: int, stamp: int) -> None:
        self.embeddings[index] = embedding
        self.stamps[index] = stamp
        self.samples[index] = samples
        self.unsaved.append(index)

    def adopt(self, finished: FeatureSet, clip_ids: Sequence[str]) -> None:
        """Copy the rows of a finished file."""
        place = {clip_id: index for index, clip_id in enumerate(clip_ids)}
        indices = torch.tensor([place[clip_id] for clip_id in finished.clip_ids])
        self.embeddings[indices] = finished.features
        self.samples[indices] = finished.meta["samples"]
        self.stamps[indices] = finished.meta["audio_stamps"]

    def save_chunk(self, work_folder: Path) -> None:
        """Write the unsaved rows as one more chunk."""
        if not self.unsaved:
            return
        indices = torch.tensor(self.unsaved)
        chunk = {
            "settings": self.identity,
            "indices": indices,
            "features": self.embeddings[indices],
            "samples": self.samples[indices],
            "stamps": self.stamps[indices],
        }
        # Never the name of another chunk: an old chunk may hold a clip whose audio has changed, beside good rows.
        save_torch(chunk, work_folder / f"chunk-{time.time_ns()}-{os.getpid()}.pt")
        self.unsaved.clear()

    def read_chunks(self, work_folder: Path, clips: Sequence[Clip], wanted: Sequence[int]) -> int:
        """Copy the wanted rows from chunks of the same settings, except clips whose audio has changed.

        A process that has not noticed that its work was discarded may still write chunks of other settings.

        Returns:
            The number of rows.
        """
        count, is_wanted = 0, torch.zeros(len(clips), dtype=torch.bool)
        is_wanted[torch.tensor(wanted, dtype=torch.int64)] = True
        for path in sorted(work_folder.glob("chunk-*.pt")):
            try:
                chunk = load_torch(path)
            except DamagedFileError as error:
                print(f"{path} is damaged ({error}); its clips are computed again")
                path.unlink()
                continue
            if chunk.get("settings") != self.identity:
                continue
            indices, stamps = chunk["indices"], chunk["stamps"]
            changed = set(changed_files(clips, dict(zip(indices.tolist(), stamps.tolist(), strict=True)), is_wanted))
            if changed:
                print(f"{len(changed)} audio files have changed since the last run; their clips are computed again")
            unchanged = torch.tensor([clips[index].path not in changed for index in indices.tolist()], dtype=torch.bool)
            kept = is_wanted[indices] & unchanged
            self.embeddings[indices[kept]] = chunk["features"][kept]
            self.samples[indices[kept]] = chunk["samples"][kept]
            self.stamps[indices[kept]] = stamps[kept]
            count += int(kept.sum())
        return count


def changed_files(clips: Sequence[Clip], stamps: dict[int, int], is_wanted: torch.Tensor | None = None) -> list[Path]:
    """The files whose content has changed since their clips were embedded.

    Args:
        stamps: clip index -> checksum at that time.
        is_wanted: (N,) bool, the clips to check; None: all.
    """
    now: dict[Path, int | None] = {}
    changed: dict[Path, None] = {}
    for index, stamp in stamps.items():
        if is_wanted is not None and not is_wanted[index]:
            continue
        path = clips[index].path
        if path not in now:
            try:
                now[path] = audio_stamp(path)
            except AudioError:
                now[path] = None
        if now[path] != stamp:
            changed[path] = None
    return list(changed)


def claim(work_folder: Path, settings: ExtractionSettings, overwrite: bool) -> None:
    """Reserve the folder for these settings. Work with other settings is refused, or discarded if `overwrite`."""
    note = work_folder / "settings.json"
    if note.exists():
        try:
            different = settings.difference_from_work(json.loads(note.read_text()))
        except (ValueError, AttributeError) as error:
            different = f"its settings cannot be read: {error}"
        if not different:
            return
        if not overwrite:
            raise OutputError(
                f"{work_folder} holds unfinished work with other settings ({different}); --overwrite discards it"
            )
        discard(work_folder)
    write_atomically(note, settings.as_json().encode())


def is_finished_work(work_folder: Path, settings: ExtractionSettings) -> bool:
    """Whether the folder is empty, or holds only work of these settings, for which there is a finished file."""
    note = work_folder / "settings.json"
    if not note.exists():
        return not any(work_folder.glob("chunk-*.pt"))
    try:
        return not settings.difference_from_work(json.loads(note.read_text()))
    except (ValueError, AttributeError):
        return False


def discard(work_folder: Path) -> None:
    """Remove the chunks and their settings, once the finished file holds their rows."""
    for pattern in ("chunk-*.pt", ".*.tmp", "done-*.json", "lengths.pt", "settings.json"):
        for file in work_folder.glob(pattern):
            file.unlink(missing_ok=True)
