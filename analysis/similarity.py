"""How similar features are: of different tasks (distributions, subspaces, transfers), or of the same clips (CKA)."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.linalg import eigh
from scipy.spatial.distance import pdist, squareform

from analysis.maps import balanced_rows
from analysis.plots import Heat
from analysis.scores import Run
from analysis.variants import BASE, GRID, AnalysisRecord, read_variants
from common.arrays import Array
from common.config import FitConfig
from common.datasets import Prepared
from common.evaluation.outcomes import HeadFitter, Outcome
from common.evaluation.protocol import plan_fits
from common.evaluation.record import ComparisonRecord
from common.evaluation.scores import compare_heads, main_score
from common.features import ENCODER_SETTINGS, FeatureSet
from common.heads import Job, fit_recipe_scaler, fit_scaler, recipe_for
from common.progress import progress_bar
from common.text_table import percent

SIMILARITY_FILE = "similarity.json"
PRINCIPAL = 32  # components of a principal subspace
MEASURES = {
    "frechet": ("Fréchet distance between tasks", "Squared, per dimension; 0: alike"),
    "mmd": ("Maximum mean discrepancy between tasks", "Squared, Gaussian kernel; 0: alike"),
    "subspace": ("Overlap of principal subspaces", f"First {PRINCIPAL} components; 1: the same"),
}
COSTS = {
    "scaler": "What another task's scaler costs",
    "subspace": f"What another task's {PRINCIPAL} principal directions cost",
}
HALVINGS = 5


class TransferCost(ComparisonRecord):
    """What a task's linear head loses with what was fitted on another task's clips, or, as source, its own training clips."""

    target: str
    source: str
    what: str  # one of COSTS
    score: float


class SimilarityRecord(AnalysisRecord):
    """The content of similarity.json: every measure between every two tasks, on the diagonal between two halves of one; and
    the costs of transfers."""

    script = "analysis/task_similarity.py"

    tasks: dict[str, int]  # name -> number of clips
    words: str  # what was compared, for readers
    dimensions: int
    clips_of_each: int  # in one measurement
    halvings: int
    measures: dict[str, list[list[float]]]  # one of MEASURES -> (task, task)
    transfer: list[TransferCost]

    def heats(self) -> Iterator[Heat]:
        """Every measure, then the costs of transfers in points, if there are any."""
        names = list(self.tasks)
        for measure, (title, how) in MEASURES.items():
            caption = (
                f"{how}. Features standardised together, {self.clips_of_each:,} clips of each task, means of {self.halvings} "
                "halvings. Diagonal: two halves of the same task, which is what no difference looks like."
            )
            if measure == "subspace":
                caption += f" By chance {PRINCIPAL / self.dimensions:.2f}."
            values = pd.DataFrame(self.measures[measure], names, names)
            yield Heat(f"similarity_{measure}", title, caption, values)
        caption = (
            "Row: the task that is scored, by its official division, linear head, one seed. Column: the task whose clips "
            "the scaler or subspace was fitted on. Difference in score to the task's own, points (red: loss); in "
            "brackets where its 95 % interval covers 0."
        )
        for what, title in COSTS.items() if self.transfer else ():
            points, is_uncertain = np.full((len(names),) * 2, np.nan), np.ones((len(names),) * 2, dtype=bool)
            rows = list(names)
            for cost in (cost for cost in self.transfer if cost.what == what):
                row, column = names.index(cost.target), names.index(cost.source)
                if row == column:
                    rows[row] += f" (own: {percent(cost.score)} %)"
                else:
                    points[row, column] = 100 * cost.difference
                    is_uncertain[row, column] = cost.interval is None or cost.interval[0] <= 0 <= cost.interval[1]
            yield Heat(f"transfer_{what}", title, caption, pd.DataFrame(points, rows, names), is_uncertain)


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


def compare_tasks(tasks: Mapping[str, FeatureSet], runs: Mapping[str, Run], with_transfer: bool) -> SimilarityRecord:
    """Every measure between every two tasks."""
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
    measures = {name: np.zeros((len(names), len(names))) for name in MEASURES}
    for _ in range(HALVINGS):
        halves = [_halves(rows, of_rows, rng) for rows, of_rows in zip(scaled, groups, strict=True)]
        bases = [tuple(map(principal_subspace, pair)) for pair in halves]
        for i, j in itertools.combinations_with_replacement(range(len(names)), 2):
            first, second = halves[i][0], halves[j][int(i == j)]
            measures["frechet"][i, j] += frechet_distance(first, second) / size / HALVINGS
            measures["mmd"][i, j] += mmd(first, second) / HALVINGS
            measures["subspace"][i, j] += subspace_overlap(bases[i][0], bases[j][int(i == j)]) / HALVINGS
    transfer: list[TransferCost] = []
    data = {name: runs[name].study.download[0][0] for name in tasks}
    for target in progress_bar(iterable=names, desc="transfers", unit="task") if with_transfer else ():
        # Not from another version of the same data: its clips may be the target's test clips.
        others = {name: features for name, features in tasks.items() if data[name] != data[target]}
        transfer += transfer_costs(target, tasks[target], others, runs[target].record.config)
    return SimilarityRecord(
        tasks={name: len(features) for name, features in tasks.items()},
        words=f"Compared: {', '.join(names)}; encoder: {runs[names[0]].encoder}; {half:,} clips of each.",
        dimensions=size,
        clips_of_each=half,
        halvings=HALVINGS,
        measures={name: (matrix + np.triu(matrix, 1).T).tolist() for name, matrix in measures.items()},
        transfer=transfer,
    )


def _halves(rows: Array, groups: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Two random halves; related clips are in one of them, but for the one group in the middle."""
    _, group = np.unique(groups, return_inverse=True)
    order = np.argsort(rng.permutation(group.max() + 1)[group], kind="stable")
    half = len(rows) // 2
    return rows[order[:half]], rows[order[half : 2 * half]]


