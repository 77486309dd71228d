"""Tasks compared with each other, and the views of one task among themselves: figures, heat maps, printed matrices."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.pictures import plot_heat
from analysis.similarity import PRINCIPAL, frechet_distance, linear_cka, mmd, principal_subspace, subspace_overlap
from analysis.studies import Run, balanced_rows, encoder_words
from analysis.transfer import transfer_costs
from analysis.views import BASE_LAYER, BASE_POOL, GRID, read_views
from common.encoder import resolve_device
from common.features import ENCODER_SETTINGS, FeatureSet
from common.files import write_atomically
from common.progress import progress_bar
from common.scalers import fit_scaler
from common.tables import as_text

MEASURES = {
    "frechet": ("Fréchet distance between tasks", "squared, per dimension; 0: alike"),
    "mmd": ("Maximum mean discrepancy between tasks", "squared, Gaussian kernel; 0: alike"),
    "subspace": ("Overlap of principal subspaces", f"first {PRINCIPAL} components; 1: the same"),
}
COSTS = {
    "scaler": "What another task's scaler costs",
    "subspace": f"What another task's {PRINCIPAL} principal directions cost",
}


def comparable(runs: Sequence[Run], most: int) -> dict[str, FeatureSet]:
    """Task -> rows of a sample, of the tasks whose features are of one encoder: the one that most of them have."""
    tasks: dict[str, FeatureSet] = {}
    for one in runs:
        if one.study.name in tasks:
            print(f"{one.study.name} was run more than once; {one.folder} is left out")
            continue
        features = one.features
        sides = features.folds.tolist() if features.folds is not None else features.splits or [""] * len(features)
        tasks[one.study.name] = features.rows(balanced_rows(features.labels.numpy(), np.array(sides), most))
    made = {name: tuple(map(features.meta.get, ENCODER_SETTINGS)) for name, features in tasks.items()}
    chosen, _ = Counter(made.values()).most_common(1)[0]
    for name in [name for name in tasks if made[name] != chosen]:
        different = [key for key, own, other in zip(ENCODER_SETTINGS, made[name], chosen, strict=True) if own != other]
        print(f"{name} is left out: its features were made otherwise than those of most tasks ({', '.join(different)})")
        del tasks[name]
    return tasks


def compare(tasks: Mapping[str, FeatureSet], runs: Mapping[str, Run], with_transfer: bool) -> dict[str, Any]:
    """Every measure between every two tasks.

    Returns:
        ``tasks`` with their numbers of clips; each of MEASURES: {(row, column) as nested lists}; ``transfer``: target
        -> what `transfer_costs` says.
    """
    names = list(tasks)
    # One scale for all, to which every task adds alike; else the largest task, or dimension, would decide.
    # As many clips of each, too: distances between samples grow where there are fewer.
    fewest = min(map(len, tasks.values()))
    rng = np.random.default_rng(0)
    drawn = [each.features.numpy()[rng.permutation(len(each))[:fewest]] for each in tasks.values()]
    scaler = fit_scaler("standard", np.concatenate(drawn))
    scaled = {name: scaler(rows).astype(np.float64) for name, rows in zip(tasks, drawn, strict=True)}
    bases = {name: principal_subspace(rows) for name, rows in scaled.items()}
    size = next(iter(scaled.values())).shape[1]
    measures = {measure: np.zeros((len(names), len(names))) for measure in MEASURES}
    for (i, one), (j, other) in itertools.combinations_with_replacement(enumerate(names), 2):
        values = {
            "frechet": frechet_distance(scaled[one], scaled[other]) / size if i != j else 0.0,
            "mmd": mmd(scaled[one], scaled[other]) if i != j else 0.0,
            "subspace": subspace_overlap(bases[one], bases[other]),
        }
        for measure, value in values.items():
            measures[measure][i, j] = measures[measure][j, i] = value
    within = np.cov(np.concatenate([rows - rows.mean(axis=0) for rows in scaled.values()]), rowvar=False)
    alike = [rng.multivariate_normal(np.zeros(size), within, fewest, method="eigh") for _ in range(2)]
    transfer = {}
    for target in progress_bar(iterable=names if with_transfer else [], desc="transfers", unit="task"):
        # Not from another version of the same data: its clips may be the target's test clips.
        own_data = runs[target].study.download[0][0]
        others = {name: tasks[name] for name in names if runs[name].study.download[0][0] != own_data}
        config = {**runs[target].record["config"], "device": str(resolve_device("auto"))}
        transfer[target] = transfer_costs(tasks[target], others, config)
    return {
        "tasks": {name: len(each) for name, each in tasks.items()},
        "words": f"Compared: {', '.join(names)}; encoder: {encoder_words(runs[names[0]].record)}; {fewest:,} clips of each.",
        "dimensions": size,
        "clips_of_each": fewest,
        # Two samples of one normal distribution, as wide as a task is, so many clips each.
        "frechet_floor": frechet_distance(*alike) / size,
        **{measure: values.tolist() for measure, values in measures.items()},
        "transfer": transfer,
    }


def covers_zero(cost: Mapping[str, Any] | None) -> bool:
    """Whether a difference may be none, or nothing is known of it."""
    interval = (cost or {}).get("interval")
    return interval is None or interval[0] <= 0 <= interval[1]


def draw(record: dict[str, Any], folder: Path) -> list[Path]:
    """similarity.json and a heat map of each measure."""
    names, written = list(record["tasks"]), [folder / "similarity.json"]
    write_atomically(written[0], (json.dumps(record, indent=1) + "\n").encode())
    clips = ", ".join(f"{name} {count:,}" for name, count in record["tasks"].items())
    for measure, (title, how) in MEASURES.items():
        caption = f"{how}. Features standardised together; {record['clips_of_each']:,} clips of each task."
        if measure == "frechet":
            caption += f" Two samples of one distribution of that size are {record['frechet_floor']:.2f} apart."
        if measure == "subspace":
            caption += f" By chance {PRINCIPAL / record['dimensions']:.2f}."
        written.append(folder / f"similarity_{measure}.png")
        plot_heat(np.array(record[measure]), names, names, title, caption, written[-1])
    for what, title in COSTS.items() if record["transfer"] else ():
        values, uncertain = np.full((len(names), len(names)), np.nan), np.zeros((len(names), len(names)), bool)
        for (row, target), (column, source) in itertools.product(enumerate(names), enumerate(names)):
            if source in record["transfer"][target][what] and target != source:
                values[row, column] = 100 * record["transfer"][target][what][source]["difference"]
                uncertain[row, column] = covers_zero(record["transfer"][target][what][source])
        own = [f"{name} (own: {100 * record['transfer'][name][what]['own']['accuracy']:.1f} %)" for name in names]
        caption = (
            "Row: the task that is scored, by its official division, linear head, one seed. Column: the task on whose "
            f"clips it was fitted. Difference of accuracy to the task's own, points; in brackets where its 95 % interval covers 0. Clips: {clips}."
        )
        written.append(folder / f"transfer_{what}.png")
        plot_heat(values, own, names, title, caption, written[-1], digits=1, is_diverging=True, uncertain=uncertain)
    for measure in ("frechet", "subspace"):
        print(f"\n{MEASURES[measure][0]} ({MEASURES[measure][1]})")
        _print_matrix(names, np.array(record[measure]))
    return written


def _print_matrix(names: Sequence[str], values: np.ndarray) -> None:
    short = [name[:14] for name in names]
    print(
        as_text(
            [
                ["", *short],
                *[[name, *(f"{value:.2f}" for value in row)] for name, row in zip(short, values, strict=True)],
            ]
        )
    )


def draw_cka(path: Path, folder: Path) -> Path:
    """The heat map of linear CKA between the layers, the pools of the baseline's layer, and all other views of one
    task's clips."""
    features, views = read_views(path)
    raw = features.features.numpy().astype(np.float64)
    names = [
        name for name in views if name not in GRID or name.endswith(f" {BASE_POOL}") or name.startswith(BASE_LAYER)
    ]
    values = np.ones((len(names), len(names)))
    for (i, one), (j, other) in itertools.combinations(enumerate(names), 2):
        values[i, j] = values[j, i] = linear_cka(raw[:, views[one]], raw[:, views[other]])
    task = path.stem.removeprefix("ablation_")
    written = folder / f"cka_{task}.png"
    caption = f"Linear CKA of the same {len(features):,} clips; 1: alike up to rotation and one scale."
    plot_heat(values, names, names, f"{task}: layers, pools and conditions", caption, written)
    return written
