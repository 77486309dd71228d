"""The checks before a long run: environment, weights, data sets."""

from __future__ import annotations

import contextlib
import platform
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from common.datasets import Clip, DatasetError, DatasetMissingError, DatasetNote, OfficialCounts, Task, download_command
from common.datasets.audio import AudioError, read_audio
from common.encoder import AudioSepEncoder, CheckpointError, load_encoder
from common.encoder.checkpoint import DOWNLOAD, KNOWN_RELEASES
from common.encoder.device import describe_cpu, has_bf16
from common.encoder_name import EncoderKind
from common.files import PROJECT_ROOT

WANTED_MEMORY = 2e9  # bytes; an extraction on a CPU takes about 1.5 GB
# First six numbers, norm and sum of the embedding of 1.5 s of noise by `random:2024`, recorded when this encoder's outputs
# equalled those of the official implementation.
KNOWN_ANSWER = (-22.6315, -26.7916, 9.29247, 40.1619, -3.82785, 3.5122, 731.953, 723.437)
KNOWN_ANSWER_TOLERANCE = 1e-4  # of the norm
SAMPLE = 24  # clips of a data set to decode
TIMED_S = 15.0  # seconds of audio to embed, to measure the speed
BYTES_PER_CLIP = 384 * 4 + 150  # in a feature file: the embedding, then its label, name, group and stamp
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
    if "missing" in installed.values():
        yield Finding(BAD, "packages", text, "pip install -r requirements.txt")
    else:
        yield Finding(NOTE if differing else GOOD, "packages", text)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        text = f"{torch.cuda.get_device_name(device)}: {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    else:
        bf16 = "bf16 too" if has_bf16() else "without bf16 instructions: keep --precision fp32"
        text = f"CPU, {torch.get_num_threads()} threads, {describe_cpu()}, {bf16} (no CUDA GPU is used)"
    yield Finding(GOOD, "device", text)
    available = _available_memory()
    text = f"{(available or 0) / 1e9:.1f} GB free, an extraction takes about {WANTED_MEMORY / 1e9:.1f} GB"
    if available is None:
        yield Finding(NOTE, "memory", "free memory is unknown on this system")
    elif available < WANTED_MEMORY:
        yield Finding(BAD, "memory", text, "close other programs, or use a larger machine")
    else:
        yield Finding(GOOD, "memory", text)


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


def check_checkpoint(checkpoint: str | Path, device: torch.device) -> tuple[Finding, AudioSepEncoder | None]:
    """Load the weights, refused unless every tensor is present and finite, and identify their release."""
    try:
        encoder = load_encoder(checkpoint, device)
    except CheckpointError as error:
        problem, _, fix = str(error).partition(". ")
        return Finding(BAD, "weights", problem, fix or DOWNLOAD), None
    info, identity = encoder.info, encoder.info.checkpoint[:19]
    if info.kind is EncoderKind.UNTRAINED:
        return Finding(NOTE, "weights", f"{checkpoint} is untrained: its scores say nothing about AudioSep"), encoder
    if info.release not in KNOWN_RELEASES.values():
        return Finding(NOTE, "weights", f"{checkpoint} fits, but {identity} is not a published release"), encoder
    return Finding(GOOD, "weights", f"{info.release} ({identity})"), encoder


def check_division(
    tasks: Sequence[Task], roots: Sequence[Path], download: str, encoder: AudioSepEncoder, is_wanted: bool
) -> Iterator[Finding]:
    """Check a data set: of `tasks`, which share a division, as NSynth's three sets do; `download` is its name for the
    download command, and `is_wanted` whether it may not be missing."""
    all_clips: list[Clip] = []
    for task, root in zip(tasks, roots, strict=True):
        prefix = "" if len(tasks) == 1 else f"{task.name} "
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always", DatasetNote)
            try:
                clips = task.read_clips(root)
            except DatasetError as error:
                is_bad = is_wanted or not isinstance(error, DatasetMissingError)
                yield Finding(BAD if is_bad else NOTE, f"{prefix}labels", str(error))
                continue
        for note in notes:
            yield Finding(NOTE, f"{prefix}labels", str(note.message))
        get = download_command(download, root)
        for finding in (*_labels(task, clips, get), _files(clips, root, get), *_sample(clips, encoder)):
            yield finding._replace(what=prefix + finding.what)
        all_clips += clips
    if all_clips:
        yield _division(tasks, all_clips)


