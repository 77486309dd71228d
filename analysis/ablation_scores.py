"""One change at a time, and a grid: every variant of the features or the scaler is fitted, scored and shown alike."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from analysis.ablation_features import BASE, FACTORS, GRID
from analysis.compare import AnalysisRecord, Score
from analysis.plots import plot_effects
from common.config import FitConfig, ScalerName
from common.datasets import Prepared
from common.encoder import LAYERS, POOLS, EncoderInfo
from common.evaluation.intervals import holm
from common.evaluation.outcomes import HeadFitter, Outcome
from common.evaluation.protocol import plan_fits, seeds_of
from common.evaluation.record import ComparisonRecord, Interval, Record
from common.evaluation.scores import compare_heads, score_head
from common.features import FeatureSet
from common.files import write_csv, write_json
from common.heads import HEADS, SCALERS, HeadKind, Job, head_title, recipe_for
from common.progress import progress_bar
from common.text_table import as_text, percent, range_of


class EffectScore(Score):
    """An accuracy with its difference from the baseline, that one's interval and p-value, and the p-value corrected for
    the number of variants and heads (Holm 1979)."""

    difference: float
    difference_interval: Interval | None
    p_value: float | None
    holm_p_value: float | None = None


class EffectRecord(Record):
    """One variant: the factor that it changes, its name, the numbers per clip, and both heads' scores."""

    factor: str
    name: str
    dimensions: int
    heads: dict[HeadKind, EffectScore]


class GridRecord(Record):
    """One combination of layer, pool and scaler, with the scores of the heads that were fitted."""

    layer: str
    pool: str
    scaler: ScalerName
    heads: dict[HeadKind, Score]


class AblationRecord(AnalysisRecord):
    """The content of ablation_TASK.json.

    Attributes:
        task, title: the task's names.
        encoder: the encoder whose outputs vary.
        division: of the clips, for readers.
        clips, test_clips: their numbers.
        recipe, seeds: of the heads.
        baseline: scores of both heads.
        comparison: the three-layer head against the linear one, at the baseline.
        effects: from the best for the linear head to the worst.
        grid: the accuracy of every combination.
    """

    script = "analysis/ablation.py"

    task: str
    title: str
    encoder: EncoderInfo
    division: str
    clips: int
    test_clips: int
    recipe: str
    seeds: list[int]
    baseline: dict[HeadKind, Score]
    comparison: ComparisonRecord
    effects: list[EffectRecord]
    grid: list[GridRecord]

    @property
    def baseline_words(self) -> str:
        """What every effect is a difference from."""
        scores = ", ".join(f"{head_title(kind)} {percent(score.accuracy)} %" for kind, score in self.baseline.items())
        return f"Baseline: {BASE.layer}, {BASE.pool} pool, no condition, whole clip: {scores}."

    @property
    def clips_words(self) -> str:
        """What was fitted and tested."""
        return (
            f"{self.clips:,} clips ({self.test_clips:,} tested), {self.division}, {self.recipe} recipe, "
            f"{len(self.seeds)} seed(s)"
        )

    @property
    def selection_words(self) -> str:
        """What a reader of the best effect must know."""
        return (
            f"The {len(self.effects)} variants are sorted by their test scores, so the first one's is too high; its "
            f"p-value is corrected for {len(HEADS) * len(self.effects)} tests (Holm)."
        )


class Variant(NamedTuple):
    """A variant to fit: names for readers, the outputs that are put side by side, the scaler (None: the recipe's)."""

    factor: str
    name: str
    outputs: tuple[str, ...]
    scaler: ScalerName | None = None