def transfer_costs(
    target: str, features: FeatureSet, others: Mapping[str, FeatureSet], config: FitConfig
) -> Iterator[TransferCost]:
    """What the linear head of a task loses with the scaler, and the principal subspace, of other tasks: theirs are fitted on all
    their rows, its own on each split's training rows. Of `config`, the recipe and the first seed are used."""
    recipe, raw = recipe_for("linear", config), features.features.numpy()
    jobs = plan_fits("official", Prepared(features), config.train_test_split, [config.random_seed]).jobs
    # Rows are already scaled, so the recipe must not scale them.
    fitter = HeadFitter(config.model_copy(update={"scaler": "none", "whiten_eps": None}), torch.device("cpu"))

    def fit(what: str, fitted_on: Array, its_jobs: Sequence[Job]) -> list[Outcome]:
        if what == "subspace":  # of standardised rows: whitened ones have no principal directions
            standard = fit_scaler("standard", fitted_on)
            rows = standard(raw) @ principal_subspace(standard(fitted_on).astype(np.float64)).astype(np.float32)
        else:
            rows = fit_recipe_scaler(recipe, fitted_on)(raw)
        scaled = torch.from_numpy(np.ascontiguousarray(rows, np.float32))
        return fitter.outcomes("linear", replace(features, features=scaled), its_jobs)

    for what in COSTS:
        outcomes = {target: [outcome for job in jobs for outcome in fit(what, raw[job.split.train], [job])]}
        outcomes |= {source: fit(what, other.features.numpy(), jobs) for source, other in others.items()}
        for source, fitted in outcomes.items():
            compared = compare_heads(outcomes[target], fitted, features).model_dump()
            score = main_score(fitted, features)
            yield TransferCost(**compared, target=target, source=source, what=what, score=score)


def principal_subspace(rows: Array, size: int = PRINCIPAL) -> Array:
    """(D, k) orthonormal directions of the largest variance; k is `size`, or fewer if there are fewer rows."""
    centred, size = rows - rows.mean(axis=0), min(size, len(rows) - 1, rows.shape[1])
    directions: Array = eigh(centred.T @ centred)[1]  # by increasing variance
    return directions[:, ::-1][:, :size]


def cka_of_variants(path: Path) -> Heat:
    """Linear CKA between the layers, the pools of the baseline's layer, and all other variants of one task's clips, which
    analysis/ablation.py has extracted into this file."""
    features, task = read_variants(path), path.stem.removeprefix("ablation_")
    hidden = {output.name for output in GRID if output.pool != BASE.pool and output.layer != BASE.layer}
    columns = {name: column for name, column in features.output_columns.items() if name not in hidden}
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
    covariance, other_covariance = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    variances, directions = eigh(covariance)
    root = (directions * np.sqrt(variances.clip(0))) @ directions.T
    # The trace of (C1 C2)^(1/2), from the symmetric C1^(1/2) C2 C1^(1/2), whose eigenvalues are real.
    cross = np.sqrt(eigh(root @ other_covariance @ root, eigvals_only=True).clip(0)).sum()
    return float(difference @ difference + np.trace(covariance) + np.trace(other_covariance) - 2 * cross)


def mmd(first: Array, second: Array) -> float:
    """Squared maximum mean discrepancy, unbiased (so a little below 0 for some samples of one distribution), with a Gaussian
    kernel as wide as the median distance of all rows: Gretton et al., "A Kernel Two-Sample Test" (2012), eq. 3.
    """
    distances = pdist(np.concatenate([first, second]), "sqeuclidean")
    kernel = squareform(np.exp(-distances / max(np.median(distances), 1e-12)))  # with 0 on the diagonal
    n, m = len(first), len(second)
    within = kernel[:n, :n].sum() / (n * (n - 1)) + kernel[n:, n:].sum() / (m * (m - 1))
    return float(within - 2 * kernel[:n, n:].mean())


def subspace_overlap(first: Array, second: Array) -> float:
    """The mean squared cosine of the principal angles (Bjorck & Golub 1973) of two (D, k) orthonormal bases: 1 if one
    contains the other, k / D by chance."""
    return float(np.square(first.T @ second).sum() / min(first.shape[1], second.shape[1]))


def linear_cka(first: Array, second: Array) -> float:
    """Linear centred kernel alignment of (N, D) and (N, E) features of the same N clips, in [0, 1].

    ``|Y'X|^2 / (|X'X| |Y'Y|)``: Kornblith et al. (2019), https://arxiv.org/abs/1905.00414.
    """
    centred, other_centred = first - first.mean(axis=0), second - second.mean(axis=0)
    scale = np.linalg.norm(centred.T @ centred) * np.linalg.norm(other_centred.T @ other_centred)
    return float(np.square(np.linalg.norm(other_centred.T @ centred)) / scale) if scale > 0 else float("nan")
