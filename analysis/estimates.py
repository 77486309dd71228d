"""How long a study will take and how much it will write, from a short measurement on this machine."""

from __future__ import annotations

import contextlib
import timeit
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from analysis.studies import Study
from common.config import FitConfig, load_config
from common.datasets.audio import AudioError, audio_duration_s
from common.datasets.places import read_task
from common.encoder import load_encoder, resolve_device
from common.encoder.measure import audio_speed
from common.encoder_name import EncoderKind
from common.features import FeatureSet
from common.heads import HEADS, Job, Recipe, Split, fit_heads, recipe_for
from common.text_table import as_text

if TYPE_CHECKING:
    from analysis.reproduce import Plan

SAMPLE = 24  # clips whose lengths are read
BYTES_PER_CLIP = 384 * 4 + 150  # in a feature file: the embedding, then its label, name, group and stamp


class Speed(NamedTuple):
    """This machine's speed: seconds of audio embedded per second; seconds per clip and epoch of both heads, fitted with others."""

    audio: float
    fit_s: float


class Estimate(NamedTuple):
    """An estimate for one task: clips, hours of audio, seconds of work, bytes of feature files."""

    clips: int
    audio_hours: float
    work_s: float
    n_bytes: int


def measure_speed(device: torch.device, recipe: Recipe) -> Speed:
    """Embed a few seconds of noise and fit a few heads to it."""
    encoder = load_encoder("random:0", device)
    rows, noise = np.arange(480), torch.randn(480, encoder.embedding_size)
    features = FeatureSet(noise, torch.arange(480) % 10, list("0123456789"), list(map(str, rows)))
    jobs = [Job(Split("noise", rows[:400], rows[400:]), seed) for seed in range(4)]
    # Scaling takes no part of a step, and scikit-learn a second to import.
    few, place = replace(recipe, epochs=1, scaler="none"), torch.device("cpu")
    fits = [partial(fit_heads, kind, features, jobs, few, place) for kind in HEADS]
    fit_s = sum(min(timeit.repeat(fit, number=1, repeat=3)) for fit in fits)
    return Speed(audio_speed(encoder, encoder.default_output), fit_s / len(jobs) / 400)


def estimate(study: Study, root: Path, speed: Speed, recipe: Recipe, n_seeds: int, n_feature_sets: int) -> Estimate:
    """Estimate one task: from its clips if the data set is present, else from its published size. `n_feature_sets` are those that
    the encoder extracts; log-mel statistics count as a tenth of one."""
    tasks = list(study.extract.values())
    n_clips, audio_s = sum(task.official_counts.clips or 0 for task in tasks), 3600 * study.hours
    if root.is_dir():
        clips = [clip for task in tasks for clip in read_task(task, root).clips]
        lengths_s = []
        for index in np.random.default_rng(0).permutation(len(clips))[:SAMPLE]:
            with contextlib.suppress(AudioError):  # the doctor and the extraction will report it
                clip = clips[index]
                end_s = audio_duration_s(clip.path) if clip.end_s is None else clip.end_s
                lengths_s.append(end_s - (clip.start_s or 0.0))
        n_clips, audio_s = len(clips), len(clips) * float(np.mean(lengths_s or [0.0]))
    # Every fold and seed in both protocols; true labels, shuffled ones and each control; fitted once, then refitted.
    fits = (len(study.task.official_counts.folds or (1,)) + 1) * n_seeds * (2 + n_feature_sets) * 2
    work_s = (n_feature_sets + 0.1) * audio_s / speed.audio + fits * recipe.epochs * 0.8 * n_clips * speed.fit_s
    return Estimate(n_clips, audio_s / 3600, work_s, (n_feature_sets + 1) * n_clips * BYTES_PER_CLIP)


def describe_plan(plan: Plan) -> str:
    """What a plan would do, with estimated times and disk space."""
    changes = {"recipe": plan.recipe} | ({} if plan.epochs is None else {"epochs": plan.epochs})
    recipe = recipe_for("three_layer", load_config(FitConfig, plan.studies[0].task.config_file, None, changes))
    device = resolve_device(plan.device or "auto")
    speed = measure_speed(device, recipe)
    n_sets = plan.has_audiosep + ("random_0" in plan.controls)
    table = [["task", "data", "clips", "hours of audio", "time, h:min", "features"]]
    estimates = []
    for study in plan.studies:
        root = study.data_root(plan.data)
        planned = estimate(study, root, speed, recipe, plan.seeds, n_sets)
        estimates.append(planned)
        cells = [f"{planned.clips:,}", f"{planned.audio_hours:.1f}", _time(planned.work_s)]
        place = "here" if root.is_dir() else "to download"
        table.append([study.name, place, *cells, f"{planned.n_bytes / 1e6:,.0f} MB"])
    total_s = sum(planned.work_s for planned in estimates)
    n_bytes = sum(planned.n_bytes for planned in estimates)
    others = ", ".join(str(encoder) for encoder in plan.encoders if encoder.kind is not EncoderKind.AUDIOSEP)
    left_out = f"\nNot in the estimate: {others}; python -m common.encoder.check NAME measures its speed."
    return f"""\
For each task: doctor, features, {" and ".join(plan.controls)} as controls, both heads with {plan.seeds} seeds
under both protocols with probes and shuffled labels; then summary, similarities and report.

{as_text(table, left=2)}

In all {_time(total_s)} and {n_bytes / 1e6:,.0f} MB of features, on {device}, which embeds {speed.audio:.0f} s of audio
per second; twice as long beside other work.{left_out if others else ""}"""


def _time(seconds: float) -> str:
    """Days, hours and minutes."""
    return str(timedelta(minutes=round(seconds / 60))).removesuffix(":00")