def _labels(task: Task, clips: Sequence[Clip], get: str) -> Iterator[Finding]:
    """Compare numbers of clips with the official ones; refuse a single class, and classes without clips."""
    official, labels = task.official_counts, Counter(label for clip in clips for label in clip.labels)
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
    text = f"{len(clips):,} clips"
    if wrong:
        yield Finding(BAD, "counts", f"{text}, not the official numbers: {_some(wrong)}", f"unpack it again: {get}")
    else:
        yield Finding(GOOD, "counts", text + ", as published" * (official != OfficialCounts()))
    empty = [name for name in task.class_names or () if not labels[name] and official.labels.get(name) != 0]
    (largest, most), (smallest, least) = labels.most_common()[0], labels.most_common()[-1]
    if len(labels) < 2:
        yield Finding(BAD, "classes", f"every clip is of class {largest}", "check the label files")
    elif empty:
        yield Finding(BAD, "classes", f"no clips of class {_some(empty)}", "unpack the whole data set")
    else:
        spread = f"{least:,} ({smallest}) to {most:,} ({largest})" if least < most else f"{least:,}"
        yield Finding(GOOD, "classes", f"{len(labels)} classes of {spread} clips")


def _files(clips: Sequence[Clip], root: Path, get: str) -> Finding:
    """Compare the files that the labels name with the files in their folders, except hidden files."""
    named = {clip.path for clip in clips}
    suffixes, folders = {path.suffix for path in named}, {path.parent for path in named}
    present = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    missing = [str(path.relative_to(root)) for path in sorted(named - present)]
    extra = sorted(path for path in present - named if path.suffix in suffixes and path.name[0] != ".")
    if missing:
        return Finding(BAD, "files", f"{len(missing):,} are missing: {_some(missing)}", f"unpack it again: {get}")
    if extra:
        names = [str(path.relative_to(root)) for path in extra]
        return Finding(BAD, "files", f"{len(extra):,} have no label: {_some(names)}", "take them out of the folder")
    return Finding(GOOD, "files", f"{len(named):,} files, none missing, none without a label")


def _some(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _sample(clips: Sequence[Clip], encoder: AudioSepEncoder) -> Iterator[Finding]:
    """Decode a few clips, and embed some to estimate how long all will take."""
    order = np.random.default_rng(0).permutation(len(clips))[:SAMPLE]
    waveforms, broken = [], []
    for clip in (clips[index] for index in order):
        try:
            waveforms.append(read_audio(clip.path, encoder.sample_rate, clip.start_s, clip.end_s))
        except AudioError as error:
            broken.append(str(error))
    lengths_s = [len(waveform) / encoder.sample_rate for waveform in waveforms]
    if broken:
        text = f"{len(broken)} of {len(order)} clips cannot be read: {'; '.join(broken[:NAMED])}"
        yield Finding(BAD, "audio", text, "unpack the data set again; extraction would list and skip such clips")
    else:
        yield Finding(GOOD, "audio", f"{len(order)} clips of {min(lengths_s):.1f} to {max(lengths_s):.1f} s decoded")
    if not waveforms:
        return
    timed = max(1, int(np.searchsorted(np.cumsum(lengths_s), TIMED_S)))
    encoder.embed(waveforms[:1])  # the first call allocates memory and loads kernels
    started = time.perf_counter()
    encoder.embed(waveforms[:timed])
    speed = sum(lengths_s[:timed]) / (time.perf_counter() - started)
    audio_s = len(clips) * float(np.mean(lengths_s))
    takes = f"extraction takes about {_duration(audio_s / speed)} here ({speed:.0f} times real time)"
    file = f"its file {len(clips) * BYTES_PER_CLIP / 1e6:,.1f} MB"
    yield Finding(GOOD, "time", f"about {_duration(audio_s)} of audio: {takes}, {file}")


def _division(tasks: Sequence[Task], clips: Sequence[Clip]) -> Finding:
    """Check that no recording, patient or speaker is on two sides, except where the official division puts it there."""
    rows = [(clip.group, clip.split if clip.fold is None else f"fold {clip.fold}") for clip in clips]
    table = pd.DataFrame(rows, columns=["group", "side"]).dropna()
    sides = table["side"].unique()
    if len(sides) < 2:
        text = f"only {sides[0]} is present" if len(sides) else "no official folds or splits to check"
        return Finding(NOTE, "splits", text)
    # Validation clips may be related to either side, which biases only the choice of epoch: FSD50K's are to training clips.
    counts = table[table["side"] != "valid"].groupby("group")["side"].nunique()
    shared = set(counts[counts > 1].index)
    unofficial = sorted(shared.difference(*(task.official_overlap for task in tasks)))
    if unofficial:
        text = f"{len(unofficial)} groups are on two sides of the division: {_some(unofficial)}"
        return Finding(BAD, "splits", text, "the data have been altered: unpack the official archive again")
    published = f" except {', '.join(sorted(shared))}, as published" if shared else ""
    return Finding(GOOD, "splits", f"{table['group'].nunique():,} groups, none on two sides{published}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
