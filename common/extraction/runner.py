"""A process that makes every part that is missing: clips are decoded ahead in threads, and embedded one on each core, or in
batches on a GPU. A part that exists with the right settings and clips is done; nothing else is recorded."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.arrays import Array
from common.datasets import Clip
from common.datasets.audio import AudioError, audio_checksum, changed_files, read_audio
from common.encoder import Encoder, Output, PluginError
from common.extraction.claims import Claims
from common.extraction.clip_list import ClipList
from common.extraction.work import MISSING, Embedded, ExtractionSettings, Failed, Outcome, Work
from common.flags import Share
from common.parts import file_name, read_or_remove, read_part, write_part
from common.progress import progress_bar

MAX_WORKERS = 16
# Seconds of audio per call of the encoder on a CUDA GPU: several batches of tiles, which it computes without a pause.
CALL_S = 1200.0
AHEAD_S = 300.0  # seconds of audio that are decoded before they are needed, on a CPU
WAIT_S = 1.0  # between two looks at what others do


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


@dataclass(frozen=True)
class ThisProcess:
    encoder: Encoder
    outputs: Sequence[Output]
    threads: Threads

    def settings(self, clips: ClipList) -> ExtractionSettings:
        return ExtractionSettings.of(clips, self.encoder, self.outputs)

    def make(self, work: Work, share: Share) -> int:
        """Make every part that is missing, first those of a share, and clips of earlier parts that failed or whose audio has
        changed; returns how many were embedded. At the end every part exists, or another process has joined them."""
        n_clips, assigned = len(work.clips), share.assigned(work.slices)
        check = f"check-{share}".replace("/", "-of-")
        with Claims(work.folder, work.identity) as claims:
            claims.take(check)  # until they are looked at, nobody joins the parts
            again = dict(_to_mend(work, assigned))
            to_mend = sum(len(place) - len(kept) for place, kept in again.items())
            if done := work.n_done() - to_mend:
                print(f"continuing: {done:,} of {n_clips:,} clips were done before")
            left = sum(map(len, set(work.missing()) & set(assigned))) + to_mend
            total, desc = (n_clips, "embedding") if share.count == 1 else (left, f"shard {share}")
            with progress_bar(total=total, initial=total - left, unit="clip", desc=desc) as bar:
                making = _Making(work, self, claims, bar)
                making.run(again.items())
                claims.release(check)
                making.run_until_all_are_there(share.order(work.slices))
        return making.n_embedded

    def embed(self, clips: Iterator[tuple[int, Clip]], is_several: bool) -> Iterator[Outcome]:
        """Rows and clips, embedded: on a CPU each on one core, but for a single one, which all cores share."""
        encoder, is_gpu = self.encoder, self.encoder.device.type == "cuda"
        ahead_s, most = (CALL_S, 1 << 16) if is_gpu else (AHEAD_S, 1 + 2 * self.threads.decode)
        threads = ThreadPoolExecutor(self.threads.decode, "decode")
        try:
            decoded = decode_ahead(clips, encoder.sample_rate, threads, most, ahead_s)
            if encoder.device.type == "cpu" and encoder.is_thread_safe and is_several:
                yield from embed_on_cores(decoded, encoder, self.outputs, self.threads.cores)
            else:
                yield from embed_in_batches(decoded, encoder, self.outputs, CALL_S if is_gpu else 0.0)
        finally:
            threads.shutdown(cancel_futures=True)


def _to_mend(work: Work, places: Sequence[range]) -> Iterator[tuple[range, dict[int, Outcome]]]:
    """The existing parts with clips that failed or whose audio has changed, and their other rows."""
    existing = [place for place in places if work.path(place).exists()]
    changed: set[Path] = set()
    for place in progress_bar(iterable=existing, desc="comparing audio files", unit="part", delay=1, leave=False):
        part = read_or_remove(work.path(place), read_part)
        if part is None:
            continue
        paths = dict(zip(place, work.clips.of(place).paths(), strict=True))
        samples, checksums, peaks = (part.table[name].to_pylist() for name in ("samples", "audio_checksum", "peak"))
        different = set(changed_files([paths[row] for row in part.rows], checksums))
        changed |= different
        columns = zip(part.rows, part.embeddings, samples, checksums, peaks, strict=True)
        kept: dict[int, Outcome] = {row: Embedded(row, *rest) for row, *rest in columns if paths[row] not in different}
        if len(kept) < len(place):
            yield place, kept
    if changed:
        print(f"{len(changed)} audio files have changed since the last run; their clips are computed again")


@dataclass
class _Making:
    """Embeds the clips of parts and writes every part when its last clip is done."""

    work: Work
    process: ThisProcess
    claims: Claims
    bar: tqdm[Any]
    n_embedded: int = 0
    audio_s: float = 0.0

    def run_until_all_are_there(self, order: Sequence[range]) -> None:
        """Make the parts that nobody has in work, and wait for the others; what dead processes had is taken over."""
        waits = False
        while not self.work.is_written() and (missing := set(self.work.missing())):
            if self.run(self._claimed([place for place in order if place in missing])):
                continue
            if not waits:
                self.bar.write(f"waiting for {len(missing)} parts that other processes have in work")
            waits = True
            time.sleep(WAIT_S)

    def _claimed(self, places: Sequence[range]) -> Iterator[tuple[range, dict[int, Outcome]]]:
        """The parts that nobody has made or claimed, each claimed when it is asked for."""
        for place in places:
            path = self.work.path(place)
            if path.exists() or self.work.is_written() or not self.claims.take(path.name):
                continue
            if path.exists() or self.work.is_written():  # in the meantime
                self.claims.release(path.name)
            else:
                yield place, {}

    def run(self, parts: Iterable[tuple[range, dict[int, Outcome]]]) -> bool:
        """Make the parts, of which some rows may be known; returns whether there were any."""
        part_of: dict[int, tuple[range, dict[int, Outcome]]] = {}
        before = self.n_embedded

        def clips() -> Iterator[tuple[int, Clip]]:
            for place, outcomes in parts:
                for row, clip in zip(place, self.work.clips.of(place).rows(), strict=True):
                    if row not in outcomes:
                        part_of[row] = place, outcomes
                        yield row, clip

        for outcome in self.process.embed(clips(), is_several=len(self.work.clips) > 1):
            place, outcomes = part_of.pop(outcome.row)
            outcomes[outcome.row] = outcome
            self.n_embedded += 1
            if isinstance(outcome, Embedded):
                self.audio_s += outcome.samples / self.process.encoder.sample_rate
                elapsed_s = self.bar.format_dict["elapsed"] or 1.0  # 0 of a bar that is not shown
                self.bar.set_postfix_str(f"{self.audio_s / elapsed_s:.0f} s of audio/s", refresh=False)
            self.bar.update()
            if isinstance(outcome, Failed) and self.work.sizes[outcome.row] != MISSING:  # those were told of together
                self.bar.write(f"failed: {outcome.why}", file=sys.stderr)
            if len(outcomes) == len(place):
                write_part(self.work.folder, self.work.part(place, outcomes))
                self.claims.release(file_name(place))
        return self.n_embedded > before


@dataclass(frozen=True)
class Decoded:
    """A clip's waveform, and a checksum of its file."""

    row: int
    clip: Clip
    waveform: Array
    checksum: int


