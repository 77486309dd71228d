"""One change at a time, and a grid: every variant of the features or the scaler is fitted, scored and shown alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from analysis.ablation_features import BASE_LAYER, BASE_POOL, BASELINE, GRID, GRID_NAMES, factor_of
from analysis.compare import Score
from analysis.plots import Effect, plot_effects
from common.config import FitConfig, ScalerName
from common.datasets import Prepared
from common.encoder import LAYERS, POOLS, EncoderInfo
from common.errors import UserError
from common.evaluation.intervals import holm
from common.evaluation.outcomes import HeadFitter, Outcome
from common.evaluation.protocol import plan_fits, seeds_of
from common.evaluation.record import ComparisonRecord, Interval, Record
from common.evaluation.scores import compare_heads, score_head
from common.files import DamagedFileError, read_json, write_csv, write_json
from common.heads import HEADS, SCALERS, HeadKind, Job, head_title, recipe_for
from common.progress import progress_bar
from common.text_table import as_text, percent, range_of


class EffectScore(Score):
    """The same with the difference from the baseline, that one's interval and p-value, and the p-value corrected for the
    number of variants and heads (Holm 1979)."""

    difference: float
    difference_interval: Interval | None
    p_value: float | None
    holm_p_value: float | None = None


class EffectRecord(Record):
    """One variant: the factor that it changes, its name, the numbers per clip, and both heads' scores."""

    factor: str
    name: str
    dimensions: int
    linear: EffectScore
    three_layer: EffectScore

    def of(self, kind: HeadKind) -> EffectScore:
        """One head's score."""
        return self.linear if kind == "linear" else self.three_layer


class GridRecord(Record):
    """One combination of layer, pool and scaler."""

    layer: str
    pool: str
    scaler: ScalerName
    linear: Score | None = None
    three_layer: Score | None = None

    def of(self, kind: HeadKind) -> Score | None:
        """One head's score, if it was fitted."""
        return self.linear if kind == "linear" else self.three_layer


class AblationRecord(Record):
    """The content of ablation_TASK.json.

    Attributes:
        task, title: the task's names.
        encoder: the encoder whose outputs vary.
        division: of the clips, for readers.
        clips, test_clips: their numbers.
        recipe, seeds: of the heads.
        baseline: scores of both heads.
        heads: the three-layer head against the linear one, at the baseline.
        effects: from the best for the linear head to the worst.
        grid: the accuracy of every combination.
    """

    task: str
    title: str
    encoder: EncoderInfo
    division: str
    clips: int
    test_clips: int
    recipe: str
    seeds: list[int]
    baseline: dict[HeadKind, Score]
    heads: ComparisonRecord
    effects: list[EffectRecord]
    grid: list[GridRecord]

    @classmethod
    def load(cls, path: Path) -> AblationRecord:
        """Read ablation_TASK.json; UserError if it is damaged or of an earlier version."""
        try:
            return cls.model_validate_json(read_json(path))
        except (ValidationError, DamagedFileError) as error:
            raise UserError(f"{path} is damaged or of an earlier version; run analysis/ablation.py again") from error


@dataclass(frozen=True)
class Variant:
    """A variant to fit.

    Attributes:
        factor, name: for readers.
        outputs: names of the outputs that are put side by side.
        scaler: None: the recipe's.
    """

    factor: str
    name: str
    outputs: tuple[str, ...]
    scaler: ScalerName | None = None


