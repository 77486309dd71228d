"""The checks before a long run: environment, weights, data sets. Every problem is reported with its fix."""

from __future__ import annotations

import itertools
import os
import platform
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from common.datasets import Clip, DatasetError, DatasetMissingError, DatasetNote, Task, count, download_command
from common.datasets.audio import AudioError, read_audio
from common.doctor.findings import BAD, GOOD, NOTE, Finding
from common.encoder import AudioSepEncoder, CheckpointError, load_encoder
from common.encoder.checkpoint import DOWNLOAD, KNOWN_RELEASES
from common.encoder.device import describe_cpu, has_bf16
from common.encoder_name import EncoderKind
from common.files import PROJECT_ROOT

WANTED_MEMORY = 2e9  # bytes; an extraction on a CPU takes about 1.5 GB
# The embedding of 1.5 s of noise by `random:2024`: its first six numbers, its norm and its sum. Recorded when this
# encoder's outputs equalled those of the official implementation.
KNOWN_ANSWER = (-22.6315, -26.7916, 9.29247, 40.1619, -3.82785, 3.5122, 731.953, 723.437)
KNOWN_ANSWER_TOLERANCE = 1e-4  # of the norm
SAMPLE = 24  # clips of a data set that are decoded
TIMED_S = 15.0  # seconds of audio that are embedded to measure the speed
BYTES_PER_CLIP = 384 * 4 + 150  # in a feature file: the embedding, then its label, name, group and stamp
NAMED = 4  # examples listed in a message


