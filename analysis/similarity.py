"""How similar features are: the distributions of different tasks (Fréchet distance), or the same clips (CKA)."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.maps import balanced_rows
from analysis.plots import Heat
from analysis.scores import Run
from analysis.variants import read_variants
from common.arrays import Array
from common.evaluation.record import Record
from common.features import ENCODER_SETTINGS, FeatureSet
from common.heads import fit_scaler

SIMILARITY_FILE = "similarity.json"
HALVINGS = 5


class SimilarityRecord(Record):
    """The content of similarity.json: the distance between every two tasks, on the diagonal between two halves of one."""

    remedy = "; run analysis/task_similarity.py again"

    tasks: dict[str, int]  # name -> number of clips
    words: str  # what was compared, for readers
    dimensions: int
    clips_of_each: int  # in one measurement
    halvings: int
    measures: dict[str, list[list[float]]]  # "frechet" -> (task, task), per dimension

    def heat(self) -> Heat:
        caption = (
            f"Squared, per dimension; 0: alike. Features standardised together, {self.clips_of_each:,} clips of each task, "
            f"means of {self.halvings} halvings. Diagonal: two halves of the same task, which is what no difference looks like."
        )
        names = list(self.tasks)
        values = pd.DataFrame(self.measures["frechet"], names, names)
        return Heat("similarity_frechet", "Fréchet distance between tasks", caption, values)


def comparable(runs: Sequence[Run], most: int) -> dict[str, FeatureSet]:
    """Task -> a sample of its rows, for the tasks whose features are of the most common encoder."""
    tasks: dict[str, FeatureSet] = {}
    for run in runs:
        if run.study.name in tasks:
            print(f"{run.study.name} was run more than once; {run.folder} is left out")
            continue
        features = run.features
        sides = features.folds.tolist() if features.folds is not None else features.splits or [""] * len(features)
        tasks[run.study.name] = features.subset(balanced_rows(features.strata, np.array(sides), most))
    made = {name: tuple(map(features.meta.get, ENCODER_SETTINGS)) for name, features in tasks.items()}
    chosen, _ = Counter(made.values()).most_common(1)[0]
    for name in [name for name, settings in made.items() if settings != chosen]:
        print(f"{name} is left out: another encoder, layer or other setting made its features")
        del tasks[name]
    return tasks


def compare_tasks(tasks: Mapping[str, FeatureSet], encoder: str) -> SimilarityRecord:
    """The distance between every two tasks; `encoder` made their features."""
    names = list(tasks)
    # One scale for all, to which every task contributes equally; otherwise the largest task, or dimension, would
    # dominate. The same number of clips of each, too: distances between samples grow if there are fewer.
    fewest, rng = min(map(len, tasks.values())), np.random.default_rng(0)
    samples = [(features, rng.permutation(len(features))[:fewest]) for features in tasks.values()]
    values = [features.features.numpy()[rows] for features, rows in samples]
    groups = [rows if features.groups is None else np.array(features.groups)[rows] for features, rows in samples]
    scaler = fit_scaler("standard", np.concatenate(values))
    scaled = [scaler(rows).astype(np.float64) for rows in values]
    size, half = scaled[0].shape[1], fewest // 2
    distances = np.zeros((len(names), len(names)))
    for _ in range(HALVINGS):
        halves = [_halves(rows, of_rows, rng) for rows, of_rows in zip(scaled, groups, strict=True)]
        for i, j in itertools.combinations_with_replacement(range(len(names)), 2):
            distances[i, j] += frechet_distance(halves[i][0], halves[j][int(i == j)]) / size / HALVINGS
    return SimilarityRecord(
        tasks={name: len(features) for name, features in tasks.items()},
        words=f"Compared: {', '.join(names)}; encoder: {encoder}; {half:,} clips of each.",
        dimensions=size,
        clips_of_each=half,
        halvings=HALVINGS,
        measures={"frechet": (distances + np.triu(distances, 1).T).tolist()},
    )


def _halves(rows: Array, groups: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Two random halves; related clips are in one of them, but for the one group in the middle."""
    _, group = np.unique(groups, return_inverse=True)
    order = np.argsort(rng.permutation(group.max() + 1)[group], kind="stable")
    half = len(rows) // 2
    return rows[order[:half]], rows[order[half : 2 * half]]


def cka_of_variants(path: Path) -> Heat:
    """Linear CKA between every two variants of a task's clips, in the file that analysis/ablation.py has written."""
    features, task = read_variants(path), path.stem.removeprefix("ablation_")
    columns = features.output_columns
    raw, values = features.features.numpy().astype(np.float64), pd.DataFrame(1.0, list(columns), list(columns))
    for first, second in itertools.combinations(columns, 2):
        cka = linear_cka(raw[:, columns[first]], raw[:, columns[second]])
        values.loc[first, second] = values.loc[second, first] = cka
    caption = f"Linear CKA of the same {len(features):,} clips; 1: alike up to rotation and one scale."
    return Heat(f"cka_{task}", f"{task}: layers, pools and conditions", caption, values)


def frechet_distance(first: Array, second: Array) -> float:
    """Squared Frechet distance between two normal distributions fitted to (N, D) and (M, D) rows; biased upward with N < D.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``: Kilgour et al. (2019), https://arxiv.org/abs/1812.08466.
    """
    difference = first.mean(axis=0) - second.mean(axis=0)
    centred = [(rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1) for rows in (first, second)]
    # C = R'R, so the trace of (C1 C2)^(1/2) is the sum of the singular values of R1 R2'.
    root, other_root = (np.linalg.qr(rows).R for rows in centred)
    cross = np.linalg.norm(root @ other_root.T, "nuc")
    return float(difference @ difference + np.square(root).sum() + np.square(other_root).sum() - 2 * cross)


def linear_cka(first: Array, second: Array) -> float:
    """Linear centred kernel alignment of (N, D) and (N, E) features of the same N clips, in [0, 1].

    ``|Y'X|^2 / (|X'X| |Y'Y|)``: Kornblith et al. (2019), https://arxiv.org/abs/1905.00414.
    """
    centred, other_centred = first - first.mean(axis=0), second - second.mean(axis=0)
    scale = np.linalg.norm(centred.T @ centred) * np.linalg.norm(other_centred.T @ other_centred)
    return float(np.square(np.linalg.norm(other_centred.T @ centred)) / scale) if scale > 0 else float("nan")