class Ablation:
    """The fits of one ablation: all variants on the same splits and seeds."""

    def __init__(self, prepared: Prepared, config: FitConfig, device: torch.device) -> None:
        """`prepared`: rows of all outputs, divided by the task."""
        features = prepared.features
        self.features, self.config, self.device = features, config, device
        self.columns = features.output_columns
        self.plan = plan_fits("official", prepared, config.train_test_split, seeds_of(config))
        self.jobs: list[Job] = self.plan.jobs
        self.baseline = {kind: self.outcomes(kind, (BASELINE,), None) for kind in HEADS}

    def outcomes(self, kind: HeadKind, outputs: Sequence[str], scaler: ScalerName | None) -> list[Outcome]:
        """One head per job on these outputs side by side."""
        columns = torch.cat([self.features.features[:, self.columns[name]] for name in outputs], dim=1)
        own = self.config if scaler is None else self.config.model_copy(update={"scaler": scaler, "whiten_eps": None})
        return HeadFitter(own, self.device).outcomes(kind, replace(self.features, features=columns), self.jobs)

    def score(self, outcomes: Sequence[Outcome]) -> Score:
        scored = score_head(outcomes, self.features)
        return Score(accuracy=scored.accuracy, interval=scored.interval)

    def effect(self, variant: Variant) -> EffectRecord:
        """A variant against the baseline."""
        scores = {}
        for kind in HEADS:
            outcomes = self.outcomes(kind, variant.outputs, variant.scaler)
            scored, compared = self.score(outcomes), compare_heads(self.baseline[kind], outcomes, self.features)
            scores[kind] = EffectScore(
                accuracy=scored.accuracy,
                interval=scored.interval,
                difference=compared.difference,
                difference_interval=compared.interval,
                p_value=compared.p_value,
            )
        width = sum(self.columns[name].stop - self.columns[name].start for name in variant.outputs)
        return EffectRecord(factor=variant.factor, name=variant.name, dimensions=width, **scores)

    def grid_point(self, layer: str, pool: str, scaler: ScalerName, kinds: Sequence[HeadKind]) -> GridRecord:
        """One combination, with the given heads."""
        scores = {kind: self.score(self.outcomes(kind, (f"{layer} {pool}",), scaler)) for kind in kinds}
        return GridRecord(layer=layer, pool=pool, scaler=scaler, **scores)

    def variants(self, factors: Sequence[str]) -> list[Variant]:
        """All variants of these factors but the baseline."""
        found: list[Variant] = []
        if "layer" in factors:
            found += [Variant("layer", layer, (f"{layer} {BASE_POOL}",)) for layer in LAYERS if layer != BASE_LAYER]
            found.append(Variant("layer", "all layers side by side", tuple(f"{layer} {BASE_POOL}" for layer in LAYERS)))
        if "pool" in factors:
            found += [Variant("pool", f"{pool} pool", (f"{BASE_LAYER} {pool}",)) for pool in POOLS if pool != BASE_POOL]
            found.append(Variant("pool", "mean and std pool", (BASELINE, f"{BASE_LAYER} std")))
        if "scaler" in factors:
            own = recipe_for("linear", self.config).scaler
            found += [Variant("scaler", f"scaler {name}", (BASELINE,), name) for name in SCALERS if name != own]
        return found + [Variant(factor_of(name), name, (name,)) for name in self.columns if name not in GRID_NAMES]


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
    ablation = Ablation(prepared, config, device)
    variants = progress_bar(iterable=ablation.variants(factors), desc="variants", unit="variant")
    effects = _with_holm([ablation.effect(variant) for variant in variants])
    combinations = [
        (output.layer, output.pool, scaler)
        for output in GRID
        for scaler in SCALERS
        # Thousands of numbers per clip: whitening keeps the largest principal components; other scalers take hours.
        if scaler == "whiten" or output.pool != "mean_time"
    ]
    bar = progress_bar(iterable=combinations if grid_heads else [], desc="grid", unit="variant")
    grid = [ablation.grid_point(layer, pool, scaler, grid_heads) for layer, pool, scaler in bar]
    tested = np.concatenate([job.split.test for job in ablation.jobs])
    return AblationRecord(
        task=task,
        title=title,
        encoder=encoder,
        division=prepared.description or ablation.plan.division,
        clips=len(features),
        test_clips=len(np.unique(tested)),
        recipe=config.recipe,
        seeds=seeds_of(config),
        baseline={kind: ablation.score(outcomes) for kind, outcomes in ablation.baseline.items()},
        heads=compare_heads(ablation.baseline["linear"], ablation.baseline["three_layer"], features),
        effects=sorted(effects, key=lambda effect: -effect.linear.difference),
        grid=grid,
    )


