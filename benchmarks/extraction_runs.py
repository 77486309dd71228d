"""The measurements of `extraction.py`: variants of extraction in separate processes, and tables of what they took."""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from measuring import peak_memory, timed
from original import PlainEncoder, extract_originally

from common.datasets import Clip
from common.datasets.audio import read_audio
from common.encoder import audiosep, load_encoder
from common.encoder.device import PRECISIONS, describe_cpu, keep_freed_memory, resolve_precision
from common.encoder.network import BLOCKS, SAMPLE_RATE
from common.extraction import ClipList, ThisProcess, Threads, extract
from common.features import FeatureSet

CHECKPOINT = "random:2024"
KINDS = (".wav", ".flac", ".ogg", ".mp3")
ORIGINAL, KEPT, COMPILED = "original", "original, memory kept", ", compiled"
LIMITS = {"fp32": 1e-5, "tf32": 1e-2, "bf16": 1e-2, "fp16": 1e-2}  # relative L2 against the original's output


@dataclass(frozen=True)
class Figures:
    """A variant of extraction; None: not measured for it."""

    memory: int  # peak, in bytes
    alone: float | None = None  # seconds of audio per second, of the encoder alone
    peak: float | None = None  # the device's best operations per second
    bandwidth: float | None = None  # and bytes per second
    parts: dict[str, float] | None = None  # seconds of every part per second of audio
    seconds: tuple[float, ...] = ()  # of the timed rounds
    speed: float = 0.0  # seconds of audio per second, end to end
    error: float = 0.0  # relative L2 against the original's output


def work_per_second(size: int) -> tuple[float, float]:
    """Operations (additions and multiplications) of the six folded blocks' convolutions for a second of audio, and the bytes
    that the blocks read and write, if nothing stays in a cache.

    Args:
        size: bytes of an activation; the first block's input is computed in float32 from the spectrogram.
    """
    operations = traffic = 0.0
    positions = 100 * 1024.0
    for name, _, channels_in, channels_out, (in_time, in_frequency) in BLOCKS[:-1]:
        pooled = positions / in_time / in_frequency
        kernel = (2 + in_time) * (2 + in_frequency)
        operations += 2 * channels_out * (9 * positions * channels_in + kernel * pooled * channels_out)
        if channels_in != channels_out:
            operations += 2 * pooled * channels_in * channels_out
        if name == BLOCKS[0][0]:
            traffic += 4 * positions * (2 + 4 * channels_in) + size * 2 * positions * channels_in
        else:
            traffic += size * 6 * positions * channels_in  # scaled, activated in place, read by conv1; pooled
        # The output of conv1, activated in place; that of conv2, the pooled input, its shortcut, and their addition.
        traffic += size * (4 * positions * channels_out + 5 * pooled * channels_out + 2 * pooled * channels_in)
        positions = pooled
    return operations, traffic


def bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy of 512 MB reads and writes; the best of several."""
    source = torch.ones(2**27, device=device)
    copy = torch.empty_like(source)
    return max(2 * source.nbytes / timed(partial(copy.copy_, source), device) for _ in range(8))


def peak(device: torch.device, precision: str) -> float:
    """Operations per second of 3x3 convolutions of the same type, with the same library; the best of several shapes."""
    options, best = {"device": device, "dtype": PRECISIONS[precision]}, 0.0
    for channels, height, width in ((64, 256, 512), (128, 128, 256), (256, 64, 128), (384, 32, 64)):
        image = torch.randn(1, channels, height, width, **options).to(memory_format=torch.channels_last)
        kernel = torch.randn(channels, channels, 3, 3, **options).to(memory_format=torch.channels_last)
        seconds = min(timed(partial(F.conv2d, image, kernel, padding=1), device) for _ in range(12))
        best = max(best, 2 * 9 * channels**2 * height * width / seconds)
    return best


def worker(variant: str, paths: list[Path], device: torch.device, pipe: Connection) -> None:
    """Extract on every request, and send seconds and embeddings; at the end send the `Figures` without the rounds'."""
    torch.backends.cudnn.allow_tf32 = variant.startswith("tf32")  # torch's default would round the reference too
    is_original = variant.startswith(ORIGINAL)
    precision, *compiled = variant.split(COMPILED)
    if variant == KEPT:
        keep_freed_memory()
    encoder: Any = PlainEncoder(CHECKPOINT, device) if is_original else load_encoder(CHECKPOINT, device, precision)
    for block in encoder.network.blocks if compiled else ():
        block.compile()
    clips = ClipList([Clip(path, ("sound",)) for path in paths], paths[0].parent, "benchmark")

    with tempfile.TemporaryDirectory() as folder:
        while pipe.recv():
            started = time.perf_counter()
            if is_original:
                embeddings = extract_originally(encoder, paths)
            else:
                file = Path(tempfile.mkdtemp(dir=folder), "features.pt")
                extract(ThisProcess(encoder, [encoder.default_output], Threads.shared()), clips, file)
                embeddings = FeatureSet.load(file).features
            pipe.send((time.perf_counter() - started, embeddings.numpy()))
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    if is_original:
        pipe.send(Figures(memory))
        return
    # Only now: all other processes are idle.
    some = paths[: 8 if device.type == "cpu" else 400]
    waveforms = [read_audio(path, SAMPLE_RATE) for path in some]
    timed_s = sum(len(waveform) for waveform in waveforms) / SAMPLE_RATE
    alone = timed_s / min(timed(lambda: encoder.embed(waveforms), device) for _ in range(3))
    parts = None  # compiled blocks cannot be timed from inside
    limits = peak(device, precision), bandwidth(device)
    if not compiled:
        parts = {name: seconds / timed_s for name, seconds in breakdown(encoder, some).items()}
    pipe.send(Figures(memory, alone, *limits, parts))


def breakdown(encoder: Any, paths: Sequence[Path]) -> dict[str, float]:
    """Seconds spent in every part, without overlap. The timers stay in the encoder."""
    spent: dict[str, float] = defaultdict(float)

    def timing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*arguments: Any, **options: Any) -> Any:
            results: list[Any] = []
            spent[name] += timed(lambda: results.append(call(*arguments, **options)), encoder.device)
            return results[0]

        return timed_call

    encoder.network.normalised_magnitude = timing("STFT", encoder.network.normalised_magnitude)
    for (name, *_), block in zip(BLOCKS, encoder.network.blocks, strict=True):
        block.forward = timing(name, block.forward)
    audiosep.batch_moments = timing("pooling", audiosep.batch_moments)
    encoder.embed([read_audio(paths[0], SAMPLE_RATE)])
    spent.clear()
    decode = timing("decode", partial(soundfile.read, dtype="float32"))
    decode_and_resample = timing("resample", read_audio)
    waveforms = []
    for path in paths:
        decode(path)
        waveforms.append(decode_and_resample(path, SAMPLE_RATE))
    encoder.embed(waveforms)
    resample_s = max(0.0, spent.pop("resample") - spent["decode"])
    return {**spent, "resample": resample_s}


def measure(arguments: argparse.Namespace) -> tuple[str, dict[str, Figures]]:
    """Measure by the arguments of `extraction.py`; returns a title, and the figures of every variant."""
    device = load_encoder(CHECKPOINT, arguments.device).device
    names = arguments.precisions or (["fp32", "bf16"] if device.type == "cpu" else list(PRECISIONS))
    precisions = [resolve_precision(name, device) for name in names]
    compiled = [f"{name}{COMPILED}" for name in precisions if arguments.compile]
    variants = [ORIGINAL, *[KEPT] * (device.type == "cpu"), *precisions, *compiled]
    with tempfile.TemporaryDirectory() as folder:
        if arguments.audio is None:
            generate(arguments, Path(folder))
        files = sorted(path for path in (arguments.audio or Path(folder)).rglob("*") if path.suffix.lower() in KINDS)
        paths = files[: arguments.clips]
        audio_s = sum(soundfile.info(path).duration for path in paths)
        figures = take_turns(variants, paths, device, arguments.rounds, audio_s)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else describe_cpu()
    title = (
        f"{len(paths)} files, {audio_s:.0f} s of audio, {hardware}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, {arguments.rounds} rounds; medians"
    )
    return title, figures


