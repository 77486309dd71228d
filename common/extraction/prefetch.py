"""Clips decoded ahead of the encoder in other threads, and batched for its calls."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import TypeVar

from common.arrays import Array
from common.datasets import Clip
from common.datasets.audio import AudioError, audio_checksum, read_audio
from common.errors import UserError

T = TypeVar("T")
DECODE_LIMIT_S = 600.0  # for one clip: hours of audio take less, and a disk that does not answer takes for ever
MOST_IN_A_ROW = 3  # clips that cannot be read in time


class NoAnswerError(UserError):
    """The disk that the clips are on does not answer."""


class DaemonThreads:
    """Threads that run what is submitted. One that hangs, in a decoder or on a disk that does not answer, keeps neither the
    others nor the end of the process waiting, as those of a ThreadPoolExecutor would."""

    def __init__(self, count: int) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._count = 0
        self._is_open = True
        for _ in range(count):
            self.add()

    def add(self) -> None:
        """Start one more thread, in the place of one that hangs."""
        self._count += 1
        threading.Thread(target=self._work, name=f"decode-{self._count}", daemon=True).start()

    def submit(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        """Run the function in one of the threads."""
        future: Future[T] = Future()

        def task() -> None:
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                future.set_exception(error)

        self._tasks.put(task)
        return future

    def __enter__(self) -> DaemonThreads:
        return self

    def __exit__(self, *exception: object) -> None:
        """Let the threads end; what has not begun is dropped."""
        self._is_open = False
        for _ in range(self._count):
            self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._is_open:
                task()
            task = None  # it holds what it has read


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
    except MemoryError:
        return Decoded(index, None, 0, f"{clip.path}: takes more memory than there is; cut it into windows")


def decode_ahead(
    clips: Sequence[Clip],
    pending: Sequence[int],
    sample_rate: int,
    threads: DaemonThreads,
    least: int,
    ahead_s: float,
) -> Iterator[Decoded]:
    """The pending clips in order. Meanwhile the next ones are decoded: at least `least` clips, or as many as hold about
    `ahead_s` seconds, estimated from the clips so far."""
    waiting: deque[tuple[int, Future[Decoded]]] = deque()
    to_come = iter(pending)
    ahead, done, samples, in_a_row = least, 0, 0, 0
    while True:
        for index in itertools.islice(to_come, max(0, ahead + 1 - len(waiting))):
            waiting.append((index, threads.submit(_decode, index, clips[index], sample_rate)))
        if not waiting:
            return
        index, future = waiting.popleft()
        try:
            clip, in_a_row = _result(future), 0
        except FutureTimeoutError:
            in_a_row += 1
            if in_a_row == MOST_IN_A_ROW:
                raise NoAnswerError(
                    f"{clips[index].path}: {MOST_IN_A_ROW} clips in a row could not be read within {DECODE_LIMIT_S:,.0f} s each; "
                    "does their disk answer? Finished clips are kept, and the same command continues"
                ) from None
            threads.add()
            problem = f"could not be read within {DECODE_LIMIT_S:,.0f} s; does its disk answer?"
            clip = Decoded(index, None, 0, f"{clips[index].path}: {problem}")
        if clip.waveform is not None:
            done, samples = done + 1, samples + len(clip.waveform)
            ahead = max(least, round(ahead_s * sample_rate * done / samples))
        yield clip


def _result(future: Future[T]) -> T:
    """The result; FutureTimeoutError after DECODE_LIMIT_S, in which the time does not count that this process was suspended."""
    slice_s, waited_s = DECODE_LIMIT_S / 20, 0.0
    while True:
        started = time.monotonic()
        try:
            return future.result(slice_s)
        except FutureTimeoutError:
            waited_s += min(time.monotonic() - started, 2 * slice_s)
            if waited_s >= DECODE_LIMIT_S:
                raise


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
