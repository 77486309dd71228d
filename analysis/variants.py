"""The variants of an ablation: what is extracted of every clip, how each variant is fitted and scored, and how it is shown."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from analysis.maps import balanced_rows
from analysis.plots import Panel, plot_heads
from common.arrays import Array
from common.config import FitConfig, ScalerName
from common.datasets import Clip, Prepared, Task
from common.datasets.audio import limit_bandwidth
from common.encoder import LAYERS, POOLS, AudioSepEncoder, Encoder, EncoderInfo, Output, Waveform, load_encoder
from common.encoder.device import fitting_device
from common.evaluation.outcomes import HeadFitter, Outcome
from common.evaluation.protocol import plan_fits, seeds_of
from common.evaluation.record import COMPARED, FIGURES, ComparisonRecord, Record, corrected
from common.evaluation.scores import compare_heads, score_head
from common.extraction import ClipList, ExtractOptions, ThisProcess, extract
from common.features import FeatureFileError, FeatureSet
from common.files import write_csv, write_json
from common.heads import HEADS, SCALERS, HeadKind, Job, head_title, recipe_for
from common.progress import progress_bar
from common.text_table import as_text, percent

BASE = AudioSepEncoder.default_output
# Every layer with the baseline's pool, every pool of the baseline's layer.
PLAIN = tuple(output for output in AudioSepEncoder.outputs if output.layer == BASE.layer or output.pool == BASE.pool)
Degradation = Callable[[Array], Array]


def keep_first(share: float, waveform: Array) -> Array:
    return waveform[: max(1, round(share * len(waveform)))]


def keep_below(limit_hz: int, waveform: Array) -> Array:
    return limit_bandwidth(waveform, AudioSepEncoder.sample_rate, 2 * limit_hz)


def add_noise(snr_db: float, waveform: Array) -> Array:
    """White noise, `snr_db` decibels below the clip's mean power; the same for the same clip in any batch."""
    seed = int.from_bytes(hashlib.sha256(waveform.tobytes()).digest()[:8], "little")
    power = float(np.square(waveform, dtype=np.float64).mean()) / 10 ** (snr_db / 10)
    noise = np.random.default_rng(seed).standard_normal(len(waveform))
    mixture: Array = (waveform + np.sqrt(power) * noise).astype(np.float32)
    return mixture


# factor -> variant -> what happens to the waveform before it is embedded. In the file, the factor takes the place of
# the layer, and the variant that of the pool.
DEGRADATIONS: dict[str, dict[str, Degradation]] = {
    "duration": {f"first {percent} %": partial(keep_first, percent / 100) for percent in (50, 25)},
    "bandwidth": {f"up to {limit} kHz": partial(keep_below, 1000 * limit) for limit in (8, 4)},
    "noise": {f"SNR {snr_db} dB": partial(add_noise, snr_db) for snr_db in (20, 10, 0)},
}
CONDITION = "condition"
FACTORS = (CONDITION, *DEGRADATIONS)  # those whose variants need further passes


class AblationEncoder(Encoder):
    """An encoder whose outputs are the variants of an ablation; errors as of `load_encoder`."""

    sample_rate = AudioSepEncoder.sample_rate
    default_output = BASE

    def __init__(self, checkpoint: str, device: torch.device, factors: Sequence[str], condition: Path | None) -> None:
        self.plain = load_encoder(checkpoint, device)
        self.info, self.device = self.plain.info, self.plain.device
        # What needs a pass of its own.
        self.passes: dict[Output, Callable[[Sequence[Waveform]], torch.Tensor]] = {}
        for embedding in ("zero", condition) if CONDITION in factors else ():
            if embedding is not None:
                other = load_encoder(checkpoint, device, condition=embedding)
                name = other.info.condition.removeprefix("sha256:")[:12]
                self.passes[Output(CONDITION, name, BASE.width)] = other.embed
        for factor in [factor for factor in DEGRADATIONS if factor in factors]:
            for name, degrade in DEGRADATIONS[factor].items():
                self.passes[Output(factor, name, BASE.width)] = partial(self._embed_degraded, degrade)
        self.outputs = (*PLAIN, *self.passes)

    def _embed_degraded(self, degrade: Degradation, waveforms: Sequence[Waveform]) -> torch.Tensor:
        return self.plain.embed([degrade(np.asarray(waveform)) for waveform in waveforms])

    def embed_outputs(self, waveforms: Sequence[Waveform], outputs: Sequence[Output]) -> dict[Output, torch.Tensor]:
        embedded = self.plain.embed_outputs(waveforms, [output for output in outputs if output not in self.passes])
        return embedded | {output: self.passes[output](waveforms) for output in outputs if output in self.passes}


