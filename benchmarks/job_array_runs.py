"""The measurements of `job_array.py`: the clips, a stand-in for the encoder, and each shard in a separate process."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
import soundfile
import torch
from measuring import peak_memory
from tqdm import tqdm

from common.datasets import Clip
from common.encoder import EncoderInfo, Output, Waveform
from common.encoder_name import EncoderKind
from common.extraction import ClipList, ExtractOptions, Shard, extract
from common.files import sha256_of

RATE = 8_000
SHORTEST, LONGEST = RATE // 20, RATE // 5  # samples: 0.05 to 0.2 s
WIDTH = 384  # of AudioSep's embeddings


@dataclass(frozen=True)
class Attempt:
    """What one process took: `seconds` from the list of clips to the end, before the first clip went to the encoder, and after
    the last one came back; seconds of a core, and peak memory. Of a killed process only `computed` and `seconds` are known.
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
    """Attempts of the array in the order of their ends, its wall time, the process without shards, and both files."""

    attempts: list[Attempt]
    wall_s: float
    whole: Attempt
    file_bytes: int
    array_sha256: str
    whole_sha256: str


@dataclass(frozen=True)
class Work:
    """What one process extracts: a shard of the first `clips` sounds. The encoder sleeps `encoder_s` per clip; a chunk is saved every
    `save_every_s`; the process is killed after `kill_at` clips, and may use only `core`. None: not killed, any core.
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
    """An `Encoder` that costs almost nothing but the time that it sleeps, as a process waits for its GPU."""

    sample_rate = RATE
    device = torch.device("cpu")
    default_output = Output("waveform", "", WIDTH)
    outputs = (default_output,)
    info = EncoderInfo(EncoderKind.UNTRAINED, "stand-in", "none", "untrained", "none", "fp32")

    def __init__(self, sleep_s: float, kill_at: int | None) -> None:
        self.sleep_s, self.kill_at = sleep_s, kill_at
        self.computed, self.first_at, self.last_at = 0, 0.0, 0.0

    def embed_outputs(self, waveforms: Sequence[Waveform], outputs: Sequence[Output]) -> dict[Output, torch.Tensor]:
        """As `Encoder.embed_outputs`: a row is the beginning of the waveform and depends on all of it."""
        if self.computed == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.first_at = self.first_at or time.monotonic()
        time.sleep(self.sleep_s * len(waveforms))
        rows = [np.resize(waveform, WIDTH) + np.asarray(waveform).sum() for waveform in waveforms]
        self.computed += len(rows)
        self.last_at = time.monotonic()
        return dict.fromkeys(outputs, torch.from_numpy(np.stack(rows)))


def make_sounds(folder: Path, count: int) -> None:
    """Write the first `count` clips, unless they exist: noise as 16-bit WAV."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path, rng = folder / f"{number:08d}.wav", np.random.default_rng(number)
        if not path.exists():
            soundfile.write(path, rng.integers(-8000, 8000, rng.integers(SHORTEST, LONGEST), dtype=np.int16), RATE)


def extract_shard(work: Work, log: Path, results: Connection) -> None:
    """In a separate process: extract the shard, and send the `Attempt`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # the default is a semaphore, which a killed process leaves behind
    if work.core is not None:
        os.sched_setaffinity(0, {work.core})
    vars(importlib.import_module("common.extraction.extract"))["SAVE_EVERY_S"] = work.save_every_s
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        started, encoder = time.monotonic(), StandIn(work.encoder_s, work.kill_at)
        clips = [
            Clip(
                work.sounds / f"{number:08d}.wav", "abc"[number % 3], fold=1 + number % 5, group=f"source{number // 10}"
            )
            for number in range(work.clips)
        ]
        listed, options = ClipList(clips, work.sounds, "job_array"), ExtractOptions(workers=1, shard=work.shard)
        extract(listed, encoder, work.features_file, encoder.outputs, options)
        ended = time.monotonic()
    seconds = (ended - started, (encoder.first_at or ended) - started, ended - (encoder.last_at or ended))
    results.send(Attempt(work.shard.index, False, encoder.computed, *seconds, time.process_time(), peak_memory()))


def run_all(works: Sequence[Work], at_once: int, log: Path) -> Iterator[Attempt]:
    """Run each work in a separate process on one core, `at_once` at a time, and a killed one once more.

    Yields the attempts in the order of their ends.
    """
    context = multiprocessing.get_context("forkserver")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    free, waiting = [cores[slot % len(cores)] for slot in range(at_once)], deque(works)
    running = {}
    try:
        while waiting or running:
            while waiting and free:
                work = replace(waiting.popleft(), core=free.pop(0))
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=extract_shard, args=(work, log, sender))
                process.start()
                sender.close()
                running[process.sentinel] = (process, work, receiver, time.monotonic())
            for sentinel in wait(list(running)):
                process, work, receiver, started = running.pop(sentinel)
                process.join()
                free.append(work.core)
                if work.kill_at is not None and process.exitcode == -signal.SIGKILL:
                    waiting.append(replace(work, kill_at=None))
                    yield Attempt(work.shard.index, True, work.kill_at, time.monotonic() - started)
                elif process.exitcode:
                    end = log.read_text()[-4000:]
                    raise SystemExit(f"shard {work.shard} ended with status {process.exitcode}:\n{end}")
                else:
                    yield receiver.recv()
    finally:
        for process, *_ in running.values():
            process.kill()
            process.join()


def measure(arguments: argparse.Namespace) -> Measured:
    """Run the array that the arguments of `job_array.py` ask for, then one process, on the same clips."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["common.extraction", "common.encoder"])
    first = context.Process(target=int)  # imports them once, for all
    first.start()
    first.join()
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="job_array_", dir=arguments.folder) as temporary:
        folder = Path(temporary)
        array_file, whole_file, log = folder / "array.pt", folder / "whole.pt", folder / "log.txt"
        sounds = (arguments.folder or folder).absolute() / "sounds"
        say(f"making {arguments.clips:,} clips in {sounds}")
        make_sounds(sounds, arguments.clips)
        encoder_s = arguments.encoder_ms / 1000
        whole = Work(sounds, arguments.clips, whole_file, Shard(), encoder_s, arguments.save_every)
        shards = [Shard(index, arguments.shards) for index in range(arguments.shards)]
        works = [replace(whole, features_file=array_file, shard=shard) for shard in shards]
        works[0] = replace(works[0], kill_at=arguments.clips // arguments.shards // 2)
        works[-1] = replace(works[-1], encoder_s=arguments.slowdown * encoder_s)
        say(f"extracting them in {arguments.shards} shards")
        started = time.monotonic()
        attempts = list(run_all(works, arguments.at_once, log))
        wall_s = time.monotonic() - started
        say("extracting them in one process")
        (alone,) = run_all([whole], 1, log)
        file_bytes, checksums = array_file.stat().st_size, (sha256_of(array_file), sha256_of(whole_file))
        return Measured(attempts, wall_s, alone, file_bytes, *checksums)


def say(what: str) -> None:
    """Show what is being done."""
    print(f"{what} ...", file=sys.stderr, flush=True)