def _with_holm(effects: Sequence[EffectRecord]) -> list[EffectRecord]:
    """The effects with p-values corrected for the number of variants and heads."""
    scores = [effect.of(kind) for effect in effects for kind in HEADS]
    corrected = iter(holm([scored.p_value for scored in scores]))
    return [
        effect.model_copy(
            update={kind: effect.of(kind).model_copy(update={"holm_p_value": next(corrected)}) for kind in HEADS}
        )
        for effect in effects
    ]


def write_effects(record: AblationRecord, folder: Path, figure_format: str = "png") -> None:
    """Print the table; write json, csv and png into `folder`."""
    _print_effects(record)
    name = f"ablation_{record.task}"
    write_json(folder / f"{name}.json", record.model_dump_json())
    rows: list[tuple[object, ...]] = [
        ("factor", "variant", "dimensions", "head", "accuracy", "difference", "low", "high", "p_value", "holm_p_value")
    ]
    for effect in record.effects:
        for kind in HEADS:
            scored = effect.of(kind)
            interval = scored.difference_interval or ("", "")
            figures = (scored.accuracy, scored.difference, *interval, scored.p_value, scored.holm_p_value)
            rows.append((effect.factor, effect.name, effect.dimensions, kind, *figures))
    write_csv(folder / f"{name}.csv", rows)
    drawn = [
        Effect(
            f"{effect.name} ({effect.factor})",
            {kind: (effect.of(kind).difference, effect.of(kind).difference_interval) for kind in HEADS},
        )
        for effect in record.effects
    ]
    base = record.baseline
    caption = (
        f"Baseline: {BASE_LAYER}, {BASE_POOL} pool, no condition, whole clip: linear "
        f"{percent(base['linear'].accuracy)} %, three-layer {percent(base['three_layer'].accuracy)} %. "
        f"{record.clips:,} clips ({record.test_clips:,} tested), {record.division}, {record.recipe} recipe, "
        f"{len(record.seeds)} seed(s); 95 % intervals by groups, each for itself. {_selection_note(record)}"
    )
    plot_effects(drawn, f"{record.title}: what each choice is worth", caption, folder / f"{name}.{figure_format}")
    print(f"-> {', '.join(str(folder / f'{name}.{suffix}') for suffix in ('json', 'csv', figure_format))}")


def _print_effects(record: AblationRecord) -> None:
    columns = ("difference, 95 %", "p, Holm")
    table = [["factor", "variant", *(cell for kind in HEADS for cell in (head_title(kind), *columns))]]
    base = [(percent(record.baseline[kind].accuracy), "", "") for kind in HEADS]
    table.append(["", "baseline", *(cell for cells in base for cell in cells)])
    for effect in record.effects:
        cells = [effect.factor, effect.name]
        for kind in HEADS:
            scored = effect.of(kind)
            difference = f"{100 * scored.difference:+.1f} ({range_of(scored.difference_interval)})"
            p_value = "-" if scored.holm_p_value is None else f"{scored.holm_p_value:.2g}"
            cells += [percent(scored.accuracy), difference, p_value]
        table.append(cells)
    print(
        f"\n{record.title}: {record.clips:,} clips ({record.test_clips:,} tested), {record.division}, "
        f"{record.recipe} recipe, {len(record.seeds)} seed(s)"
    )
    print(as_text(table))
    print(_selection_note(record))
    heads = record.heads
    print(f"three-layer minus linear head: {100 * heads.difference:+.1f} points, 95 % {range_of(heads.interval)}")
    for kind in HEADS:
        scores = [(own.accuracy, point) for point in record.grid if (own := point.of(kind)) is not None]
        if scores:
            accuracy, best = max(scores, key=lambda each: each[0])
            print(
                f"best of {len(scores)} in the grid, {head_title(kind)}: {best.layer}, {best.pool} pool, scaler "
                f"{best.scaler}: {percent(accuracy)} (a maximum over test scores, not a score)"
            )


def _selection_note(record: AblationRecord) -> str:
    return (
        f"The {len(record.effects)} variants are sorted by their test scores, so the first one's is too high; its p-value is "
        f"corrected for {len(HEADS) * len(record.effects)} tests (Holm)."
    )
