"""The measurements of `job_array.py`: the clips, the stand-in for the encoder, and each shard in a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import os
import resource
import signal
import struct
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.datasets import Clip
from common.encoder import EncoderInfo, Output, Waveform
from common.extraction import ClipList, ExtractOptions, Shard, extract
from common.files import sha256_of

RATE = 8_000
SHORTEST, LONGEST = RATE // 20, RATE // 5  # samples: 0.05 to 0.2 s
PER_FOLDER = 500
WIDTH = 384  # of AudioSep's embeddings


@dataclass(frozen=True)
class Attempt:
    """What one process took; of a killed one only `computed` and `seconds` are known.

    Attributes:
        shard: its index, from 0.
        is_killed: whether it was killed before its end.
        computed: clips that went through the encoder.
        seconds: from the list of clips to the end, without Python's start and the imports.
        before_s, after_s: the part before the first clip went to the encoder, and the part after the last one came back.
        cpu_s: seconds of a core.
        peak_bytes: of its memory.
    """

    shard: int
    is_killed: bool
    computed: int
    seconds: float
    before_s: float = 0.0
    after_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True)
class Measured:
    """The attempts of the array in the order of their ends, its wall time, the process without shards, and the files."""

    attempts: list[Attempt]
    wall_s: float
    whole: Attempt
    file_bytes: int
    array_sha256: str
    whole_sha256: str


@dataclass(frozen=True)
class Work:
    """What a process is given.

    Attributes:
        sounds: the folder of the clips.
        clips: how many of them are extracted, by all shards together.
        features_file: what they write.
        shard: its own.
        encoder_s: how long its encoder sleeps for each clip.
        save_every_s: how long it works for a chunk.
        kill_at: it is killed when it has computed this many clips; None: it is not.
        core: the one that it may use; None: any.
    """

    sounds: Path
    clips: int
    features_file: Path
    shard: Shard
    encoder_s: float
    save_every_s: float
    kill_at: int | None = None
    core: int | None = None


class StandIn:
    """An `Encoder` that costs next to nothing but the time that it sleeps, as a process waits for its GPU."""

    sample_rate = RATE
    device = torch.device("cpu")
    default_output = Output("waveform", "", WIDTH)
    outputs = (default_output,)
    info = EncoderInfo("stand-in", "none", "untrained", "none", "fp32")

    def __init__(self, sleep_s: float, kill_at: int | None) -> None:
        self.sleep_s, self.kill_at = sleep_s, kill_at
        self.computed, self.first_at, self.last_at = 0, 0.0, 0.0

    def embed_outputs(self, waveforms: Sequence[Waveform], outputs: Sequence[Output]) -> dict[Output, torch.Tensor]:
        """As `Encoder.embed_outputs`: a row is the beginning of the waveform and depends on all of it."""
        if self.computed == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.first_at = self.first_at or time.monotonic()
        if self.sleep_s:
            time.sleep(self.sleep_s * len(waveforms))
        rows = [np.resize(waveform, WIDTH) + np.asarray(waveform).sum() for waveform in waveforms]
        self.computed += len(rows)
        self.last_at = time.monotonic()
        return dict.fromkeys(outputs, torch.from_numpy(np.stack(rows)))


def path_of(number: int) -> Path:
    """A clip's file, relative to the folder of all."""
    return Path(f"{number // PER_FOLDER:05d}", f"{number:08d}.wav")


