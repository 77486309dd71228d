"""The measurements of `job_array.py`: the clips, a stand-in for the encoder, and each shard in a separate process."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
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
PER_FOLDER = 500
WIDTH = 384  # of AudioSep's embeddings


@dataclass(frozen=True)
class Settings:
    """The flags of `job_array.py`."""

    clips: int
    shards: int
    at_once: int
    encoder_ms: float
    slowdown: float
    save_every: float
    folder: Path | None


@dataclass(frozen=True)
class Attempt:
    """What one process took; for a killed process only `computed` and `seconds` are known.

    Attributes:
        shard: index from 0.
        computed: clips that went through the encoder.
        seconds: from the list of clips to the end, without Python's start and the imports.
        before_s, after_s: until the first clip went to the encoder, and after the last one came back.
        cpu_s: seconds of a core.
        peak_bytes: of memory.
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

    settings: Settings
    attempts: list[Attempt]
    wall_s: float
    whole: Attempt
    file_bytes: int
    array_sha256: str
    whole_sha256: str

    @property
    def computed_again(self) -> int:
        """Clips that went through the encoder twice, because of the kill."""
        return sum(attempt.computed for attempt in self.attempts) - self.settings.clips

    @property
    def ideal_s(self) -> float:
        """Wall time of the array if dividing the work cost nothing."""
        return self.whole.seconds / self.settings.at_once

    @property
    def fair_s(self) -> float:
        """The same, with what the kill and the slow encoder cost."""
        settings, last = self.settings, self.settings.shards - 1
        (straggler,) = (attempt for attempt in self.attempts if attempt.shard == last and not attempt.is_killed)
        slowed_s = straggler.computed * settings.encoder_ms / 1000 * (settings.slowdown - 1)
        again_s = self.computed_again / settings.clips * self.whole.seconds
        return self.ideal_s + (again_s + slowed_s) / settings.at_once


@dataclass(frozen=True)
class Work:
    """What one process extracts: `shard` of the first `clips` sounds of a folder, into `features_file`.

    Attributes:
        encoder_s: seconds that the encoder sleeps per clip.
        kill_at: the process is killed after this many clips; None: it is not.
        core: the only core that it may use; None: any.
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
        if self.sleep_s:
            time.sleep(self.sleep_s * len(waveforms))
        rows = [np.resize(waveform, WIDTH) + np.asarray(waveform).sum() for waveform in waveforms]
        self.computed += len(rows)
        self.last_at = time.monotonic()
        return dict.fromkeys(outputs, torch.from_numpy(np.stack(rows)))


def path_of(number: int) -> Path:
    """A clip's file, relative to the folder of all clips."""
    return Path(f"{number // PER_FOLDER:05d}", f"{number:08d}.wav")


def make_sounds(folder: Path, count: int) -> None:
    """Write the first `count` clips: noise as 16-bit WAV. Those of an earlier run are kept."""
    note = folder / "made.txt"
    made = int(note.read_text()) if note.exists() else 0
    for number in range(made, count):
        path, rng = folder / path_of(number), np.random.default_rng(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.integers(-8000, 8000, rng.integers(SHORTEST, LONGEST), dtype=np.int16), RATE)
    note.write_text(str(max(made, count)))


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
            Clip(work.sounds / path_of(number), "abc"[number % 3], fold=1 + number % 5, group=f"source{number // 10}")
            for number in range(work.clips)
        ]
        listed, options = ClipList(clips, work.sounds, "job_array"), ExtractOptions(workers=1, shard=work.shard)
        extract(listed, encoder, work.features_file, encoder.outputs, options)
        ended = time.monotonic()
    used = resource.getrusage(resource.RUSAGE_SELF)
    times = (ended - started, (encoder.first_at or ended) - started, ended - (encoder.last_at or ended))
    cpu_s = used.ru_utime + used.ru_stime
    results.send(Attempt(work.shard.index, False, encoder.computed, *times, cpu_s, peak_memory()))


def run_all(works: Sequence[Work], at_once: int, log: Path) -> Iterator[Attempt]:
    """Run each work in a separate process on one core, `at_once` at a time, and a killed one once more.

    Yields the attempts in the order of their ends.
    """
    context = multiprocessing.get_context("forkserver")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    free, waiting = [cores[slot % len(cores)] for slot in range(at_once)], deque(works)
    running: dict[BaseProcess, tuple[Work, Connection, float]] = {}
    try:
        while waiting or running:
            while waiting and free:
                work = replace(waiting.popleft(), core=free.pop(0))
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=extract_shard, args=(work, log, sender))
                running[process] = (work, receiver, time.monotonic())
                process.start()
                sender.close()
            wait([process.sentinel for process in running])
            for process in [process for process in running if not process.is_alive()]:
                work, receiver, started = running.pop(process)
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
        for process in running:
            if process.pid is not None:
                process.kill()
                process.join()


def measure(settings: Settings) -> Measured:
    """Run the array, then one process, on the same clips."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["common.extraction", "common.encoder"])
    first = context.Process(target=int)  # imports them once, for all
    first.start()
    first.join()
    if settings.folder:
        settings.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="job_array_", dir=settings.folder) as temporary:
        folder = Path(temporary)
        array_file, whole_file, log = folder / "array.pt", folder / "whole.pt", folder / "log.txt"
        sounds = (settings.folder or folder).absolute() / "sounds"
        say(f"making {settings.clips:,} clips in {sounds}")
        make_sounds(sounds, settings.clips)
        encoder_s = settings.encoder_ms / 1000
        whole = Work(sounds, settings.clips, whole_file, Shard(), encoder_s, settings.save_every)
        shards = [Shard(index, settings.shards) for index in range(settings.shards)]
        works = [replace(whole, features_file=array_file, shard=shard) for shard in shards]
        works[0] = replace(works[0], kill_at=settings.clips // settings.shards // 2)
        works[-1] = replace(works[-1], encoder_s=settings.slowdown * encoder_s)
        say(f"extracting them in {settings.shards} shards")
        started = time.monotonic()
        attempts = list(run_all(works, settings.at_once, log))
        wall_s = time.monotonic() - started
        say("extracting them in one process")
        (alone,) = run_all([whole], 1, log)
        file_bytes, checksums = array_file.stat().st_size, (sha256_of(array_file), sha256_of(whole_file))
        return Measured(settings, attempts, wall_s, alone, file_bytes, *checksums)


def say(what: str) -> None:
    """Show what is being done."""
    print(f"{what} ...", file=sys.stderr, flush=True)