def read_variants(path: Path) -> FeatureSet:
    """A file of variants, whose `output_columns` name them; FeatureFileError if it holds none."""
    features = FeatureSet.load(path)
    if not features.output_columns:
        raise FeatureFileError(f"{path} holds no variants of this version; run again: python analysis/ablation.py")
    return features


def extract_variants(
    task: Task, maker: ThisProcess, clips: Sequence[Clip], root: Path, output: Path, most: int, options: ExtractOptions
) -> FeatureSet:
    """Every variant of every clip, or of a sample: one pass over the audio, saved and resumed like any extraction."""
    sides = np.array([f"{clip.fold} {clip.split}" for clip in clips])
    picked = balanced_rows(np.unique([clip.class_name for clip in clips], return_inverse=True)[1], sides, most)
    print(f"{task.title}: {len(picked):,} of {len(clips):,} clips, {len(maker.outputs)} variants of each")
    chosen = [clips[index] for index in picked]
    extract(maker, ClipList(chosen, root, task.name, task.class_names, task.is_multilabel), output, options)
    return read_variants(output)


class Effect(ComparisonRecord):
    """One head of one variant: its score, and the difference from the baseline; corrected for variants and heads."""

    factor: str
    name: str
    dimensions: int  # numbers per clip
    head: HeadKind
    score: float


class AblationRecord(Record):
    """The content of ablation_TASK.json."""

    remedy = "; run analysis/ablation.py again"

    task: str
    title: str
    encoder: EncoderInfo
    division: str
    clips: int
    test_clips: int
    recipe: str
    seeds: list[int]
    baseline: dict[HeadKind, float]  # scores
    comparison: ComparisonRecord  # of the three-layer head with the linear one, at the baseline
    effects: list[Effect]  # both heads of every variant, from the best for the linear head to the worst

    @property
    def variants(self) -> list[tuple[Effect, ...]]:
        """Every variant with both heads' effects, the linear head's first."""
        return list(zip(*(self.effects[head :: len(HEADS)] for head in range(len(HEADS))), strict=True))

    @property
    def words(self) -> str:
        """What was fitted and tested, and what a reader of the best effect must know."""
        scores = ", ".join(f"{head_title(kind)} {percent(score)} %" for kind, score in self.baseline.items())
        return (
            f"{self.clips:,} clips ({self.test_clips:,} tested), {self.division}, {self.recipe} recipe, {len(self.seeds)} seed(s). "
            f"Baseline: {BASE.layer}, {BASE.pool} pool, no condition, whole clip: {scores}. 95 % intervals by groups. Sorted by "
            f"test scores, so the first one's is too high; p-values are corrected for {len(self.effects)} tests (Holm)."
        )


class Variant(NamedTuple):
    """A variant to fit: names for readers, the outputs that are put side by side, the scaler (None: the recipe's)."""

    factor: str
    name: str
    outputs: tuple[str, ...]
    scaler: ScalerName | None = None


def _fit(
    variant: Variant, features: FeatureSet, jobs: Sequence[Job], config: FitConfig
) -> dict[HeadKind, list[Outcome]]:
    """Both heads of every job, of the variant's outputs side by side; `features` are rows of all outputs."""
    if variant.scaler is not None:
        config = config.model_copy(update={"scaler": variant.scaler, "whiten_eps": None})
    rows = torch.cat([features.features[:, features.output_columns[name]] for name in variant.outputs], dim=1)
    fitter = HeadFitter(config, fitting_device(config.device))
    return {kind: fitter.outcomes(kind, replace(features, features=rows), jobs) for kind in HEADS}


def _variants(factors: Sequence[str], features: FeatureSet, config: FitConfig) -> list[Variant]:
    """All variants of these factors but the baseline."""
    layer, pool, scaler = BASE.layer, BASE.pool, recipe_for("linear", config).scaler
    extracted = [(factor, name) for factor, name, _ in features.meta.get("outputs", []) if factor in FACTORS]
    variants = [
        *(Variant("layer", other, (f"{other} {pool}",)) for other in LAYERS if other != layer),
        Variant("layer", "all layers side by side", tuple(f"{name} {pool}" for name in LAYERS)),
        *(Variant("pool", f"{other} pool", (f"{layer} {other}",)) for other in POOLS if other != pool),
        Variant("pool", "mean and std pool", (BASE.name, f"{layer} std")),
        *(Variant("scaler", f"scaler {other}", (BASE.name,), other) for other in SCALERS if other != scaler),
        *(Variant(factor, name, (f"{factor} {name}",)) for factor, name in extracted),
    ]
    return [variant for variant in variants if variant.factor in (*factors, *FACTORS)]