def decode(row: int, clip: Clip, sample_rate: int) -> Decoded | Failed:
    try:
        # The checksum first: if the file is replaced in the meantime, the next run notices.
        checksum = audio_checksum(clip.path)
        return Decoded(row, clip, read_audio(clip.path, sample_rate, clip.start_s, clip.end_s), checksum)
    except AudioError as error:
        return Failed(row, str(error))
    except OSError as error:  # the caller would take it for an error of the output
        return Failed(row, f"{clip.path}: {error.strerror}")
    except MemoryError:
        return Failed(row, f"{clip.path}: takes more memory than there is; cut it into windows")


def decode_ahead(
    clips: Iterator[tuple[int, Clip]], sample_rate: int, threads: ThreadPoolExecutor, most: int, ahead_s: float
) -> Iterator[Decoded | Failed]:
    """Rows and clips in order, decoded. Meanwhile the next ones are: at most `most`, and about `ahead_s` seconds of audio,
    estimated from the clips so far."""
    waiting: deque[Future[Decoded | Failed]] = deque()
    ahead, done, samples = 1, 0, 0
    while True:
        for row, clip in itertools.islice(clips, max(0, ahead + 1 - len(waiting))):
            waiting.append(threads.submit(decode, row, clip, sample_rate))
        if not waiting:
            return
        decoded = waiting.popleft().result()
        done, samples = done + 1, samples + _samples(decoded)
        ahead = max(1, min(most, round(ahead_s * sample_rate * done / max(1, samples))))
        yield decoded


