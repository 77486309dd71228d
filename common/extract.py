"""Clips + encoder -> FeatureSet: decoding ahead, saving as it goes, resuming, and naming what failed.

While a run is under way its finished rows lie in ``<output>.partial/`` as chunks, each written whole or not
at all; the next run with the same settings goes on from them. The finished file takes their place.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from common.audio import AudioError, read_audio
from common.clips import Clip, DatasetError
from common.encoder import CHANNELS, AudioSepEncoder
from common.features import FeatureSet
from common.files import DamagedFileError, OutputError, exclusive, load_torch, save_torch, write_atomically
from common.progress import progress_bar

SAVE_EVERY_S = 20.0
MAX_WORKERS = 16
# Clips a call of the encoder. One on a CPU: larger batches bring nothing there, and rows do not wait for others.
CPU_BATCH, GPU_BATCH = 1, 64
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


class ExtractionError(ValueError):
    """No clip could be extracted; the message is one line."""


def extract(
    clips: Sequence[Clip],
    root: Path,
    encoder: AudioSepEncoder,
    output: Path,
    *,
    dataset: str,
    class_order: Sequence[str] | None = None,
    layer: str = "encoder_block6",
    pool: str = "mean",
    workers: int | None = None,
    overwrite: bool = False,
) -> FeatureSet:
    """Embed every clip and save the FeatureSet under `output`.

    Interrupted at any moment, even by ``kill -9``, the same call goes on and gives the same file to the last
    bit. A finished file with the same settings returns at once; clips that failed in it are tried again.

    Args:
        clips: in the order of the file's rows.
        root: the data root, to which clip ids are relative.
        encoder: from `common.encoder.load_encoder`.
        output: the ``.pt`` file; unreadable clips are listed in ``<output>.failed.csv`` beside it.
        dataset: the task's name, kept in the file.
        class_order: every class in its official order; alphabetical where None. Only classes that occur
            are kept, so labels are contiguous.
        layer, pool: as in `AudioSepEncoder.embed`.
        workers: threads that decode ahead; None is one a core, at most 16.
        overwrite: replace a file, or unfinished work, made with other settings.

    Raises:
        OutputError: another run writes the same output, or other settings made it and `overwrite` is not set.
        ExtractionError: every clip failed.
        DatasetError: two clips have the same id.
        KeyboardInterrupt: interrupted; its text says what is kept.
    """
    started = time.monotonic()
    clip_ids = _unique_ids(clips, root)
    settings = {
        "dataset": dataset,
        **encoder.info,
        "layer": layer,
        "pool": pool,
        "sample_rate": encoder.sample_rate,
        "clips": len(clips),
        "clip_list": _fingerprint(clips, clip_ids),
    }
    rows = _Rows.empty(len(clips), CHANNELS[layer])
    if output.exists() and not overwrite:
        existing = FeatureSet.load(output)
        _refuse_other_settings(output, existing, settings, clips, clip_ids)
        if not existing.meta["failed"]:
            print(f"{output} is there already, made with the same settings: {len(existing):,} clips. Nothing to do.")
            return existing
        print(f"{output}: {len(existing.meta['failed'])} clips failed in the last run; trying them again")
        rows.adopt(existing, clip_ids)

    partial = output.with_name(output.name + ".partial")
    with exclusive(partial / "lock", str(output)):
        _resume(partial, {**settings, "device": encoder.device.type}, rows, overwrite)
        try:
            _compute(clips, encoder, rows, partial, layer, pool, workers or min(MAX_WORKERS, os.cpu_count() or 1))
        except OSError as error:
            kept = len(clips) - len(rows.pending()) - len(rows.unsaved)
            raise OutputError(
                f"cannot save work in {partial}: {error.strerror}; {kept:,} of {len(clips):,} clips are kept: "
                "mend that, and the same command goes on from there"
            ) from error
        features = _assemble(clips, clip_ids, rows, settings, encoder, class_order)
        failed_csv = _write_failures(output, features.meta["failed"])
        if not len(features):
            raise ExtractionError(
                f"all {len(clips):,} clips failed, so nothing was saved; the first: {features.meta['failed'][0][1]} "
                f"(all reasons: {failed_csv})"
            )
        features.save(output)
    # After the lock is let go: Windows keeps files that are in use.
    shutil.rmtree(partial, ignore_errors=True)
    failed = f", {len(features.meta['failed'])} failed (named in {failed_csv})" if failed_csv else ""
    print(f"{len(features):,} of {len(clips):,} clips{failed}, {time.monotonic() - started:.1f} s -> {output}")
    return features


@dataclass
class _Rows:
    """What has been computed so far, by clip index.

    `samples` holds the waveform's length once a clip is embedded, and 0 before; `failed` the reason where it
    cannot be. `unsaved` are the indices that no chunk holds yet.
    """

    features: torch.Tensor  # (N, D)
    samples: torch.Tensor  # (N,) int64
    failed: dict[int, str]
    unsaved: list[int]

    @classmethod
    def empty(cls, rows: int, size: int) -> _Rows:
        return cls(torch.zeros(rows, size), torch.zeros(rows, dtype=torch.int64), {}, [])

    def pending(self) -> list[int]:
        return [index for index in (self.samples == 0).nonzero()[:, 0].tolist() if index not in self.failed]

    def add(self, index: int, embedding: torch.Tensor, samples: int) -> None:
        self.features[index] = embedding
        self.samples[index] = samples
        self.unsaved.append(index)

    def fail(self, index: int, reason: str) -> None:
        self.failed[index] = reason
        self.unsaved.append(index)

    def adopt(self, existing: FeatureSet, clip_ids: list[str]) -> None:
        """Take over the rows of a finished file."""
        place = {clip_id: index for index, clip_id in enumerate(clip_ids)}
        indices = torch.tensor([place[clip_id] for clip_id in existing.clip_ids])
        self.features[indices] = existing.features
        self.samples[indices] = existing.meta["samples"]

    def save_chunk(self, partial: Path) -> None:
        """Write the unsaved rows as one more chunk."""
        if not self.unsaved:
            return
        indices = torch.tensor(self.unsaved)
        chunk = {
            "indices": indices,
            "features": self.features[indices],
            "samples": self.samples[indices],
            "failed": {index: self.failed[index] for index in self.unsaved if index in self.failed},
        }
        # A row stands in one chunk, so its first index makes a name that no other chunk has.
        save_torch(chunk, partial / f"chunk-{self.unsaved[0]:09d}.pt")
        self.unsaved.clear()

    def read_chunks(self, partial: Path) -> int:
        """Take over the chunks of an earlier run; how many rows that is."""
        count = 0
        for path in sorted(partial.glob("chunk-*.pt")):
            try:
                chunk = load_torch(path)
            except DamagedFileError as error:
                print(f"{path} is damaged ({error}); its clips are computed again")
                path.unlink()
                continue
            self.features[chunk["indices"]] = chunk["features"]
            self.samples[chunk["indices"]] = chunk["samples"]
            self.failed |= chunk["failed"]
            count += len(chunk["indices"])
        return count


def _unique_ids(clips: Sequence[Clip], root: Path) -> list[str]:
    seen: set[str] = set()
    for clip in clips:
        clip_id = clip.clip_id(root)
        if clip_id in seen:
            raise DatasetError(f"{clip_id} stands twice in the data set's list under {root}; unpack the data set again")
        seen.add(clip_id)
    return [clip.clip_id(root) for clip in clips]


def _fingerprint(clips: Sequence[Clip], clip_ids: list[str]) -> str:
    listing = hashlib.sha256()
    for clip_id, clip in zip(clip_ids, clips, strict=True):
        listing.update(f"{clip_id}\t{clip.class_name}\t{clip.split}\t{clip.fold}\t{clip.group}\n".encode())
    return f"sha256:{listing.hexdigest()}"


def _difference(earlier: dict[str, Any], settings: dict[str, Any]) -> str:
    """What differs, in words; empty where nothing does. The clip list counts with its number of clips."""
    return "; ".join(
        f"{key} was {earlier.get(key, 'not recorded')}, now {value}"
        for key, value in settings.items()
        if key in (*SETTINGS, "device") and earlier.get(key) != value
    )


def _refuse_other_settings(
    output: Path, existing: FeatureSet, settings: dict[str, Any], clips: Sequence[Clip], clip_ids: list[str]
) -> None:
    if not existing.meta:
        raise OutputError(f"{output} was not made by this project (no provenance in it); --overwrite replaces it")
    difference = _difference(existing.meta, settings)
    if difference:
        raise OutputError(f"{output} was made with other settings ({difference}); --overwrite replaces it")
    if existing.meta["audio_bytes"] != _audio_bytes(clips, clip_ids, existing.clip_ids):
        raise OutputError(f"audio files have changed since {output} was made; --overwrite extracts them again")


def _audio_bytes(clips: Sequence[Clip], clip_ids: list[str], embedded: list[str]) -> int:
    """Bytes of the embedded clips' files: notices audio that was replaced after its features were made."""
    wanted = set(embedded)
    sizes = {clip.path: 0 for clip, clip_id in zip(clips, clip_ids, strict=True) if clip_id in wanted}
    return sum(path.stat().st_size for path in sizes if path.exists())


