"""One change at a time, and a grid of them: each variant of the features or the scaler fitted, scored and shown alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.pictures import plot_effects
from analysis.views import BASE_LAYER, BASE_POOL, BASELINE, GRID, factor_of
from common.encoder import LAYERS, POOLS
from common.features import FeatureSet
from common.files import write_atomically, write_csv
from common.heads import HEADS
from common.progress import progress_bar
from common.protocols import make_jobs, outcome_of
from common.recipes import recipe_for
from common.results import Outcome, comparison_record, head_record
from common.scalers import SCALERS
from common.tables import as_text, percent, range_of
from common.train import fit_chosen


def ablate(
    features: FeatureSet,
    views: dict[str, slice],
    factors: Sequence[str],
    grid_heads: Sequence[str],
    config: dict[str, Any],
) -> dict[str, Any]:
    """Fit and score every variant on the same splits and seeds.

    Args:
        features: rows of all views, divided by the task.
        views: name -> columns.
        grid_heads: heads that are fitted on the whole grid of layers, pools and scalers.

    Returns:
        ``baseline``: head -> accuracy and interval; ``heads``: the difference of the three-layer head to the linear one;
        ``effects``: of each variant ``factor``, ``name``, and head -> accuracy, interval, ``difference`` to the baseline with its own
        interval and p-value; from the best for the linear head to the worst. ``grid``: accuracy of every combination.
    """
    seeds = [config["random_seed"] + place for place in range(config["seeds"])]
    jobs, words, _ = make_jobs("official", features, config["train_test_split"], seeds)

    def judged(names: Sequence[str], kind: str, scaler: str | None) -> list[Outcome]:
        columns = torch.cat([features.features[:, views[name]] for name in names], dim=1)
        own = config if scaler is None else {**config, "scaler": scaler, "whiten_eps": None}
        variant = replace(features, features=columns)
        pairs = fit_chosen(kind, variant, jobs, recipe_for(kind, own), torch.device(config["device"]), config["refit"])
        return [outcome_of(*pair) for pair in pairs]

    def score(outcomes: Sequence[Outcome]) -> dict[str, Any]:
        scored = head_record(outcomes, features)
        return {"accuracy": scored["mean"]["accuracy"], "interval": scored["interval"]}

    base = {kind: judged([BASELINE], kind, None) for kind in HEADS}
    effects = []
    variants = _variants(views, factors, recipe_for("linear", config).scaler)
    for factor, name, view_names, scaler in progress_bar(iterable=variants, desc="variants", unit="variant"):
        effect: dict[str, Any] = {"factor": factor, "name": name, "dimensions": _width(view_names, views)}
        for kind in HEADS:
            outcomes = judged(view_names, kind, scaler)
            compared = comparison_record(base[kind], outcomes, features)
            difference = {"difference": compared["difference"], "p_value": compared["p_value"]}
            effect[kind] = {**score(outcomes), **difference, "difference_interval": compared["interval"]}
        effects.append(effect)
    combinations = [(layer, pool, scaler) for layer in LAYERS for pool in POOLS for scaler in SCALERS]
    grid = []
    for layer, pool, scaler in progress_bar(iterable=combinations if grid_heads else [], desc="grid", unit="variant"):
        scores = {kind: score(judged([f"{layer} {pool}"], kind, scaler)) for kind in grid_heads}
        grid.append({"layer": layer, "pool": pool, "scaler": scaler, **scores})
    return {
        "division": words,
        "clips": len(features),
        "test_clips": len(np.unique(np.concatenate([job.split.test for job in jobs]))),
        "recipe": config["recipe"],
        "seeds": seeds,
        "baseline": {kind: score(outcomes) for kind, outcomes in base.items()},
        "heads": comparison_record(base["linear"], base["three_layer"], features),
        "effects": sorted(effects, key=lambda effect: -effect["linear"]["difference"]),
        "grid": grid,
    }


def _variants(
    views: dict[str, slice], factors: Sequence[str], own_scaler: str
) -> list[tuple[str, str, list[str], str | None]]:
    """(factor, name, the views side by side, the scaler or None for the recipe's) of all but the baseline."""
    variants: list[tuple[str, str, list[str], str | None]] = []
    if "layer" in factors:
        variants += [("layer", layer, [f"{layer} {BASE_POOL}"], None) for layer in LAYERS if layer != BASE_LAYER]
        variants.append(("layer", "all layers side by side", [f"{layer} {BASE_POOL}" for layer in LAYERS], None))
    if "pool" in factors:
        variants += [("pool", f"{pool} pool", [f"{BASE_LAYER} {pool}"], None) for pool in POOLS if pool != BASE_POOL]
        variants.append(("pool", "mean and std pool", [BASELINE, f"{BASE_LAYER} std"], None))
    if "scaler" in factors:
        variants += [("scaler", f"scaler {name}", [BASELINE], name) for name in SCALERS if name != own_scaler]
    for name in views:
        if name not in GRID:
            variants.append((factor_of(name), name, [name], None))
    return variants


def _width(names: Sequence[str], views: dict[str, slice]) -> int:
    return sum(views[name].stop - views[name].start for name in names)


def write_effects(record: dict[str, Any], folder: Path) -> None:
    """The table on the terminal; json, csv and png in `folder`."""
    base = record["baseline"]
    table = [["factor", "variant", *(cell for kind in HEADS for cell in (kind.replace("_", "-"), "against, 95 %"))]]
    table.append(["", "baseline", *(cell for kind in HEADS for cell in (percent(base[kind]["accuracy"]), ""))])
    for effect in record["effects"]:
        cells = [effect["factor"], effect["name"]]
        for kind in HEADS:
            scored = effect[kind]
            against = f"{100 * scored['difference']:+.1f} ({range_of(scored['difference_interval'])})"
            cells += [percent(scored["accuracy"]), against]
        table.append(cells)
    heads = record["heads"]
    print(
        f"\n{record['title']}: {record['clips']:,} clips ({record['test_clips']:,} tested), {record['division']}, {record['recipe']} recipe, {len(record['seeds'])} seed(s)"
    )
    print(as_text(table))
    print(f"three-layer minus linear head: {100 * heads['difference']:+.1f} points, 95 % {range_of(heads['interval'])}")
    for kind in HEADS if record["grid"] else ():
        scored = [entry for entry in record["grid"] if kind in entry]
        if scored:
            best = max(scored, key=lambda entry: entry[kind]["accuracy"])
            print(
                f"best of {len(scored)} in the grid, {kind.replace('_', '-')}: {best['layer']}, {best['pool']} pool, scaler "
                f"{best['scaler']}: {percent(best[kind]['accuracy'])} (a maximum over test scores, not a score)"
            )
    name = f"ablation_{record['task']}"
    write_atomically(folder / f"{name}.json", (json.dumps(record, indent=1) + "\n").encode())
    rows = [("factor", "variant", "dimensions", "head", "accuracy", "difference", "low", "high", "p_value")]
    for effect in record["effects"]:
        for kind in HEADS:
            scored = effect[kind]
            interval = scored["difference_interval"] or ("", "")
            figures = (scored["accuracy"], scored["difference"], *interval, scored["p_value"])
            rows.append((effect["factor"], effect["name"], effect["dimensions"], kind, *figures))
    write_csv(folder / f"{name}.csv", rows)
    drawn = [
        {"name": f"{effect['name']} ({effect['factor']})"}
        | {
            kind: {"difference": effect[kind]["difference"], "interval": effect[kind]["difference_interval"]}
            for kind in HEADS
        }
        for effect in record["effects"]
    ]
    caption = (
        f"Baseline: {BASE_LAYER}, {BASE_POOL} pool, no condition, whole clip: linear {percent(base['linear']['accuracy'])} %, "
        f"three-layer {percent(base['three_layer']['accuracy'])} %. {record['clips']:,} clips ({record['test_clips']:,} tested), {record['division']}, "
        f"{record['recipe']} recipe, {len(record['seeds'])} seed(s); 95 % intervals by groups."
    )
    plot_effects(drawn, f"{record['title']}: what each choice is worth", caption, folder / f"{name}.png")
    print(f"-> {', '.join(str(folder / f'{name}.{suffix}') for suffix in ('json', 'csv', 'png'))}")
