"""The unfinished work of an extraction, kept for the next run.

During a run, its finished rows are in ``<output>.partial/`` as chunks, each written atomically. The next run with the
same settings continues from them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue, TypeAdapter

from common.datasets import Clip
from common.datasets.audio import AudioError, audio_checksum
from common.extraction.settings import ExtractionSettings
from common.features import FeatureSet
from common.files import DamagedFileError, OutputError, UnsafeFileError, load_torch, read_json, save_torch, write_json
from common.progress import progress_bar

SETTINGS_FILE = "settings.json"
_SETTINGS = TypeAdapter(dict[str, JsonValue])


@dataclass(frozen=True)
class Chunk:
    """Some finished rows.

    Attributes:
        indices: (K,) int64, their clips.
        features: (K, D) float32.
        samples: (K,) int64, the waveforms' lengths.
        checksums: (K,) int64, of the clips' files.
    """

    indices: torch.Tensor
    features: torch.Tensor
    samples: torch.Tensor
    checksums: torch.Tensor

    @classmethod
    def read(cls, path: Path, identity: str, n_clips: int, width: int) -> Chunk | None:
        """A chunk of an extraction of `n_clips` clips with `width` numbers each; None if it was made with different settings than
        those of which `identity` is a checksum.

        Raises:
            DamagedFileError: it is not a chunk.
        """
        content = load_torch(path)
        if not isinstance(content, dict):
            raise DamagedFileError(f"it holds a {type(content).__name__}, not a dict")
        if not isinstance(content.get("settings"), str):
            raise DamagedFileError("it does not say how its rows were made")
        if content["settings"] != identity:
            return None
        indices = content.get("indices")
        n_rows = len(indices) if isinstance(indices, torch.Tensor) and indices.ndim == 1 else 0
        expected = {"indices": (n_rows,), "features": (n_rows, width), "samples": (n_rows,), "checksums": (n_rows,)}
        for name, shape in expected.items():
            value, dtype = content.get(name), torch.float32 if name == "features" else torch.int64
            if not isinstance(value, torch.Tensor) or value.dtype != dtype or tuple(value.shape) != shape:
                raise DamagedFileError(f"its {name} are not what an extraction of these clips writes")
        if not n_rows:
            raise DamagedFileError("it holds no rows")
        indices, features, samples, checksums = (content[name] for name in expected)
        is_row = indices.min() >= 0 and indices.max() < n_clips and samples.min() > 0
        if not is_row or not features.isfinite().all():
            raise DamagedFileError("it holds clips that are not this data set's, or rows that are not finite")
        return cls(indices, features, samples, checksums)


@dataclass
class RowStore:
    """What has been computed so far, by clip index.

    Attributes:
        embeddings: (N, D).
        samples: (N,) int64, the waveform's length once a clip is embedded, and 0 before.
        checksums: (N,) int64, of the file that the clip was read from.
        failed: why a clip cannot be embedded. It is not saved: a run that continues tries those clips again.
        unsaved: the indices that are in no chunk yet.
        identity: a checksum of the settings that the rows were made with.
    """

    embeddings: torch.Tensor
    samples: torch.Tensor
    checksums: torch.Tensor
    failed: dict[int, str]
    unsaved: list[int]
    identity: str

    @classmethod
    def empty(cls, n_rows: int, width: int, identity: str) -> RowStore:
        samples, checksums = torch.zeros(2, n_rows, dtype=torch.int64)
        return cls(torch.zeros(n_rows, width), samples, checksums, {}, [], identity)

    def n_embedded(self) -> int:
        return int((self.samples > 0).sum())

    def n_saved(self) -> int:
        return self.n_embedded() - len(self.unsaved)

    def pending(self) -> list[int]:
        """Clips that are neither embedded nor failed."""
        return [index for index in (self.samples == 0).nonzero()[:, 0].tolist() if index not in self.failed]

    def add(self, index: int, embedding: torch.Tensor, samples: int, checksum: int) -> None:
        self.embeddings[index] = embedding
        self.checksums[index] = checksum
        self.samples[index] = samples
        self.unsaved.append(index)

    def adopt(self, finished: FeatureSet, clip_ids: Sequence[str]) -> None:
        """Copy the rows of a finished file, whose audio is unchanged."""
        place = {clip_id: index for index, clip_id in enumerate(clip_ids)}
        indices = torch.tensor([place[clip_id] for clip_id in finished.clip_ids])
        self.embeddings[indices] = finished.features
        self.samples[indices] = finished.meta["samples"]
        self.checksums[indices] = finished.meta["audio_checksums"]

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
            "checksums": self.checksums[indices],
        }
        # Never the name of another chunk: an old chunk may hold a clip whose audio has changed, beside good rows. Clocks jump
        # back, and processes of other machines write here too.
        now, number = time.time_ns(), 0
        while (path := work_folder / f"chunk-{now}-{os.getpid()}-{number}.pt").exists():
            number += 1
        save_torch(chunk, path)
        self.unsaved.clear()

    def read_chunks(self, work_folder: Path, clips: Sequence[Clip], wanted: Sequence[int]) -> int:
        """Copy the wanted rows from chunks of the same settings, except clips whose audio has changed.

        A process that has not noticed that its work was discarded may still write chunks of different settings.

        Returns:
            The number of rows.
        """
        count, is_wanted = 0, torch.zeros(len(clips), dtype=torch.bool)
        is_wanted[torch.tensor(wanted, dtype=torch.int64)] = True
        for path in sorted(work_folder.glob("chunk-*.pt")):
            try:
                chunk = Chunk.read(path, self.identity, len(clips), self.embeddings.shape[1])
            except (DamagedFileError, UnsafeFileError) as error:
                print(f"{path} is damaged ({error}); its clips are computed again")
                path.unlink()
                continue
            if chunk is None:
                continue
            chunk_indices = chunk.indices
            wanted_rows = is_wanted[chunk_indices].nonzero()[:, 0]
            indices, checksums = chunk_indices[wanted_rows], chunk.checksums[wanted_rows]
            changed = set(changed_files(clips, indices, checksums))
            if changed:
                print(f"{len(changed)} audio files have changed since the last run; their clips are computed again")
            kept = torch.tensor([clips[index].path not in changed for index in indices.tolist()], dtype=torch.bool)
            indices, rows = indices[kept], wanted_rows[kept]
            self.embeddings[indices] = chunk.features[rows]
            self.samples[indices] = chunk.samples[rows]
            self.checksums[indices] = chunk.checksums[rows]
            count += len(indices)
        return count


def changed_files(clips: Sequence[Clip], indices: torch.Tensor, checksums: torch.Tensor) -> list[Path]:
    """The files whose content has changed since their clips were embedded.

    Args:
        clips: all of the data set's.
        indices: (K,) int64, the clips to check.
        checksums: (K,) int64, of their files at that time.
    """
    before = list(zip([clips[index].path for index in indices.tolist()], checksums.tolist(), strict=True))
    now = _checksums_of([path for path, _ in before])
    return list(dict.fromkeys(path for path, checksum in before if now[path] != checksum))


def _checksums_of(paths: Sequence[Path]) -> dict[Path, int | None]:
    """The checksum of each file; None for one that cannot be opened."""

    def checksum_of(path: Path) -> int | None:
        try:
            return audio_checksum(path)
        except (AudioError, OSError):
            return None

    files = list(dict.fromkeys(paths))
    bar = progress_bar(total=len(files), desc="comparing audio files", unit="file", delay=1, leave=False)
    # Reading and hashing leave Python to other threads.
    with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        checksums: dict[Path, int | None] = {}
        for path, checksum in zip(files, threads.map(checksum_of, files), strict=True):
            checksums[path] = checksum
            bar.update()
    return checksums


def claim(work_folder: Path, settings: ExtractionSettings, overwrite: bool) -> None:
    """Reserve the folder for these settings. Work with different settings is refused, or discarded if `overwrite`."""
    try:
        earlier = _read_settings(work_folder)
        different = "" if earlier is None else settings.difference_from_work(earlier)
        if earlier is not None and not different:
            return
    except DamagedFileError as error:
        # Each chunk says what it was made with: those of these settings can be used.
        others = [path for path in work_folder.glob("chunk-*.pt") if _settings_of(path) not in (settings.identity, "")]
        different = f"settings.json is damaged: {error}" if others else ""
    if different:
        if not overwrite:
            raise OutputError(
                f"{work_folder} holds unfinished work with different settings ({different}); --overwrite discards it"
            )
        discard(work_folder)
    write_json(work_folder / SETTINGS_FILE, settings.as_json())


def _read_settings(work_folder: Path) -> dict[str, Any] | None:
    """The settings that the folder's work was made with; None if it holds none.

    Raises:
        DamagedFileError: they cannot be read.
    """
    note = work_folder / SETTINGS_FILE
    return _SETTINGS.validate_json(read_json(note)) if note.exists() else None


def _settings_of(chunk: Path) -> str:
    """The checksum of the settings that a chunk was made with; empty if it is damaged."""
    try:
        content = load_torch(chunk)
    except (DamagedFileError, UnsafeFileError):
        return ""
    settings = content.get("settings") if isinstance(content, dict) else ""
    return settings if isinstance(settings, str) else ""


def is_finished_work(work_folder: Path, settings: ExtractionSettings) -> bool:
    """Whether the folder is empty, or holds only work of these settings, for which there is a finished file."""
    try:
        earlier = _read_settings(work_folder)
    except DamagedFileError:
        return False
    if earlier is None:
        return not any(work_folder.glob("chunk-*.pt"))
    return not settings.difference_from_work(earlier)


def discard(work_folder: Path) -> None:
    """Remove the chunks and their settings, once the finished file holds their rows."""
    for pattern in ("chunk-*.pt", ".*.tmp", "done-*.json", "lengths.pt", SETTINGS_FILE):
        for file in work_folder.glob(pattern):
            file.unlink(missing_ok=True)