def _resume(partial: Path, settings: dict[str, Any], rows: _Rows, overwrite: bool) -> None:
    """Take over the unfinished work of the same settings. `settings` name the kind of device too: rows from a
    CPU and from a GPU agree to 1e-6 but not to the last bit, and one file should be one thing."""
    note = partial / "settings.json"
    if note.exists():
        difference = _difference(json.loads(note.read_text()), settings)
        if not difference:
            count = rows.read_chunks(partial)
            if count:
                print(f"going on: {count:,} of {len(rows.samples):,} clips were done before")
            return
        if not overwrite:
            raise OutputError(f"{partial} holds unfinished work of other settings ({difference}); --overwrite drops it")
        for chunk in partial.glob("chunk-*.pt"):
            chunk.unlink()
    write_atomically(note, json.dumps(settings, indent=1).encode())


def _compute(
    clips: Sequence[Clip],
    encoder: AudioSepEncoder,
    rows: _Rows,
    partial: Path,
    layer: str,
    pool: str,
    workers: int,
) -> None:
    """Embed every pending clip, saving a chunk every SAVE_EVERY_S and at the end, also at an untimely one."""
    pending = rows.pending()
    batch_size = CPU_BATCH if encoder.device.type == "cpu" else GPU_BATCH
    saved_at = time.monotonic()
    audio_s = 0.0
    bar = progress_bar(total=len(clips), initial=len(clips) - len(pending), unit="clip", desc="embedding")
    with bar, ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool_of_threads:
        decoded = _decode_ahead(clips, pending, encoder.sample_rate, pool_of_threads, batch_size + 2 * workers)
        started = time.monotonic()
        try:
            for batch in _in_batches(decoded, batch_size):
                readable = {index: result for index, result in batch if isinstance(result, np.ndarray)}
                for index, result in batch:
                    if index not in readable:
                        rows.fail(index, str(result))
                        bar.write(f"failed: {result}", file=sys.stderr)
                embeddings = encoder.embed(list(readable.values()), layer, pool)
                for (index, waveform), embedding in zip(readable.items(), embeddings, strict=True):
                    if torch.isfinite(embedding).all():
                        rows.add(index, embedding, len(waveform))
                    else:
                        peak = float(np.abs(waveform).max())
                        rows.fail(index, f"{clips[index].path}: its embedding overflows (peak amplitude {peak:.3g})")
                    audio_s += len(waveform) / encoder.sample_rate
                bar.set_postfix_str(f"{audio_s / (time.monotonic() - started):.0f} s of audio/s", refresh=False)
                bar.update(len(batch))
                if time.monotonic() - saved_at > SAVE_EVERY_S:
                    rows.save_chunk(partial)
                    saved_at = time.monotonic()
        except KeyboardInterrupt as error:
            pool_of_threads.shutdown(wait=False, cancel_futures=True)
            rows.save_chunk(partial)
            done = len(clips) - len(rows.pending())
            raise KeyboardInterrupt(
                f"interrupted: {done:,} of {len(clips):,} clips are kept; the same command goes on from there"
            ) from error
        rows.save_chunk(partial)


