"""Clips decoded ahead of the encoder in other threads, and embedded: a clip on each core, or in batches on a GPU."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import torch

from common.arrays import Array
from common.datasets import Clip
from common.datasets.audio import AudioError, audio_checksum, read_audio
from common.encoder import Encoder, Output, PluginError


@dataclass(frozen=True)
class Decoded:
    """A clip's waveform and its file's checksum, or what is wrong with it; `row` is its place in the list."""

    row: int
    clip: Clip
    waveform: Array | None
    checksum: int
    problem: str

    @property
    def samples(self) -> int:
        """Of the waveform."""
        return 0 if self.waveform is None else len(self.waveform)


@dataclass(frozen=True)
class Embedded:
    """A clip's embedding (D,), its waveform's length and its file's checksum, or why it has none."""

    row: int
    embedding: Array | None
    samples: int
    checksum: int
    problem: str


def decode(row: int, clip: Clip, sample_rate: int) -> Decoded:
    """Read a clip."""
    try:
        # The checksum first: if the file is replaced in the meantime, the next run notices.
        checksum = audio_checksum(clip.path)
        return Decoded(row, clip, read_audio(clip.path, sample_rate, clip.start_s, clip.end_s), checksum, "")
    except AudioError as error:
        return Decoded(row, clip, None, 0, str(error))
    except OSError as error:  # the caller would take it for an error of the output
        return Decoded(row, clip, None, 0, f"{clip.path}: {error.strerror}")
    except MemoryError:
        return Decoded(row, clip, None, 0, f"{clip.path}: takes more memory than there is; cut it into windows")


def decode_ahead(
    clips: Iterator[tuple[int, Clip]], sample_rate: int, threads: ThreadPoolExecutor, most: int, ahead_s: float
) -> Iterator[Decoded]:
    """Rows and clips in order, decoded. Meanwhile the next ones are: at most `most`, and about `ahead_s` seconds of audio,
    estimated from the clips so far."""
    waiting: deque[Future[Decoded]] = deque()
    ahead, done, samples = 1, 0, 0
    while True:
        for row, clip in itertools.islice(clips, max(0, ahead + 1 - len(waiting))):
            waiting.append(threads.submit(decode, row, clip, sample_rate))
        if not waiting:
            return
        decoded = waiting.popleft().result()
        done, samples = done + 1, samples + decoded.samples
        ahead = max(1, min(most, round(ahead_s * sample_rate * done / max(1, samples))))
        yield decoded


def embed_on_cores(
    clips: Iterator[Decoded], encoder: Encoder, outputs: Sequence[Output], cores: int
) -> Iterator[Embedded]:
    """Embed each clip on one thread, as many at a time as there are cores; in the order in which they are done."""
    running: set[Future[list[Embedded]]] = set()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of those that are started from here on
    with ThreadPoolExecutor(cores, "embed", torch.set_num_threads, (1,)) as pool:
        try:
            for clip in clips:
                running.add(pool.submit(embed_batch, [clip], encoder, outputs))
                del clip
                if len(running) < cores:
                    continue
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
            for future in running:
                yield from future.result()
        except BaseException:
            encoder.is_stopped = True  # the other threads need not finish their clips
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            encoder.is_stopped = False
            torch.set_num_threads(threads)


def embed_in_batches(
    clips: Iterator[Decoded], encoder: Encoder, outputs: Sequence[Output], call_s: float
) -> Iterator[Embedded]:
    """Embed consecutive clips together, at least `call_s` seconds of audio in a call."""
    batch: list[Decoded] = []
    for clip in clips:
        batch.append(clip)
        if sum(decoded.samples for decoded in batch) >= call_s * encoder.sample_rate:
            yield from embed_batch(batch, encoder, outputs)
            batch = []
    if batch:
        yield from embed_batch(batch, encoder, outputs)


def embed_batch(batch: Sequence[Decoded], encoder: Encoder, outputs: Sequence[Output]) -> list[Embedded]:
    """Embed what could be decoded; if an encoder from outside fails, one clip at a time, with the error of each that fails."""
    readable = [clip for clip in batch if clip.waveform is not None]
    try:
        waveforms = [clip.waveform for clip in readable if clip.waveform is not None]
        embedded = encoder.embed_outputs(waveforms, outputs) if waveforms else {}
    except PluginError as error:
        if len(batch) > 1:
            return [row for clip in batch for row in embed_batch([clip], encoder, outputs)]
        return [Embedded(clip.row, None, 0, 0, f"{clip.clip.path}: {error}") for clip in batch]
    rows: Sequence[Array] = list(torch.cat([embedded[output] for output in outputs], dim=1).numpy()) if readable else []
    outcomes = [Embedded(clip.row, None, 0, 0, clip.problem) for clip in batch if clip.waveform is None]
    for clip, embedding in zip(readable, rows, strict=True):
        if np.isfinite(embedding).all():
            outcomes.append(Embedded(clip.row, embedding, clip.samples, clip.checksum, ""))
        else:
            peak = float(np.abs(clip.waveform).max()) if clip.waveform is not None else 0.0
            why = f"{clip.clip.path}: its embedding is not finite (peak {peak:.3g})"
            outcomes.append(Embedded(clip.row, None, 0, 0, why))
    return outcomes
