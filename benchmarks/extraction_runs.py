"""The measurements of `extraction.py`: ways of extraction in separate processes, and a table of what they took."""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from measuring import medians_in_turns, timed
from torch.utils.data import DataLoader

from common.arrays import Array
from common.datasets import Clip
from common.datasets.audio import read_audio
from common.encoder import AudioSepEncoder, load_encoder
from common.encoder.checkpoint import load_weights
from common.encoder.device import PRECISIONS, describe_cpu, resolve_precision
from common.encoder.network import SAMPLE_RATE, weight_shapes
from common.extraction import ClipList, ThisProcess, Threads, extract
from common.features import FeatureSet
from common.text_table import as_text
from tests.support.plain_encoder import plain_outputs

CHECKPOINT = "random:2024"
KINDS = (".wav", ".flac", ".ogg", ".mp3")
SAMPLE = {"cpu": 8, "mps": 400, "cuda": 400}  # files with which a part of the work is measured


class Way(NamedTuple):
    """A way of extraction: the original project's if no precision is named."""

    name: str
    precision: str | None = None


class Figures(NamedTuple):
    """What a way of extraction took."""

    embeddings: Array  # (clips, 384)
    memory: int  # peak, in bytes: of the GPU's memory, or of the machine's
    alone: float | None  # seconds of audio per second, of the encoder alone; None for the original


def original_extraction(paths: list[Path], device: torch.device) -> Callable[[], Array]:
    """The original project's: float32 layers in PyTorch's default layout, nothing folded, a clip at a time, decoded by a
    DataLoader without workers."""
    tensors = {name: value.to(device) for name, value in load_weights(CHECKPOINT, weight_shapes()).tensors.items()}

    def embed(waveform: torch.Tensor) -> torch.Tensor:
        outputs = plain_outputs(waveform.to(device), tensors)
        return next(output for layer, output in outputs if layer == "encoder_block6").mean(dim=(2, 3)).cpu()

    def extract_all() -> Array:
        loader = DataLoader(paths, collate_fn=lambda batch: torch.from_numpy(read_audio(batch[0], SAMPLE_RATE)))
        return torch.cat([embed(waveform) for waveform in loader]).numpy()

    return extract_all


def project_extraction(encoder: AudioSepEncoder, paths: list[Path]) -> Callable[[], Array]:
    """This project's, end to end, into a new file every time."""
    process = ThisProcess(encoder, [encoder.default_output], Threads.shared())
    clips = ClipList([Clip(path, ("sound",)) for path in paths], paths[0].parent, "benchmark")

    def extract_all() -> Array:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "features.pt")
            extract(process, clips, file)
            return FeatureSet.load(file).features.numpy()

    return extract_all


def worker(way: Way, paths: list[Path], device: torch.device, pipe: Connection) -> None:
    """Extract on every request; at the end send the `Figures`."""
    torch.backends.cudnn.allow_tf32 = way.precision == "tf32"  # torch's default would round the reference too
    encoder = load_encoder(CHECKPOINT, device, way.precision) if way.precision else None
    run = project_extraction(encoder, paths) if encoder else original_extraction(paths, device)
    while pipe.recv():
        embeddings = run()
        pipe.send(None)
    memory, alone = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024), None
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    if encoder:  # only now: all other processes are idle
        waveforms = [read_audio(path, SAMPLE_RATE) for path in paths[: SAMPLE[device.type]]]
        seconds = min(timed(partial(encoder.embed, waveforms), device) for _ in range(3))
        alone = sum(map(len, waveforms)) / SAMPLE_RATE / seconds
    pipe.send(Figures(embeddings, memory, alone))