def generate(arguments: argparse.Namespace, folder: Path) -> None:
    """Write files of noise with a changing spectrum, in 16 bits."""
    rng = np.random.default_rng(0)
    for number in range(arguments.clips):
        samples = np.cumsum(rng.standard_normal(round(arguments.rate * arguments.seconds)))
        samples = np.diff(samples, prepend=0) + 0.2 * rng.random() * (samples - samples.mean()) / samples.std()
        path = folder / f"{number:06d}.{'flac' if arguments.flac else 'wav'}"
        soundfile.write(path, 0.1 * samples / np.abs(samples).max() * 9, arguments.rate, subtype="PCM_16")


def take_turns(
    variants: Sequence[str], paths: list[Path], device: torch.device, rounds: int, audio_s: float
) -> dict[str, Figures]:
    """Run the variants in turns; the first turn warms up and is not counted."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for variant in variants:
        pipes[variant], remote = context.Pipe()
        context.Process(target=worker, args=(variant, paths, device, remote), daemon=True).start()
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    embeddings: dict[str, np.ndarray] = {}
    for turn in range(rounds + 1):
        for variant in variants if turn % 2 else reversed(variants):
            time.sleep(0.3)  # until the threads of the previous process are idle
            pipes[variant].send(True)
            elapsed, embeddings[variant] = pipes[variant].recv()
            seconds[variant].append(elapsed)
    reference, figures = embeddings[ORIGINAL], {}
    for variant in variants:
        pipes[variant].send(False)
        counted = tuple(seconds[variant][1:])
        error = float(np.linalg.norm(embeddings[variant] - reference) / np.linalg.norm(reference))
        speed = audio_s / float(np.median(counted))
        figures[variant] = replace(pipes[variant].recv(), seconds=counted, speed=speed, error=error)
    return figures


def wrong_variants(figures: dict[str, Figures]) -> list[str]:
    """Variants whose embeddings differ from the original's by more than allowed."""
    return [
        variant for variant, figure in figures.items() if figure.error > LIMITS.get(variant.partition(",")[0], 1e-5)
    ]


def overview(figures: dict[str, Figures]) -> list[list[str]]:
    """A row per variant."""
    titles = {ORIGINAL: "against original", KEPT: "against it, memory kept"}
    baselines = {titles[variant]: figures[variant].speed for variant in titles if variant in figures}
    table = [["way", "s of audio/s", *baselines, "encoder alone", "error", "of peak", "memory, GB"]]
    for variant, figure in figures.items():
        ratios = [f"{figure.speed / speed:.2f}" for speed in baselines.values()]
        alone = f"{figure.alone:.1f}" if figure.alone else "-"
        share = f"{work_per_second(4)[0] * figure.speed / figure.peak:.0%}" if figure.peak else "-"
        cells = [*ratios, alone, f"{figure.error:.0e}", share, f"{figure.memory / 1e9:.1f}"]
        table.append([variant, f"{figure.speed:.1f}", *cells])
    return table


def parts_table(figures: dict[str, Figures]) -> list[list[str]]:
    """A row per part of an extraction, in ms per second of audio."""
    parts = {variant: figure.parts for variant, figure in figures.items() if figure.parts}
    names = next(iter(parts.values()))
    return [["part", *parts], *([name, *(f"{1000 * spent[name]:.2f}" for spent in parts.values())] for name in names)]


def roofline(figures: dict[str, Figures]) -> list[list[str]]:
    """The limits by arithmetic and by memory, in seconds of audio per second."""
    table = [["precision", "GFLOP", "MB", "computing", "memory", "reached"]]
    for variant, figure in figures.items():
        if figure.peak and figure.bandwidth:
            operations, traffic = work_per_second(PRECISIONS[variant.partition(COMPILED)[0]].itemsize)
            speeds = (figure.peak / operations, figure.bandwidth / traffic, figure.speed)
            work = [f"{operations / 1e9:.1f}", f"{traffic / 1e6:.0f}"]
            table.append([variant, *work, *(f"{speed:.0f}" for speed in speeds)])
    return table