def embed_on_cores(
    clips: Iterator[Decoded | Failed], encoder: Encoder, outputs: Sequence[Output], cores: int
) -> Iterator[Outcome]:
    """Embed each clip on one thread, as many at a time as there are cores; in the order in which they are done."""
    running: set[Future[list[Outcome]]] = set()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of those that are started from here on
    with ThreadPoolExecutor(cores, "embed", torch.set_num_threads, (1,)) as pool:
        try:
            for clip in clips:
                running.add(pool.submit(embed_batch, [clip], encoder, outputs))
                del clip
                if len(running) == cores:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from itertools.chain.from_iterable(future.result() for future in done)
            yield from itertools.chain.from_iterable(future.result() for future in running)
        except BaseException:
            encoder.is_stopped = True  # the other threads need not finish their clips
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            encoder.is_stopped = False
            torch.set_num_threads(threads)


def embed_in_batches(
    clips: Iterator[Decoded | Failed], encoder: Encoder, outputs: Sequence[Output], call_s: float
) -> Iterator[Outcome]:
    """Embed consecutive clips together, at least `call_s` seconds of audio in a call."""
    batch: list[Decoded | Failed] = []
    for clip in clips:
        batch.append(clip)
        if sum(map(_samples, batch)) >= call_s * encoder.sample_rate:
            yield from embed_batch(batch, encoder, outputs)
            batch = []
    yield from embed_batch(batch, encoder, outputs)


def embed_batch(batch: Sequence[Decoded | Failed], encoder: Encoder, outputs: Sequence[Output]) -> list[Outcome]:
    """Embed what could be decoded; if an encoder from outside fails, one clip at a time, with the error of each that fails."""
    outcomes: list[Outcome] = [clip for clip in batch if isinstance(clip, Failed)]
    readable = [clip for clip in batch if isinstance(clip, Decoded)]
    if not readable:
        return outcomes
    try:
        embedded = encoder.embed_outputs([clip.waveform for clip in readable], outputs)
    except PluginError as error:
        if len(batch) > 1:
            return [outcome for clip in batch for outcome in embed_batch([clip], encoder, outputs)]
        return [Failed(readable[0].row, f"{readable[0].clip.path}: {error}")]
    rows = torch.cat([embedded[output] for output in outputs], dim=1).numpy()
    for clip, embedding in zip(readable, rows, strict=True):
        peak = float(np.abs(clip.waveform).max())
        if np.isfinite(embedding).all():
            outcomes.append(Embedded(clip.row, embedding, len(clip.waveform), clip.checksum, peak))
        else:
            outcomes.append(Failed(clip.row, f"{clip.clip.path}: its embedding is not finite (peak {peak:.3g})"))
    return outcomes


def _samples(clip: Decoded | Failed) -> int:
    return len(clip.waveform) if isinstance(clip, Decoded) else 0
