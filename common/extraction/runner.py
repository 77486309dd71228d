"""A run: make every part that is missing. A part that exists with the right settings and clips is done; nothing else is
recorded."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.arrays import Array
from common.datasets import Clip
from common.datasets.audio import AudioError, changed_files
from common.encoder import Encoder, Output
from common.extraction.claims import Claims
from common.extraction.prefetch import Embedded, decode_ahead, embed_in_batches, embed_on_cores
from common.extraction.share import Share
from common.extraction.work import MISSING, Work
from common.files import DamagedFileError
from common.parts import Part, Slice, read_part, write_part
from common.progress import progress_bar

MAX_WORKERS = 16
# Seconds of audio per call of the encoder on a CUDA GPU: several batches of tiles, which it computes without a pause.
CALL_S = 1200.0
AHEAD_S = 300.0  # seconds of audio that are decoded before they are needed, on a CPU
WAIT_S = 1.0  # between two looks at what others do


@dataclass
class PartInWork:
    """The rows of a part that is being made; those in `pending` are not embedded yet."""

    place: Slice
    clips: list[Clip]
    embeddings: Array
    samples: Array
    checksums: Array
    failed: dict[int, str]
    pending: set[int]

    @classmethod
    def new(cls, place: Slice, clips: list[Clip], width: int) -> PartInWork:
        count = len(clips)
        samples, checksums = np.zeros((2, count), np.int64)
        return cls(place, clips, np.zeros((count, width), np.float32), samples, checksums, {}, set(range(count)))

    @classmethod
    def of(cls, part: Part, clips: list[Clip], kept: Array) -> PartInWork:
        """With those rows of an earlier part that are `kept`, (K,) bool."""
        new = cls.new(part.info.place, clips, part.embeddings.shape[1])
        rows = part.rows[kept]
        new.embeddings[rows] = part.embeddings[kept]
        new.samples[rows], new.checksums[rows] = part.numbers("samples")[kept], part.numbers("audio_checksum")[kept]
        new.pending -= set(rows.tolist())
        return new

    def fail(self, row: int, why: str) -> None:
        """Note why a clip cannot be embedded."""
        self.pending.discard(row)
        self.failed[row] = why

    def put(self, embedded: Embedded) -> None:
        """Take a clip's embedding, or why it failed."""
        row = embedded.row - self.place.start
        if embedded.embedding is None:
            self.fail(row, embedded.problem)
            return
        self.pending.discard(row)
        self.embeddings[row] = embedded.embedding
        self.samples[row], self.checksums[row] = embedded.samples, embedded.checksum

    def finish(self, work: Work) -> Part:
        """The part."""
        kept = [row for row in range(len(self.place)) if row not in self.failed]
        return work.part(self.place, self.embeddings[kept], self.samples[kept], self.checksums[kept], self.failed)


