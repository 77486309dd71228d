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
    """A clip's waveform, and a checksum of its file; `row` is the clip's place in the list."""

    row: int
    clip: Clip
    waveform: Array
    checksum: int


@dataclass(frozen=True)
class Embedded:
    """A clip's embedding (D,), its waveform's length, and a checksum of its file."""

    row: int
    embedding: Array
    samples: int
    checksum: int


@dataclass(frozen=True)
class Failed:
    """Why a clip has no embedding."""

    row: int
    why: str


def decode(row: int, clip: Clip, sample_rate: int) -> Decoded | Failed:
    """Read a clip."""
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
) -> Iterator[Embedded | Failed]:
    """Embed each clip on one thread, as many at a time as there are cores; in the order in which they are done."""
    running: set[Future[list[Embedded | Failed]]] = set()
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
) -> Iterator[Embedded | Failed]:
    """Embed consecutive clips together, at least `call_s` seconds of audio in a call."""
    batch: list[Decoded | Failed] = []
    for clip in clips:
        batch.append(clip)
        if sum(map(_samples, batch)) >= call_s * encoder.sample_rate:
            yield from embed_batch(batch, encoder, outputs)
            batch = []
    if batch:
        yield from embed_batch(batch, encoder, outputs)


def embed_batch(
    batch: Sequence[Decoded | Failed], encoder: Encoder, outputs: Sequence[Output]
) -> list[Embedded | Failed]:
    """Embed what could be decoded; if an encoder from outside fails, one clip at a time, with the error of each that fails."""
    outcomes: list[Embedded | Failed] = [clip for clip in batch if isinstance(clip, Failed)]
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
        if np.isfinite(embedding).all():
            outcomes.append(Embedded(clip.row, embedding, len(clip.waveform), clip.checksum))
        else:
            peak = float(np.abs(clip.waveform).max())
            outcomes.append(Failed(clip.row, f"{clip.clip.path}: its embedding is not finite (peak {peak:.3g})"))
    return outcomes


def _samples(clip: Decoded | Failed) -> int:
    return len(clip.waveform) if isinstance(clip, Decoded) else 0