def check_environment(device: torch.device) -> Iterator[Finding]:
    """Python, the pinned packages, the device and the memory."""
    pins = re.findall(r"^([\w-]+)==([\w.]+)", (PROJECT_ROOT / "requirements.txt").read_text(), re.MULTILINE)
    installed, missing = {}, []
    for name, _ in pins:
        try:
            installed[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            missing.append(name)
    others = [f"{name} {installed[name]} (tested: {pin})" for name, pin in pins if installed.get(name, pin) != pin]
    python = f"Python {platform.python_version()}, torch {torch.__version__}"
    if missing:
        yield Finding(BAD, "packages", f"{python}; missing: {', '.join(missing)}", "pip install -r requirements.txt")
    elif others:
        yield Finding(NOTE, "packages", f"{python}; other versions than those tested: {', '.join(others)}")
    else:
        yield Finding(GOOD, "packages", f"{python}, {len(pins)} packages as pinned")
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        yield Finding(GOOD, "device", f"{name}: {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    else:
        bf16 = "bf16 too" if has_bf16() else "without bf16 instructions: keep --precision fp32"
        words = f"CPU, {torch.get_num_threads()} threads, {describe_cpu()}, {bf16} (no CUDA GPU is used)"
        yield Finding(GOOD, "device", words)
    available = _available_memory()
    if available is None:
        yield Finding(NOTE, "memory", "how much is free cannot be seen on this system")
    elif available < WANTED_MEMORY:
        found = f"{available / 1e9:.1f} GB free, an extraction takes about {WANTED_MEMORY / 1e9:.1f} GB"
        yield Finding(BAD, "memory", found, "close other programs, or use a larger machine")
    else:
        yield Finding(GOOD, "memory", f"{available / 1e9:.1f} GB free")


def _available_memory() -> int | None:
    """Available main memory in bytes; None if the system does not tell."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        if found:
            return 1024 * int(found[1])
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def check_encoder(device: torch.device) -> Finding:
    """Compare the embedding from weights that any machine can generate with its known value."""
    waveform = (0.1 * np.random.default_rng(2024).standard_normal(48_000)).astype(np.float32)
    embedding = load_encoder("random:2024", device).embed([waveform])[0].double()
    answer = torch.cat([embedding[:6], torch.stack([embedding.norm(), embedding.sum()])])
    error = float((answer - torch.tensor(KNOWN_ANSWER)).abs().max() / KNOWN_ANSWER[6])
    if error < KNOWN_ANSWER_TOLERANCE:
        return Finding(GOOD, "encoder", f"gives the known answer (relative error {error:.0e})")
    return Finding(
        BAD,
        "encoder",
        f"does not give the known answer (relative error {error:.1e})",
        "reinstall the pinned packages (pip install -r requirements.txt); if that does not help, try --device cpu",
    )


def check_checkpoint(checkpoint: str | Path, device: torch.device) -> tuple[Finding, AudioSepEncoder | None]:
    """Check that every tensor of the weights is present, of the right shape and finite; identify their release."""
    try:
        encoder = load_encoder(checkpoint, device)
    except CheckpointError as error:
        what, _, fix = str(error).partition(". ")
        return Finding(BAD, "weights", what, fix or DOWNLOAD), None
    release = encoder.info.release
    if encoder.info.kind is EncoderKind.UNTRAINED:
        return Finding(NOTE, "weights", f"{checkpoint} is untrained: its scores say nothing about AudioSep"), encoder
    identity = encoder.info.checkpoint[:19]
    if release not in KNOWN_RELEASES.values():
        found = f"{checkpoint} fits, but its checksum ({identity}) is of no published release"
        return Finding(NOTE, "weights", found), encoder
    return Finding(GOOD, "weights", f"{release} ({identity})"), encoder


def check_division(
    tasks: Sequence[Task], roots: Sequence[Path], download: str, encoder: AudioSepEncoder, is_wanted: bool
) -> Iterator[Finding]:
    """Check one division of a data set: what is present, and whether it is complete and intact.

    Args:
        tasks: the tasks that share the division's splits, such as the three sets of NSynth.
        roots: the data root of each.
        download: the data set's name for `python -m common.download`.
        encoder: used to measure the speed.
        is_wanted: whether a missing data set is a failed check, or only a note.
    """

    def of(task: Task, what: str) -> str:
        return what if len(tasks) == 1 else f"{task.name} {what}"

    every: list[Clip] = []
    for task, root in zip(tasks, roots, strict=True):
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always", DatasetNote)
            try:
                clips = task.read_clips(root)
            except DatasetError as error:
                is_bad = is_wanted or not isinstance(error, DatasetMissingError)
                yield Finding(BAD if is_bad else NOTE, of(task, "labels"), str(error))
                continue
        for note in notes:
            yield Finding(NOTE, of(task, "labels"), str(note.message))
        get = download_command(download, root)
        counts = count(clips)
        found = [_counts(task, counts, get), _classes(task, counts), _files(clips, root, get)]
        for finding in itertools.chain(found, _sample(clips, encoder)):
            yield replace(finding, what=of(task, finding.what))
        every += clips
    if every:
        yield _division(tasks, every)


def _counts(task: Task, counts: Counter[str], get: str) -> Finding:
    """Compare the counts with the official ones."""
    wrong = [
        f"{name} {counts[name]:,} of {official:,}"
        for name, official in task.official_counts.items()
        if counts[name] != official
    ]
    found = f"{counts['clips']:,} clips"
    if wrong:
        return Finding(
            BAD,
            "counts",
            f"{found}, not the official numbers: {_listed(wrong)}",
            f"unpack it again: {get}",
        )
    return Finding(GOOD, "counts", f"{found}, as published" if task.official_counts else found)


def _classes(task: Task, counts: Counter[str]) -> Finding:
    """A single class, or a class without clips, cannot be learned."""
    present = {name.removeprefix("class "): n for name, n in counts.items() if name.startswith("class ")}
    empty = [
        name
        for name in task.class_names or ()
        if not present.get(name) and task.official_counts.get(f"class {name}") != 0
    ]
    if len(present) < 2:
        return Finding(BAD, "classes", f"every clip is of class {next(iter(present))}", "check the labels' files")
    if empty:
        return Finding(BAD, "classes", f"no clips of class {_listed(empty)}", "unpack the whole data set")
    few, many = min(present, key=present.__getitem__), max(present, key=present.__getitem__)
    spread = (
        f"{present[few]:,} ({few}) to {present[many]:,} ({many})"
        if present[few] < present[many]
        else f"{present[few]:,}"
    )
    return Finding(GOOD, "classes", f"{len(present)} classes of {spread} clips")


def _files(clips: Sequence[Clip], root: Path, get: str) -> Finding:
    """Compare the files that the labels name with those in their folders."""
    named = {str(clip.path) for clip in clips}
    suffixes = {Path(path).suffix for path in named}
    there = set()
    for folder in {os.path.dirname(path) for path in named}:  # noqa: PTH120 - fast enough for 300,000 names
        if os.path.isdir(folder):  # noqa: PTH112
            there |= {entry.path for entry in os.scandir(folder) if Path(entry.name).suffix in suffixes}
    missing, extra = sorted(named - there), sorted(path for path in there - named if "/." not in path)
    if missing:
        return Finding(
            BAD, "files", f"{len(missing):,} files are missing: {_some(missing, root)}", f"unpack it again: {get}"
        )
    if extra:
        found = f"{len(extra):,} files have no label: {_some(extra, root)}"
        return Finding(BAD, "files", found, "take them out of the folder")
    return Finding(GOOD, "files", f"{len(named):,} files, none missing, none without a label")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _some(paths: list[str], root: Path) -> str:
    names = [os.path.relpath(path, root) for path in paths[:NAMED]]
    return ", ".join(names) + (", ..." if len(paths) > NAMED else "")


def _sample(clips: Sequence[Clip], encoder: AudioSepEncoder) -> Iterator[Finding]:
    """Decode a few clips, and embed some to estimate how long all will take."""
    order = np.random.default_rng(0).permutation(len(clips))[:SAMPLE]
    waveforms, broken = [], []
    for clip in (clips[index] for index in order):
        try:
            waveforms.append(read_audio(clip.path, encoder.sample_rate, clip.start_s, clip.end_s))
        except AudioError as error:
            broken.append(str(error))
    if broken:
        found = f"{len(broken)} of {len(order)} clips cannot be read: {'; '.join(broken[:NAMED])}"
        yield Finding(BAD, "audio", found, "unpack the data set again; extraction would list and skip such clips")
    if not waveforms:
        return
    lengths_s = [len(waveform) / encoder.sample_rate for waveform in waveforms]
    timed = max(1, int(np.searchsorted(np.cumsum(lengths_s), TIMED_S)))
    encoder.embed(waveforms[:1])  # the first call allocates memory and loads kernels
    started = time.perf_counter()
    encoder.embed(waveforms[:timed])
    speed = sum(lengths_s[:timed]) / (time.perf_counter() - started)
    audio_s = len(clips) * float(np.mean(lengths_s))
    if not broken:
        yield Finding(GOOD, "audio", f"{len(order)} clips of {min(lengths_s):.1f} to {max(lengths_s):.1f} s decoded")
    yield Finding(
        GOOD,
        "time",
        f"about {_duration(audio_s)} of audio: extraction takes about {_duration(audio_s / speed)} here "
        f"({speed:.0f} times real time), its file {max(1, round(len(clips) * BYTES_PER_CLIP / 1e6)):,} MB",
    )


def _division(tasks: Sequence[Task], clips: Sequence[Clip]) -> Finding:
    """Check that no recording, patient or speaker is on two sides, except those of the official division."""
    sides: dict[str, set[str]] = {}
    for clip in clips:
        side = f"fold {clip.fold}" if clip.fold is not None else clip.split
        if side is not None and clip.group is not None:
            sides.setdefault(side, set()).add(clip.group)
    if len(sides) < 2:
        return Finding(
            NOTE,
            "splits",
            "no official division into folds or splits to check" if not sides else f"only {next(iter(sides))} is here",
        )
    seen: dict[str, str] = {}
    shared: set[str] = set()
    # Validation clips related to test clips bias only the choice of epoch; related training clips bias the score.
    for side, groups in sides.items():
        for group in groups:
            if group in seen and {seen[group], side} != {"valid", "test"}:
                shared.add(group)
            seen.setdefault(group, side)
    known = set().union(*(task.official_overlap for task in tasks))
    if shared - known:
        some = ", ".join(sorted(shared - known)[:NAMED])
        found = f"{len(shared - known)} groups are on two sides of the division: {some}"
        return Finding(
            BAD, "splits", found, "the data have been altered: delete them and unpack the official archive again"
        )
    also = f" but for {', '.join(sorted(shared))}, as published" if shared else ""
    return Finding(GOOD, "splits", f"{len(seen):,} groups, none on two sides{also}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