def ablate(
    prepared: Prepared, task: Task, encoder: EncoderInfo, config: FitConfig, factors: Sequence[str]
) -> AblationRecord:
    """Fit and score every variant on the same splits and seeds. `prepared` are rows of all the encoder's outputs, divided by the
    task."""
    features, columns = prepared.features, prepared.features.output_columns
    plan = plan_fits("official", prepared, config.train_test_split, seeds_of(config))
    baseline = _fit(Variant("", "baseline", (BASE.name,)), features, plan.jobs, config)
    variants = progress_bar(iterable=_variants(factors, features, config), desc="variants", unit="variant")
    by_variant = [
        [
            Effect(
                **compare_heads(baseline[kind], outcomes, features).model_dump(),
                factor=variant.factor,
                name=variant.name,
                dimensions=sum(columns[name].stop - columns[name].start for name in variant.outputs),
                head=kind,
                score=score_head(outcomes, features).score,
            )
            for kind, outcomes in _fit(variant, features, plan.jobs, config).items()
        ]
        for variant in variants
    ]
    effects = list(itertools.chain(*sorted(by_variant, key=lambda heads: -heads[0].difference)))
    return AblationRecord(
        task=task.name,
        title=task.title,
        encoder=encoder,
        division=prepared.description or plan.division,
        clips=len(features),
        test_clips=len(np.unique(np.concatenate([job.split.test for job in plan.jobs]))),
        recipe=config.recipe,
        seeds=seeds_of(config),
        baseline={kind: score_head(outcomes, features).score for kind, outcomes in baseline.items()},
        comparison=compare_heads(baseline["linear"], baseline["three_layer"], features),
        effects=corrected(effects),
    )


def write_effects(record: AblationRecord, folder: Path, figure_format: str = "png") -> None:
    """Print the table; write json, csv and a figure into `folder`."""
    table = [["factor", "variant", "head", "score", "difference", *COMPARED]]
    for effect in record.effects:
        table.append([effect.factor, effect.name, head_title(effect.head), percent(effect.score), *effect.cells])
    print(f"\n{record.title}\n{as_text(table, left=3)}\n{record.words}")
    print(f"three-layer minus linear head: {record.comparison.words}")
    written = [folder / f"ablation_{record.task}.{suffix}" for suffix in ("json", "csv", figure_format)]
    write_json(written[0], record.model_dump_json())
    rows = [[row.factor, row.name, row.dimensions, row.head, row.score, *row.figures] for row in record.effects]
    write_csv(written[1], [["factor", "variant", "dimensions", "head", "score", *FIGURES], *rows])
    plot_effects(record, written[2])
    print(f"-> {', '.join(map(str, written))}")


def plot_effects(record: AblationRecord, path: Path) -> None:
    names = [f"{linear.name} ({linear.factor})" for linear, _ in record.variants]
    effects = [{str(effect.head): (effect.difference, effect.interval) for effect in both} for both in record.variants]
    panel = Panel(f"{record.title}: what each choice is worth", effects, (0.0, "baseline"))
    plot_heads([panel], names, "score against the baseline, points", record.words, path)


def cka_of_variants(features: FeatureSet) -> pd.DataFrame:
    """Linear CKA between every two variants."""
    columns = features.output_columns
    raw, values = features.features.numpy().astype(np.float64), pd.DataFrame(1.0, list(columns), list(columns))
    for first, second in itertools.combinations(columns, 2):
        cka = linear_cka(raw[:, columns[first]], raw[:, columns[second]])
        values.loc[first, second] = values.loc[second, first] = cka
    return values


def linear_cka(first: Array, second: Array) -> float:
    """Linear centred kernel alignment of (N, D) and (N, E) features of the same N clips, in [0, 1].

    ``|Y'X|^2 / (|X'X| |Y'Y|)``: Kornblith et al. (2019), https://arxiv.org/abs/1905.00414.
    """
    centred, other_centred = first - first.mean(axis=0), second - second.mean(axis=0)
    scale = np.linalg.norm(centred.T @ centred) * np.linalg.norm(other_centred.T @ other_centred)
    return float(np.square(np.linalg.norm(other_centred.T @ centred)) / scale) if scale > 0 else float("nan")