@dataclass(frozen=True)
class Threads:
    """How many threads decode, and on how many cores a clip is embedded at a time."""

    decode: int
    cores: int

    @classmethod
    def shared(cls, processes: int = 1, decode: int = 0) -> Threads:
        """Of a process that shares this machine's cores with others; 0: one per core, at most MAX_WORKERS."""
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores = max(1, available // processes)
        return cls(decode or min(MAX_WORKERS, cores), cores)


def make_parts(
    work: Work, encoder: Encoder, outputs: Sequence[Output], share: Share, threads: Threads, claims: Claims
) -> int:
    """Make every part that is missing, first those of this process's share; returns how many clips it embedded.

    Clips of earlier parts that failed, or whose audio has changed, are embedded again. At the end every part exists, or
    another process has joined them.
    """
    slices, n_clips = work.slices, len(work.clips)
    order = [slices[number] for number in share.order(len(slices))]
    assigned = [slices[number] for number in share.assigned(len(slices))] if share.count else list(slices)
    check = f"check-{share}".replace("/", "-of-")
    claims.take(check)  # until they are looked at, nobody joins the parts
    again, missing = list(_to_mend(work, assigned)), set(work.missing())
    left = sum(map(len, missing & set(assigned))) + sum(len(part.pending) for part in again)
    if done := n_clips - sum(map(len, missing)) - sum(len(part.pending) for part in again):
        print(f"continuing: {done:,} of {n_clips:,} clips were done before")
    total, desc = (n_clips, "embedding") if share.is_all else (left, f"shard {share}")
    with progress_bar(total=total, initial=total - left, unit="clip", desc=desc) as bar:
        making = _Making(work, encoder, outputs, threads, claims, bar)
        making.run(iter(again))
        claims.release(check)
        waits = False
        while not work.is_written() and (missing := set(work.missing())):
            if making.run(_claimed(work, [place for place in order if place in missing], claims)):
                continue
            if not waits:
                bar.write(f"waiting for {len(missing)} parts that other processes have in work")
            waits = True
            time.sleep(WAIT_S)
    return making.n_embedded


def make_these(
    work: Work, encoder: Encoder, outputs: Sequence[Output], places: Sequence[Slice], threads: Threads
) -> int:
    """Make some of the parts, but those that another process has in work; returns how many clips it embedded."""
    with Claims(work.folder, work.identity) as claims, progress_bar(disable=True) as bar:
        making = _Making(work, encoder, outputs, threads, claims, bar)
        making.run(_to_mend(work, places))
        making.run(_claimed(work, places, claims))
    return making.n_embedded


def _to_mend(work: Work, places: Sequence[Slice]) -> Iterator[PartInWork]:
    """The existing parts with clips that failed or whose audio has changed, with their other rows."""
    existing = [place for place in places if work.path(place).exists()]
    changed: set[Path] = set()
    with progress_bar(total=len(existing), desc="comparing audio files", unit="part", delay=1, leave=False) as bar:
        for place in existing:
            bar.update()
            try:
                part = read_part(work.path(place))
            except DamagedFileError as error:
                print(f"{work.path(place)} is damaged ({error}); its clips are computed again")
                work.path(place).unlink(missing_ok=True)
                continue
            except FileNotFoundError:  # another process has joined them
                continue
            clips = work.clips.rows(place.start, place.stop)
            paths = [clips[row].path for row in part.rows]
            different = set(changed_files(paths, part.numbers("audio_checksum").tolist()))
            changed |= different
            if part.info.failed or different:
                yield PartInWork.of(part, clips, np.array([path not in different for path in paths], bool))
    if changed:
        print(f"{len(changed)} audio files have changed since the last run; their clips are computed again")


def _claimed(work: Work, places: Sequence[Slice], claims: Claims) -> Iterator[PartInWork]:
    """The parts that nobody has made or claimed, each claimed when it is asked for."""
    for place in places:
        if work.path(place).exists() or work.is_written():
            continue
        if claims.take(place.file_name):
            if work.path(place).exists() or work.is_written():  # made in the meantime
                claims.release(place.file_name)
                continue
            yield PartInWork.new(place, work.clips.rows(place.start, place.stop), work.settings.width)


@dataclass
class _Making:
    """Embeds the clips of parts and writes every part when its last clip is done."""

    work: Work
    encoder: Encoder
    outputs: Sequence[Output]
    threads: Threads
    claims: Claims
    bar: tqdm[Any]
    n_embedded: int = 0
    audio_s: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def run(self, parts: Iterator[PartInWork]) -> int:
        """Make the parts, and return their number."""
        in_work: dict[int, PartInWork] = {}
        count = 0

        def clips() -> Iterator[tuple[int, Clip]]:
            nonlocal count
            for part in parts:
                count += 1
                start = part.place.start
                for row in (self.work.sizes[start : part.place.stop] == MISSING).nonzero()[0].tolist():
                    part.fail(row, str(AudioError(f"{part.clips[row].path}: not found")))
                pending = sorted(part.pending)
                in_work.update(dict.fromkeys((start + row for row in pending), part))
                self._write_if_done(part)
                yield from ((start + row, part.clips[row]) for row in pending)

        for embedded in self._embedded(clips()):
            part = in_work.pop(embedded.row)
            part.put(embedded)
            self._show(embedded)
            self._write_if_done(part)
        return count

    def _embedded(self, clips: Iterator[tuple[int, Clip]]) -> Iterator[Embedded]:
        encoder, is_gpu = self.encoder, self.encoder.device.type == "cuda"
        ahead_s, most = (CALL_S, 1 << 16) if is_gpu else (AHEAD_S, 1 + 2 * self.threads.decode)
        is_several = len(self.work.clips) > 1
        threads = ThreadPoolExecutor(self.threads.decode, "decode")
        try:
            decoded = decode_ahead(clips, encoder.sample_rate, threads, most, ahead_s)
            if encoder.device.type == "cpu" and encoder.is_thread_safe and is_several:
                yield from embed_on_cores(decoded, encoder, self.outputs, self.threads.cores)
            else:
                yield from embed_in_batches(decoded, encoder, self.outputs, CALL_S if is_gpu else 0.0)
        finally:
            threads.shutdown(cancel_futures=True)

    def _write_if_done(self, part: PartInWork) -> None:
        if not part.pending:
            write_part(self.work.folder, part.finish(self.work))
            self.claims.release(part.place.file_name)

    def _show(self, embedded: Embedded) -> None:
        self.n_embedded += 1
        self.audio_s += embedded.samples / self.encoder.sample_rate
        if embedded.problem:
            self.bar.write(f"failed: {embedded.problem}", file=sys.stderr)
        speed = self.audio_s / (time.monotonic() - self.started)
        self.bar.set_postfix_str(f"{speed:.{0 if speed >= 10 else 1}f} s of audio/s", refresh=False)
        self.bar.update()
