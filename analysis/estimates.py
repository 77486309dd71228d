"""How long a study will take and how much it will write, from short measurements on this machine."""

from __future__ import annotations

import contextlib
import timeit
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from analysis.studies import Study
from common.config import FitConfig, load_config
from common.datasets.audio import AudioError, audio_duration_s
from common.datasets.places import read_task
from common.doctor.checks import BYTES_PER_CLIP
from common.encoder import load_encoder, resolve_device
from common.encoder_name import EncoderKind
from common.features import FeatureSet
from common.heads import HEADS, Job, Recipe, Split, fit_heads, recipe_for
from common.text_table import as_text

if TYPE_CHECKING:
    from analysis.reproduce import Plan

SAMPLE = 24  # clips whose lengths are read
TIMED_S = 3.0  # of audio in one measurement
BUSY = 2.0  # how many times as long it may take beside other work, with a slow disk, or on a laptop that gets warm


class Speed(NamedTuple):
    """This machine's speed: seconds of audio embedded per second; seconds per step of both heads, fitted with others."""

    audio: float
    step_s: float


class Estimate(NamedTuple):
    """An estimate for one task: clips, hours of audio, hours of work, bytes of feature files."""

    clips: int
    audio_hours: float
    extract_hours: float
    fit_hours: float
    n_bytes: int


def measure_speed(device: torch.device, recipe: Recipe) -> Speed:
    """Embed a few seconds of noise and fit a few heads to it."""
    encoder = load_encoder("random:0", device)
    rng = np.random.default_rng(0)
    noise = [(0.1 * rng.standard_normal(round(TIMED_S * encoder.sample_rate))).astype(np.float32)]
    rows = 480
    embeddings = torch.from_numpy(rng.standard_normal((rows, encoder.embedding_size)).astype(np.float32))
    features = FeatureSet(embeddings, torch.arange(rows) % 10, list("0123456789"), list(map(str, range(rows))))
    jobs = [Job(Split("noise", np.arange(400), np.arange(400, rows)), seed) for seed in range(4)]
    # Scaling takes no part of a step, and scikit-learn a second to import.
    few, place = replace(recipe, epochs=1, scaler="none"), torch.device("cpu")
    steps = len(jobs) * int(np.ceil(400 / few.batch_size))
    # The fastest of a few: the first loads kernels, and another process can only make a call slower.
    embed_s = min(timeit.repeat(partial(encoder.embed, noise), number=1, repeat=3))
    fits = [partial(fit_heads, kind, features, jobs, few, place) for kind in HEADS]
    fit_s = sum(min(timeit.repeat(fit, number=1, repeat=3)) for fit in fits)
    return Speed(TIMED_S / embed_s, fit_s / steps)


def time_range(hours: float) -> str:
    """An estimate in words, from a quiet machine to a busy one, such as ``3 to 6 h``."""
    most = BUSY * hours
    if most < 1 / 60:
        return "under a minute"
    unit, name = (1 / 60, "min") if most < 2 else (1.0, "h") if most < 72 else (24.0, "days")
    # Two digits at most, as no estimate is better.
    low, high = (f"{n:.1f}" if n < 2 else f"{float(f'{n:.2g}'):.0f}" for n in (hours / unit, most / unit))
    return f"{low} to {high} {name}"


