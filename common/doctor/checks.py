"""The checks before a long run: environment, weights, data sets."""

from __future__ import annotations

import contextlib
import platform
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.datasets import DatasetError, DatasetMissingError, OfficialCounts, Task
from common.datasets.audio import AudioError, read_audio
from common.encoder import AudioSepEncoder, CheckpointError, load_encoder
from common.encoder.checkpoint import DOWNLOAD, KNOWN_RELEASES
from common.encoder.device import describe_cpu
from common.encoder_name import EncoderKind
from common.files import PROJECT_ROOT

WANTED_MEMORY = 2e9  # bytes; an extraction on a CPU takes about 1.5 GB
# First six numbers, norm and sum of the embedding of 1.5 s of noise by `random:2024`, recorded when this encoder's outputs
# equalled those of the official implementation.
KNOWN_ANSWER = (-22.6315, -26.7916, 9.29247, 40.1619, -3.82785, 3.5122, 731.953, 723.437)
KNOWN_ANSWER_TOLERANCE = 1e-4  # of the norm
SAMPLE = 24  # clips of a data set to decode
NAMED = 4  # examples listed in a message
GOOD, NOTE, BAD = "✓", "!", "✗"  # results of a check, as printed


class Finding(NamedTuple):
    """A line of the doctor's table: a check, its result, and how to fix it if it failed."""

    mark: str
    what: str
    text: str
    fix: str = ""


def show(title: str, findings: Iterable[Finding]) -> int:
    """Print findings as they come; returns the number of failed checks."""
    print(title)
    failed = 0
    for finding in findings:
        failed += finding.mark == BAD
        print(f"  {finding.mark} {finding.what:<8} {finding.text}", flush=True)
        if finding.fix:
            print(f"    {'':<8} -> {finding.fix}")
    print()
    return failed


def check_environment(device: torch.device) -> Iterator[Finding]:
    """Python and the packages, whose versions should be those of requirements.txt, the device and the memory."""
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", (PROJECT_ROOT / "requirements.txt").read_text(), re.MULTILINE))
    installed = dict.fromkeys(pins, "missing")
    for name in pins:
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name).partition("+")[0]
    differing = [f"{name} {installed[name]} (tested: {pin})" for name, pin in pins.items() if installed[name] != pin]
    text = f"Python {platform.python_version()}, torch {torch.__version__}; {', '.join(differing) or 'as pinned'}"
    fix = "pip install -r requirements.txt" if "missing" in installed.values() else ""
    yield Finding(BAD if fix else NOTE if differing else GOOD, "packages", text, fix)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        text = f"{torch.cuda.get_device_name(device)}: {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    else:
        text = f"CPU, {torch.get_num_threads()} threads, {describe_cpu()} (no CUDA GPU is used)"
    yield Finding(GOOD, "device", text)
    if (available := _available_memory()) is not None:
        text = f"{available / 1e9:.1f} GB free, an extraction takes about {WANTED_MEMORY / 1e9:.1f} GB"
        fix = "close other programs, or use a larger machine" if available < WANTED_MEMORY else ""
        yield Finding(BAD if fix else GOOD, "memory", text, fix)


def _available_memory() -> int | None:
    """Bytes of main memory; None where Linux's list of it is not there."""
    meminfo = Path("/proc/meminfo")
    available = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    return 1024 * int(available[1]) if available else None


def check_encoder(device: torch.device) -> Finding:
    """Compare the embedding by weights that any machine can generate with its known value."""
    waveform = (0.1 * np.random.default_rng(2024).standard_normal(48_000)).astype(np.float32)
    embedding = load_encoder("random:2024", device).embed([waveform])[0].double()
    answer = torch.cat([embedding[:6], torch.stack([embedding.norm(), embedding.sum()])])
    error = float((answer - torch.tensor(KNOWN_ANSWER)).abs().max() / KNOWN_ANSWER[6])
    if error < KNOWN_ANSWER_TOLERANCE:
        return Finding(GOOD, "encoder", f"gives the known answer (relative error {error:.0e})")
    fix = "reinstall the pinned packages (pip install -r requirements.txt); if that does not help, try --device cpu"
    return Finding(BAD, "encoder", f"does not give the known answer (relative error {error:.1e})", fix)


def check_checkpoint(checkpoint: str | Path, device: torch.device) -> Finding:
    """Load the weights, refused unless every tensor is present and finite, and identify their release."""
    try:
        info = load_encoder(checkpoint, device).info
    except CheckpointError as error:
        problem, _, fix = str(error).partition(". ")
        return Finding(BAD, "weights", problem, fix or DOWNLOAD)
    identity = info.checkpoint[:19]
    if info.kind is EncoderKind.UNTRAINED:
        return Finding(NOTE, "weights", f"{checkpoint} is untrained: its scores say nothing about AudioSep")
    if info.release not in KNOWN_RELEASES.values():
        return Finding(NOTE, "weights", f"{checkpoint} fits, but {identity} is not a published release")
    return Finding(GOOD, "weights", f"{info.release} ({identity})")


def check_data(task: Task, root: Path, get: str, is_wanted: bool) -> Iterator[Finding]:
    """Check a task's data set; `get` is the command that downloads it, and `is_wanted` whether it may not be missing."""
    try:
        clips = task.read_clips(root)
    except DatasetError as error:
        is_bad = is_wanted or not isinstance(error, DatasetMissingError)
        yield Finding(BAD if is_bad else NOTE, "labels", str(error))
        return
    official = task.official_counts
    labels = Counter(label for clip in clips for label in clip.labels)
    folds, splits = Counter(clip.fold for clip in clips), Counter(clip.split for clip in clips)
    numbers = [
        ("clips", len(clips), official.clips),
        ("classes", len(labels), official.classes),
        ("groups", len({clip.group for clip in clips} - {None}), official.groups),
        *((f"fold {fold}", folds[fold], number) for fold, number in enumerate(official.folds, start=1)),
        *((split, splits[split], number) for split, number in official.splits.items()),
        *((f"class {label}", labels[label], number) for label, number in official.labels.items()),
    ]
    wrong = [f"{name} {count:,} of {number:,}" for name, count, number in numbers if number not in (None, count)]
    text = f"{len(clips):,} clips of {len(labels)} classes"
    if wrong:
        yield Finding(BAD, "counts", f"{text}, not the official numbers: {_some(wrong)}", f"unpack it again: {get}")
    else:
        yield Finding(GOOD, "counts", text + ", as published" * (official != OfficialCounts()))
    missing = [str(path.relative_to(root)) for path in sorted({clip.path for clip in clips}) if not path.exists()]
    if missing:
        yield Finding(BAD, "files", f"{len(missing):,} are missing: {_some(missing)}", f"unpack it again: {get}")
    else:
        yield Finding(GOOD, "files", "none missing")
    chosen = [clips[index] for index in np.random.default_rng(0).permutation(len(clips))[:SAMPLE]]
    broken = []
    for clip in chosen:
        try:
            read_audio(clip.path, AudioSepEncoder.sample_rate, clip.start_s, clip.end_s)
        except AudioError as error:
            broken.append(str(error))
    if broken:
        text = f"{len(broken)} of {len(chosen)} clips cannot be read: {'; '.join(broken[:NAMED])}"
        yield Finding(BAD, "audio", text, "unpack the data set again; extraction would list and skip such clips")
    else:
        yield Finding(GOOD, "audio", f"{len(chosen)} clips decoded")


def _some(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