def _decode_ahead(
    clips: Sequence[Clip], pending: Sequence[int], sample_rate: int, threads: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[int, np.ndarray | AudioError]]:
    """(index, waveform or what is wrong) in the order of `pending`, with `ahead` clips decoding meanwhile."""

    def decode(index: int) -> tuple[int, np.ndarray | AudioError]:
        clip = clips[index]
        try:
            return index, read_audio(clip.path, sample_rate, clip.start_s, clip.end_s)
        except AudioError as error:
            return index, error

    waiting: deque[Future] = deque()
    for index in pending:
        waiting.append(threads.submit(decode, index))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _in_batches(items: Iterator[tuple[int, Any]], size: int) -> Iterator[list[tuple[int, Any]]]:
    batch: list[tuple[int, Any]] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _assemble(
    clips: Sequence[Clip],
    clip_ids: list[str],
    rows: _Rows,
    settings: dict[str, Any],
    encoder: AudioSepEncoder,
    class_order: Sequence[str] | None,
) -> FeatureSet:
    kept = [index for index in range(len(clips)) if index not in rows.failed]
    present = {clips[index].class_name for index in kept}
    order = sorted(present) if class_order is None else class_order
    class_names = [name for name in order if name in present]
    label = {name: number for number, name in enumerate(class_names)}
    embedded = [clip_ids[index] for index in kept]

    def column(name: str) -> list[Any] | None:
        values = [getattr(clips[index], name) for index in kept]
        return None if all(value is None for value in values) else values

    folds = column("fold")
    failed = [[clip_ids[index], reason] for index, reason in sorted(rows.failed.items())]
    meta = {
        **settings,
        "device": encoder.device.type,
        "counts": {"clips": len(clips), "extracted": len(kept), "failed": len(failed)},
        "failed": failed,
        "samples": rows.samples[kept],
        "audio_bytes": _audio_bytes(clips, clip_ids, embedded),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "soundfile", "soxr")},
            "libsndfile": soundfile.__libsndfile_version__,
        },
    }
    return FeatureSet(
        rows.features[kept],
        torch.tensor([label[clips[index].class_name] for index in kept], dtype=torch.int64),
        class_names,
        embedded,
        None if folds is None else torch.tensor(folds, dtype=torch.int64),
        column("split"),
        column("group"),
        meta,
    )


def _write_failures(output: Path, failed: list[list[str]]) -> Path | None:
    """List the failed clips beside the output; remove a list that no longer holds."""
    path = output.with_name(output.name + ".failed.csv")
    if not failed:
        path.unlink(missing_ok=True)
        return None
    text = io.StringIO()
    csv.writer(text).writerows([("clip_id", "reason"), *failed])
    write_atomically(path, text.getvalue().encode())
    return path