def make_sounds(folder: Path, count: int) -> None:
    """Write the first `count` clips: noise as 16-bit WAV. Those that an earlier run has made are kept."""
    note = folder / "made.txt"
    made = int(note.read_text()) if note.exists() else 0
    for number in range(made, count):
        path, rng = folder / path_of(number), np.random.default_rng(number)
        samples = rng.integers(-8000, 8000, rng.integers(SHORTEST, LONGEST), dtype=np.int16).tobytes()
        riff, data = (b"RIFF", 36 + len(samples), b"WAVE"), (b"data", len(samples))
        header = struct.pack("<4sI4s4sIHHIIHH4sI", *riff, b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16, *data)
        if number in (made, number // PER_FOLDER * PER_FOLDER):
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(header + samples)
    note.write_text(str(max(made, count)))


def extract_shard(work: Work, printed: Path, results: Connection) -> None:
    """In a process of its own: extract the shard, and send what that took."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves behind
    if work.core is not None:
        os.sched_setaffinity(0, {work.core})
    vars(importlib.import_module("common.extraction.extract"))["SAVE_EVERY_S"] = work.save_every_s
    with printed.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        started, encoder = time.monotonic(), StandIn(work.encoder_s, work.kill_at)
        clips = [
            Clip(work.sounds / path_of(number), "abc"[number % 3], fold=1 + number % 5, group=f"source{number // 10}")
            for number in range(work.clips)
        ]
        extract(
            ClipList(clips, work.sounds, "job_array"),
            encoder,
            work.features_file,
            encoder.outputs,
            ExtractOptions(workers=1, shard=work.shard),
        )
        ended = time.monotonic()
    used = resource.getrusage(resource.RUSAGE_SELF)
    first_at, last_at = encoder.first_at or ended, encoder.last_at or ended
    results.send(
        Attempt(
            work.shard.index,
            is_killed=False,
            computed=encoder.computed,
            seconds=ended - started,
            before_s=first_at - started,
            after_s=ended - last_at,
            cpu_s=used.ru_utime + used.ru_stime,
            peak_bytes=used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        )
    )


def run_all(works: Sequence[Work], at_once: int, printed: Path) -> tuple[list[Attempt], float]:
    """Run every work in a process of its own, `at_once` at a time, each on one core; the one that is killed, once more.

    Returns:
        The attempts in the order of their ends, and the seconds from the first one's start to the last one's end.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["common.extraction", "common.encoder"])
    first = context.Process(target=int)  # imports them once, for all
    first.start()
    first.join()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    free = [cores[slot % len(cores)] if cores else None for slot in range(at_once)]
    waiting, attempts, started_at = deque(works), list[Attempt](), time.monotonic()
    running: dict[ForkServerProcess, tuple[Work, Connection, float]] = {}
    try:
        while waiting or running:
            while waiting and free:
                work = replace(waiting.popleft(), core=free.pop(0))
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=extract_shard, args=(work, printed, sender))
                running[process] = (work, receiver, time.monotonic())
                process.start()
                sender.close()
            wait([process.sentinel for process in running])
            for process in [each for each in running if not each.is_alive()]:
                work, receiver, started = running.pop(process)
                free.append(work.core)
                if work.kill_at is not None and process.exitcode == -signal.SIGKILL:
                    attempts.append(Attempt(work.shard.index, True, work.kill_at, time.monotonic() - started))
                    waiting.append(replace(work, kill_at=None))
                elif process.exitcode:
                    raise SystemExit(
                        f"shard {work.shard} ended with status {process.exitcode}:\n{printed.read_text()[-4000:]}"
                    )
                else:
                    attempts.append(receiver.recv())
        return attempts, time.monotonic() - started_at
    finally:
        for process in running:
            if process.pid is not None:
                process.kill()
                process.join()


def measure(given: argparse.Namespace, at_once: int) -> Measured:
    """Run the array, then one process, on the same clips."""
    if given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="job_array_", dir=given.folder) as made:
        folder = Path(made)
        sounds = (given.folder or folder).absolute() / "sounds"
        say(f"making {given.clips:,} clips in {sounds}")
        make_sounds(sounds, given.clips)
        array_file, whole_file, printed = folder / "array.pt", folder / "whole.pt", folder / "printed.txt"
        encoder_s = given.encoder_ms / 1000
        works = [
            Work(sounds, given.clips, array_file, Shard(index, given.shards), encoder_s, given.save_every)
            for index in range(given.shards)
        ]
        works[0] = replace(works[0], kill_at=given.clips // given.shards // 2)
        works[-1] = replace(works[-1], encoder_s=given.slowdown * encoder_s)
        say(f"extracting them in {given.shards} shards")
        attempts, wall_s = run_all(works, at_once, printed)
        say("extracting them in one process")
        whole = replace(works[0], features_file=whole_file, shard=Shard(), kill_at=None)
        return Measured(
            attempts,
            wall_s,
            run_all([whole], 1, printed)[0][0],
            array_file.stat().st_size,
            sha256_of(array_file),
            sha256_of(whole_file),
        )


def say(what: str) -> None:
    """What is being done, for who waits."""
    print(f"{what} ...", file=sys.stderr, flush=True)