def compare(arguments: argparse.Namespace) -> list[str]:
    """Measure by the arguments of `extraction.py`, and print the table; returns the ways whose output is wrong."""
    device = load_encoder(CHECKPOINT, arguments.device).device
    names = arguments.precisions or (["fp32", "bf16"] if device.type == "cpu" else list(PRECISIONS))
    precisions = [resolve_precision(name, device) for name in names]
    ways = [Way("original"), *(Way(name, name) for name in precisions)]
    with tempfile.TemporaryDirectory() as folder:
        if arguments.audio is None:
            generate(arguments, Path(folder))
        files = sorted(path for path in (arguments.audio or Path(folder)).rglob("*") if path.suffix.lower() in KINDS)
        if not files:
            raise SystemExit(f"{arguments.audio} holds no {', '.join(KINDS)}; give another folder with --audio")
        paths = files[: arguments.clips]
        audio_s = sum(soundfile.info(path).duration for path in paths)
        seconds, figures = take_turns(ways, paths, device, arguments.rounds)
        sample = paths[: SAMPLE[device.type]]
        sample_s = sum(soundfile.info(path).duration for path in sample)
        decoding = timed(lambda: [soundfile.read(path, dtype="float32") for path in sample], device) / sample_s
        both = timed(lambda: [read_audio(path, SAMPLE_RATE) for path in sample], device) / sample_s
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else describe_cpu()
    print(f"\n{len(paths)} files, {audio_s:.0f} s of audio, {hardware}, {torch.get_num_threads()} threads,", end=" ")
    print(f"torch {torch.__version__}, {arguments.rounds} rounds; medians\n")
    reference = figures[0].embeddings
    errors = [float(np.linalg.norm(made.embeddings - reference) / np.linalg.norm(reference)) for made in figures]
    print_table(ways, figures, [audio_s / of_way for of_way in seconds], errors)
    resampling = max(0.0, both - decoding)
    print(f"\nms per second of audio: decoding {1000 * decoding:.2f}, resampling {1000 * resampling:.2f}")
    exact = (None, "fp32")
    allowed = [1e-5 if way.precision in exact else 1e-2 for way in ways]  # relative L2
    return [way.name for way, error, most in zip(ways, errors, allowed, strict=True) if error > most]


def generate(arguments: argparse.Namespace, folder: Path) -> None:
    """Write files of noise with a changing spectrum, in 16 bits."""
    rng = np.random.default_rng(0)
    for number in range(arguments.clips):
        white = rng.standard_normal(round(arguments.rate * arguments.seconds))
        walk = np.cumsum(white)
        samples = white + 0.2 * rng.random() * (walk - walk.mean()) / walk.std()
        path = folder / f"{number:06d}.{'flac' if arguments.flac else 'wav'}"
        soundfile.write(path, 0.9 * samples / np.abs(samples).max(), arguments.rate, subtype="PCM_16")


def take_turns(
    ways: list[Way], paths: list[Path], device: torch.device, rounds: int
) -> tuple[list[float], list[Figures]]:
    """Run every way in a process of its own, in turns; returns their median seconds and their figures."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for way in ways:
        pipe, remote = context.Pipe()
        context.Process(target=worker, args=(way, paths, device, remote), daemon=True).start()
        remote.close()  # so that reading ends when a worker has failed
        pipes.append(pipe)
    seconds = medians_in_turns([partial(ask, pipe, True) for pipe in pipes], rounds, device)
    return seconds, [ask(pipe, False) for pipe in pipes]


def ask(pipe: Connection, extracts: bool) -> Any:
    """Let the worker at the other end extract, or end with its `Figures`, and wait for it."""
    pipe.send(extracts)
    return pipe.recv()


def print_table(ways: list[Way], figures: list[Figures], speeds: list[float], errors: list[float]) -> None:
    """Print speeds (seconds of audio per second) beside the original's."""
    table = [["way", "s of audio/s", "against original", "encoder alone", "error", "memory, GB"]]
    for way, made, speed, error in zip(ways, figures, speeds, errors, strict=True):
        alone = f"{made.alone:.1f}" if made.alone else "-"
        ratio = f"{speed / speeds[0]:.2f}"
        table.append([way.name, f"{speed:.1f}", ratio, alone, f"{error:.0e}", f"{made.memory / 1e9:.1f}"])
    print(as_text(table))
