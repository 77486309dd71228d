"""The measurements of `extraction.py`: each way of extraction in a process of its own, and the tables of what they took."""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.nn.functional as F

from common.datasets import Clip
from common.datasets.audio import read_audio
from common.encoder import audiosep, find_output, load_encoder
from common.encoder.device import PRECISIONS, describe_cpu, keep_freed_memory, resolve_precision
from common.encoder.network import BLOCKS, SAMPLE_RATE
from common.extraction import ClipList, extract

CHECKPOINT = "random:2024"
ORIGINAL, KEPT, COMPILED = "original", "original, memory kept", ", compiled"
LIMITS = {"fp32": 1e-5, "tf32": 1e-2, "bf16": 1e-2, "fp16": 1e-2}  # relative L2 against the original's output


def operations_per_second(folded: bool) -> float:
    """The operations of the six blocks' convolutions for one second of audio, counting additions and multiplications.

    Args:
        folded: as this project computes them, with the pooling folded into conv2 and done before the shortcut; or as
            the original does, one after the other.
    """
    total, positions = 0.0, 100 * 1024.0
    for _, _, channels_in, channels_out, (in_time, in_frequency) in BLOCKS[:-1]:
        pooled = positions / in_time / in_frequency
        second = (2 + in_time) * (2 + in_frequency) * pooled if folded else 9 * positions
        total += 2 * channels_out * (9 * positions * channels_in + second * channels_out)
        if channels_in != channels_out:
            total += 2 * (pooled if folded else positions) * channels_in * channels_out
        positions = pooled
    return total


def traffic_per_second(size: int) -> float:
    """Bytes that the folded blocks' steps read and write for one second of audio, if nothing stays in a cache.

    Args:
        size: bytes of an activation; the first block's input is computed in float32 from the spectrogram.
    """
    total, positions = 0.0, 100 * 1024.0
    for number, (_, _, channels_in, channels_out, (in_time, in_frequency)) in enumerate(BLOCKS[:-1]):
        pooled = positions / in_time / in_frequency
        if number == 0:
            total += 4 * (2 * positions + 4 * positions * channels_in) + size * 2 * positions * channels_in
        else:
            total += size * 6 * positions * channels_in  # scaled, activated in place, read by conv1; pooled
        total += size * (4 * positions * channels_out + pooled * channels_out)  # conv1's, activated in place; conv2's
        total += size * (pooled * 2 * channels_in + pooled * channels_out)  # the pooled input and its shortcut
        total += size * 3 * pooled * channels_out  # their addition
        positions = pooled
    return total


def bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy of 512 MB reads and writes; the best of several."""
    source = torch.ones(2**27, device=device)
    target = torch.empty_like(source)
    return max(2 * source.nbytes / _timed(partial(target.copy_, source), device) for _ in range(8))


def peak(device: torch.device, precision: str) -> float:
    """Operations per second of 3x3 convolutions of the same type, with the same library; the best of several shapes."""
    dtype, best = PRECISIONS[precision], 0.0
    for channels, height, width in ((64, 256, 512), (128, 128, 256), (256, 64, 128), (384, 32, 64)):
        image = torch.randn(1, channels, height, width, device=device, dtype=dtype)
        kernel = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
        image, kernel = (each.to(memory_format=torch.channels_last) for each in (image, kernel))
        for _ in range(12):
            seconds = _timed(partial(F.conv2d, image, kernel, padding=1), device)
            best = max(best, 2 * 9 * channels**2 * height * width / seconds)
    return best


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def worker(way: str, paths: list[Path], device: torch.device, pipe: Connection) -> None:
    """Do one way's work whenever asked; send the seconds and embeddings, and at the end the peak memory."""
    torch.backends.cudnn.allow_tf32 = way.startswith("tf32")  # torch's default would round the reference too
    if way.startswith(ORIGINAL):
        from original import PlainEncoder, extract_originally

        if way == KEPT:
            keep_freed_memory()
        encoder = PlainEncoder(CHECKPOINT).to(device)

        def work(number: int) -> torch.Tensor:
            return extract_originally(encoder, paths, device)
    else:
        precision, *compiled = way.split(COMPILED)
        encoder = load_encoder(CHECKPOINT, device, precision)
        if compiled:
            for block in encoder.network.blocks:
                block.compile()
        folder = Path(tempfile.mkdtemp())
        clips = ClipList([Clip(path, "sound") for path in paths], paths[0].parent, "benchmark")
        output = find_output(encoder.outputs, "encoder_block6", "mean")

        def work(number: int) -> torch.Tensor:
            features = extract(clips, encoder, folder / f"{number}.pt", [output])
            assert features is not None
            return features.features

    number = 0
    while pipe.recv() == "go":
        started = time.perf_counter()
        embeddings = work(number)
        pipe.send((time.perf_counter() - started, embeddings.numpy()))
        number += 1
    extra = {"memory": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    if device.type == "cuda":
        extra["memory"] = torch.cuda.max_memory_allocated(device)
    if not way.startswith(ORIGINAL):  # only now, while all others are idle
        waveforms = [read_audio(path, SAMPLE_RATE) for path in paths[: 8 if device.type == "cpu" else 400]]
        timed_s = sum(len(waveform) for waveform in waveforms) / SAMPLE_RATE
        alone = [_timed(lambda: encoder.embed(waveforms), device) for _ in range(3)]
        extra |= {"alone": timed_s / min(alone), "peak": peak(device, precision), "bandwidth": bandwidth(device)}
        if not compiled:  # compiled blocks cannot be timed from inside
            extra["parts"] = {
                name: seconds / timed_s for name, seconds in breakdown(encoder, paths[: len(waveforms)]).items()
            }
    pipe.send(extra)


def breakdown(encoder: Any, paths: Sequence[Path]) -> dict[str, float]:
    """Seconds spent in each part, one after the other without overlap."""
    spent: dict[str, float] = defaultdict(float)

    def timing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            result: list[Any] = []
            spent[name] += _timed(lambda: result.append(call(*arguments, **options)), encoder.device)
            return result[0]

        return timed

    network, pool = encoder.network, audiosep.batch_moments
    network.normalised_magnitude = timing("STFT", network.normalised_magnitude)
    for (name, *_), block in zip(BLOCKS, network.blocks, strict=True):
        block.forward = timing(name, block.forward)
    audiosep.batch_moments = timing("pooling", pool)
    try:
        encoder.embed([read_audio(paths[0], SAMPLE_RATE)])
        spent.clear()
        soundfile_read = timing("decode", lambda path: soundfile.read(path, dtype="float32"))
        timed_read = timing("decode and resample", read_audio)
        waveforms = []
        for path in paths:
            soundfile_read(path)
            waveforms.append(timed_read(path, SAMPLE_RATE))
        encoder.embed(waveforms)
    finally:
        audiosep.batch_moments = pool
        del network.__dict__["normalised_magnitude"]
        for block in network.blocks:
            del block.__dict__["forward"]
    spent["resample"] = max(0.0, spent.pop("decode and resample") - spent["decode"])
    return dict(spent)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure what the arguments of `extraction.py` ask for: figures and tables by name."""
    device = load_encoder(CHECKPOINT, given.device).device
    precisions = given.precisions or (["fp32", "bf16"] if device.type == "cpu" else list(PRECISIONS))
    own = [resolve_precision(name, device) for name in precisions]
    ways = [ORIGINAL, *[KEPT] * (device.type == "cpu"), *own, *(f"{name}{COMPILED}" for name in own if given.compile)]
    with tempfile.TemporaryDirectory() as folder:
        paths = _files(given, Path(folder))
        audio_s = sum(soundfile.info(path).duration for path in paths)
        seconds, embeddings, extras = _measure(ways, paths, device, given.rounds)
    report = _report(ways, seconds, embeddings, extras, audio_s, device)
    where = f"{torch.cuda.get_device_name(device)}" if device.type == "cuda" else describe_cpu()
    wrong = [way for way in ways[1:] if report["figures"][way]["error"] > LIMITS.get(way.partition(",")[0], 1e-5)]
    title = (
        f"{len(paths)} files, {audio_s:.0f} s of audio, {where}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, {given.rounds} rounds; medians"
    )
    return {"title": title, **report, "wrong": wrong}


def _files(given: argparse.Namespace, folder: Path) -> list[Path]:
    """Files to extract: the given ones, or generated noise with a changing spectrum, in 16 bits."""
    if given.audio is not None:
        kinds = (".wav", ".flac", ".ogg", ".mp3")
        return sorted(path for path in given.audio.rglob("*") if path.suffix.lower() in kinds)[: given.clips]
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.{'flac' if given.flac else 'wav'}" for number in range(given.clips)]
    for path in paths:
        samples = np.cumsum(rng.standard_normal(round(given.rate * given.seconds)))
        samples = np.diff(samples, prepend=0) + 0.2 * rng.random() * (samples - samples.mean()) / samples.std()
        soundfile.write(path, 0.1 * samples / np.abs(samples).max() * 9, given.rate, subtype="PCM_16")
    return paths


def _measure(
    ways: Sequence[str], paths: list[Path], device: torch.device, rounds: int
) -> tuple[dict[str, list[float]], dict[str, np.ndarray], dict[str, dict]]:
    """Run the ways in turns; the first turn warms up and is not counted."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for way in ways:
        pipes[way], theirs = context.Pipe()
        processes.append(context.Process(target=worker, args=(way, paths, device, theirs), daemon=True))
        processes[-1].start()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    embeddings: dict[str, np.ndarray] = {}
    for turn in range(rounds + 1):
        for way in ways if turn % 2 else reversed(ways):
            time.sleep(0.3)  # until the other's threads are idle
            pipes[way].send("go")
            taken, embeddings[way] = pipes[way].recv()
            if turn:
                seconds[way].append(taken)
    extras = {}
    for way in ways:
        pipes[way].send("stop")
        extras[way] = pipes[way].recv()
    for process in processes:
        process.join()
    return seconds, embeddings, extras


def _report(
    ways: Sequence[str],
    seconds: dict[str, list[float]],
    embeddings: dict[str, np.ndarray],
    extras: dict[str, dict],
    audio_s: float,
    device: torch.device,
) -> dict[str, Any]:
    """The figures, and the tables made from them."""
    medians = {way: float(np.median(each)) for way, each in seconds.items()}
    table = [
        [
            "way",
            "s of audio/s",
            "against original",
            *["against it, memory kept"] * (KEPT in ways),
            "encoder alone",
            "error",
            "of peak",
            "memory, GB",
        ]
    ]
    figures = {}
    for way in ways:
        reference = embeddings[ORIGINAL]
        error = float(np.linalg.norm(embeddings[way] - reference) / np.linalg.norm(reference))
        best = extras[way].get("peak")
        share = operations_per_second(folded=True) * audio_s / medians[way] / best if best else None
        figures[way] = {"seconds": seconds[way], "error": error, "share_of_peak": share, **extras[way]}
        ratios = [f"{medians[each] / medians[way]:.2f}" for each in (ORIGINAL, *[KEPT] * (KEPT in ways))]
        memory, alone = extras[way]["memory"] / 1e9, extras[way].get("alone")
        ratios.append("-" if alone is None else f"{alone:.1f}")
        cells = [f"{audio_s / medians[way]:.1f}", *ratios, f"{error:.0e}", "-" if share is None else f"{share:.0%}"]
        table.append([way, *cells, f"{memory:.1f}"])
    timed = [way for way in ways if "parts" in extras[way]]
    parts = [["part", *timed]]
    for name in extras[timed[0]]["parts"]:
        parts.append([name, *(f"{1000 * extras[way]['parts'][name]:.2f}" for way in timed)])
    roofline = [["precision", "GFLOP", "MB", "computing", "memory", "reached"]]
    for way in (way for way in ways if "peak" in extras[way]):
        size = PRECISIONS[way.partition(COMPILED)[0]].itemsize
        work, traffic = operations_per_second(folded=True), traffic_per_second(size)
        limits = (extras[way]["peak"] / work, extras[way]["bandwidth"] / traffic, audio_s / medians[way])
        roofline.append([way, f"{work / 1e9:.1f}", f"{traffic / 1e6:.0f}", *(f"{limit:.0f}" for limit in limits)])
    tables = {"table": table, "parts": parts, "roofline": roofline}
    return {"device": str(device), "audio_s": audio_s, "figures": figures, **tables}