@dataclass(frozen=True)
class _Fits:
    """What all variants of an ablation share: the rows of all outputs, the splits and seeds, the recipe."""

    features: FeatureSet
    config: FitConfig
    device: torch.device
    jobs: list[Job]

    def rows(self, outputs: Sequence[str]) -> torch.Tensor:
        """These outputs side by side."""
        columns = self.features.output_columns
        return torch.cat([self.features.features[:, columns[name]] for name in outputs], dim=1)

    def outcomes(self, kind: HeadKind, outputs: Sequence[str], scaler: ScalerName | None) -> list[Outcome]:
        """One head per job."""
        config = self.config
        if scaler is not None:
            config = config.model_copy(update={"scaler": scaler, "whiten_eps": None})
        features = replace(self.features, features=self.rows(outputs))
        return HeadFitter(config, self.device).outcomes(kind, features, self.jobs)

    def score(self, outcomes: Sequence[Outcome]) -> Score:
        return Score.of(score_head(outcomes, self.features))

    def effect(self, variant: Variant, baseline: dict[HeadKind, list[Outcome]]) -> EffectRecord:
        """A variant against the baseline."""
        heads = {}
        for kind in HEADS:
            outcomes = self.outcomes(kind, variant.outputs, variant.scaler)
            compared = compare_heads(baseline[kind], outcomes, self.features)
            heads[kind] = EffectScore(
                **self.score(outcomes).model_dump(),
                difference=compared.difference,
                difference_interval=compared.interval,
                p_value=compared.p_value,
            )
        width = self.rows(variant.outputs).shape[1]
        return EffectRecord(factor=variant.factor, name=variant.name, dimensions=width, heads=heads)


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
    prepared: Prepared,
    factors: Sequence[str],
    grid_heads: Sequence[HeadKind],
    config: FitConfig,
    device: torch.device,
    *,
    task: str,
    title: str,
    encoder: EncoderInfo,
) -> AblationRecord:
    """Fit and score every variant on the same splits and seeds.

    Args:
        prepared: rows of all outputs, divided by the task.
        grid_heads: heads that are fitted on the whole grid of layers, pools and scalers.
    """
    features = prepared.features
    plan = plan_fits("official", prepared, config.train_test_split, seeds_of(config))
    fits = _Fits(features, config, device, plan.jobs)
    baseline = {kind: fits.outcomes(kind, (BASE.name,), None) for kind in HEADS}
    variants = progress_bar(iterable=_variants(factors, features, config), desc="variants", unit="variant")
    effects = _with_holm([fits.effect(variant, baseline) for variant in variants])
    combinations = list(itertools.product(GRID, SCALERS)) if grid_heads else []
    grid = []
    for output, scaler in progress_bar(iterable=combinations, desc="grid", unit="variant"):
        # Thousands of numbers per clip: whitening keeps the largest principal components; other scalers take hours.
        if output.pool == "mean_time" and scaler != "whiten":
            continue
        heads = {kind: fits.score(fits.outcomes(kind, (output.name,), scaler)) for kind in grid_heads}
        grid.append(GridRecord(layer=output.layer, pool=output.pool, scaler=scaler, heads=heads))
    return AblationRecord(
        task=task,
        title=title,
        encoder=encoder,
        division=prepared.description or plan.division,
        clips=len(features),
        test_clips=len(np.unique(np.concatenate([job.split.test for job in plan.jobs]))),
        recipe=config.recipe,
        seeds=seeds_of(config),
        baseline={kind: fits.score(outcomes) for kind, outcomes in baseline.items()},
        comparison=compare_heads(baseline["linear"], baseline["three_layer"], features),
        effects=sorted(effects, key=lambda effect: -effect.heads["linear"].difference),
        grid=grid,
    )


def _with_holm(effects: Sequence[EffectRecord]) -> list[EffectRecord]:
    """The effects with p-values corrected for the number of variants and heads."""
    corrected = iter(holm([score.p_value for effect in effects for score in effect.heads.values()]))
    adjusted = []
    for effect in effects:
        heads = {
            kind: score.model_copy(update={"holm_p_value": next(corrected)}) for kind, score in effect.heads.items()
        }
        adjusted.append(effect.model_copy(update={"heads": heads}))
    return adjusted


def write_effects(record: AblationRecord, folder: Path, figure_format: str = "png") -> None:
    """Print the table; write json, csv and a figure into `folder`."""
    _print_effects(record)
    name = f"ablation_{record.task}"
    write_json(folder / f"{name}.json", record.model_dump_json())
    header = "factor variant dimensions head accuracy difference low high p_value holm_p_value"
    rows: list[Sequence[object]] = [header.split()]
    for effect in record.effects:
        for kind, score in effect.heads.items():
            interval = score.difference_interval or (None, None)
            figures = (score.accuracy, score.difference, *interval, score.p_value, score.holm_p_value)
            rows.append((effect.factor, effect.name, effect.dimensions, kind, *figures))
    write_csv(folder / f"{name}.csv", rows)
    effects = {
        f"{effect.name} ({effect.factor})": {
            kind: (score.difference, score.difference_interval) for kind, score in effect.heads.items()
        }
        for effect in record.effects
    }
    intervals = "95 % intervals by groups, each for itself."
    caption = f"{record.baseline_words} {record.clips_words}; {intervals} {record.selection_words}"
    plot_effects(effects, f"{record.title}: what each choice is worth", caption, folder / f"{name}.{figure_format}")
    print(f"-> {', '.join(str(folder / f'{name}.{suffix}') for suffix in ('json', 'csv', figure_format))}")


def _print_effects(record: AblationRecord) -> None:
    columns = ("difference, 95 %", "p, Holm")
    table = [["factor", "variant", *(cell for kind in HEADS for cell in (head_title(kind), *columns))]]
    base = [(percent(record.baseline[kind].accuracy), "", "") for kind in HEADS]
    table.append(["", "baseline", *(cell for cells in base for cell in cells)])
    for effect in record.effects:
        cells = [effect.factor, effect.name]
        for score in effect.heads.values():
            difference = f"{100 * score.difference:+.1f} ({range_of(score.difference_interval)})"
            p_value = "-" if score.holm_p_value is None else f"{score.holm_p_value:.2g}"
            cells += [percent(score.accuracy), difference, p_value]
        table.append(cells)
    print(f"\n{record.title}: {record.clips_words}\n{as_text(table)}\n{record.selection_words}")
    compared = record.comparison
    print(f"three-layer minus linear head: {100 * compared.difference:+.1f} points, 95 % {range_of(compared.interval)}")
    for kind in HEADS:
        fitted = [point for point in record.grid if kind in point.heads]
        if fitted:
            best = max(fitted, key=lambda point: point.heads[kind].accuracy)
            print(
                f"best of {len(fitted)} in the grid, {head_title(kind)}: {best.layer}, {best.pool} pool, scaler "
                f"{best.scaler}: {percent(best.heads[kind].accuracy)} (a maximum over test scores, not a score)"
            )