def estimate(study: Study, root: Path, speed: Speed, recipe: Recipe, n_seeds: int, n_feature_sets: int) -> Estimate:
    """Estimate one task: from its clips if the data set is present, else from its published size. `n_feature_sets` are those that
    the encoder extracts; log-mel statistics count as a tenth of one."""
    tasks = list(study.extract.values())
    if root.is_dir():
        clips = [clip for task in tasks for clip in read_task(task, root).clips]
        picked = np.random.default_rng(0).permutation(len(clips))[:SAMPLE]
        lengths_s = []
        for clip in (clips[index] for index in picked):
            with contextlib.suppress(AudioError):  # the doctor and the extraction will report it
                end_s = audio_duration_s(clip.path) if clip.end_s is None else clip.end_s
                lengths_s.append(end_s - (clip.start_s or 0.0))
        n_clips, hours = len(clips), len(clips) * float(np.mean(lengths_s or [0.0])) / 3600
        folds = len({clip.fold for clip in clips} - {None}) or 1
    else:
        n_clips, hours = sum(task.official_counts.clips or 0 for task in tasks), study.hours
        folds = len(study.task.official_counts.folds) or 1
    # Every split and seed in both protocols; true labels, shuffled ones and each control; fitted once, then refitted.
    fits = (folds + 1) * n_seeds * (2 + n_feature_sets) * 2
    steps = fits * recipe.epochs * np.ceil(0.8 * n_clips / recipe.batch_size)
    return Estimate(
        n_clips,
        hours,
        (n_feature_sets + 0.1) * hours / speed.audio,
        float(steps) * speed.step_s / 3600,
        (n_feature_sets + 1) * n_clips * BYTES_PER_CLIP,
    )


def describe_plan(plan: Plan) -> str:
    """What a plan would do, with estimated times and disk space."""
    changes = {"recipe": plan.recipe} | ({} if plan.epochs is None else {"epochs": plan.epochs})
    recipe = recipe_for("three_layer", load_config(FitConfig, plan.studies[0].task.config_file, None, changes))
    device = resolve_device(plan.device or "auto")
    speed = measure_speed(device, recipe)
    n_sets = plan.has_audiosep + ("random_0" in plan.controls)
    table = [["task", "data", "clips", "hours of audio", "extraction", "fitting", "features"]]
    estimates = {}
    for study in plan.studies:
        root = study.data_root(plan.data)
        estimates[study.name] = planned = estimate(study, root, speed, recipe, plan.seeds, n_sets)
        times = time_range(planned.extract_hours), time_range(planned.fit_hours)
        cells = [f"{planned.clips:,}", f"{planned.audio_hours:.1f}", *times, f"{planned.n_bytes / 1e6:,.0f} MB"]
        table.append([study.name, "here" if root.is_dir() else "to download", *cells])
    # What takes most of the time, and which flags save most of it.
    steps = {("extraction", name): planned.extract_hours for name, planned in estimates.items()}
    steps |= {("fitting", name): planned.fit_hours for name, planned in estimates.items()}
    fitting, total = sum(planned.fit_hours for planned in estimates.values()), sum(steps.values())
    step, task = max(steps, key=lambda key: steps[key])
    saved = []
    if plan.seeds > 1:
        saved.append(f"--seeds 1: {time_range(total - fitting + fitting / plan.seeds)}")
    if len(estimates) > 1:
        rest = sum(hours for (_, name), hours in steps.items() if name != task)
        saved.append(f"without {task}: {time_range(rest)}")
    if fitting < total / 2 and device.type == "cpu":
        saved.append("a GPU, or --shard of the extraction scripts on several machines")
    less = f"\nTo spend less: {'; '.join(saved)}." if saved else ""
    others = ", ".join(str(encoder) for encoder in plan.encoders if encoder.kind is not EncoderKind.AUDIOSEP)
    left_out = f"\nNot in the estimate: {others}; python -m common.encoder.check NAME measures its speed."
    return f"""\
For each task: doctor, features, {" and ".join(plan.controls)} as controls, both heads with {plan.seeds} seeds
under both protocols with probes and shuffled labels; then summary, similarities and report.

{as_text(table)}

In all {time_range(total)} and \
{sum(planned.n_bytes for planned in estimates.values()) / 1e6:,.0f} MB of features, on {device}, which embeds
{speed.audio:.0f} s of audio per second. From: nothing else runs. To: other work beside it.
Most of it: {step} of {task} ({steps[step, task] / (total or 1):.0%}).{less}{left_out if others else ""}"""
