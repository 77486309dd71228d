"""Clips decoded ahead of the encoder in other threads, and batched for its calls."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from common.arrays import Array
from common.datasets import Clip
from common.datasets.audio import AudioError, audio_checksum, read_audio


@dataclass(frozen=True)
class Decoded:
    """A clip's waveform and its file's checksum, or what is wrong with it."""

    index: int
    waveform: Array | None
    checksum: int
    problem: str


def _decode(index: int, clip: Clip, sample_rate: int) -> Decoded:
    try:
        # The checksum first: if the file is replaced in the meantime, the next run notices.
        checksum = audio_checksum(clip.path)
        return Decoded(index, read_audio(clip.path, sample_rate, clip.start_s, clip.end_s), checksum, "")
    except AudioError as error:
        return Decoded(index, None, 0, str(error))
    except OSError as error:  # the caller would take it for an error of the output
        return Decoded(index, None, 0, f"{clip.path}: {error.strerror}")


def decode_ahead(
    clips: Sequence[Clip],
    pending: Sequence[int],
    sample_rate: int,
    threads: ThreadPoolExecutor,
    least: int,
    ahead_s: float,
) -> Iterator[Decoded]:
    """The pending clips in order. Meanwhile the next ones are decoded: at least `least` clips, or as many as hold about
    `ahead_s` seconds, estimated from the clips so far."""
    waiting: deque[Future[Decoded]] = deque()
    to_come = iter(pending)
    ahead, done, samples = least, 0, 0
    while True:
        for index in itertools.islice(to_come, max(0, ahead + 1 - len(waiting))):
            waiting.append(threads.submit(_decode, index, clips[index], sample_rate))
        if not waiting:
            return
        clip = waiting.popleft().result()
        if clip.waveform is not None:
            done, samples = done + 1, samples + len(clip.waveform)
            ahead = max(least, round(ahead_s * sample_rate * done / samples))
        yield clip


def in_batches(clips: Iterator[Decoded], samples: float) -> Iterator[list[Decoded]]:
    """Batches of consecutive clips, each but the last of at least `samples` samples; a broken clip counts as one."""
    batch: list[Decoded] = []
    size = 0
    for clip in clips:
        batch.append(clip)
        size += 1 if clip.waveform is None else len(clip.waveform)
        if size >= samples:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
