"""What the embeddings of finished runs say without any head: whether a clip's neighbours are of its class, and whether k-means
finds the classes."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from analysis.scores import WIDTH, Run, new_parser, output_folder, runs_for
from common.files import write_atomically, write_csv
from common.flags import run as run_script
from common.progress import progress_bar
from common.text_table import as_markdown, as_text, percent, range_of

if TYPE_CHECKING:  # --help should not wait for numpy
    from common.arrays import Array

QUERIES = 5000  # clips whose neighbours are looked up, drawn at random from a larger set
BLOCK = 1 << 24  # similarities in memory at a time
SEED = 42
NOTE = (
    "Cosine similarity of standardised embeddings. Neighbours of a clip's own group (recording, speaker, patient) are left out, "
    "because they are near for reasons that have nothing to do with the class. Several labels a clip: a neighbour counts if it "
    "shares one. P@1, P@10: the share of the nearest clips that count. mAP@R: average precision among the R nearest, R being how "
    "many count in all (Musgrave et al. 2020). Chance: the share of all candidates that count. ARI, AMI: agreement of k-means, "
    "with as many clusters as classes, with the classes; 0 by chance. 95 %: of P@1, by groups."
)


class Neighbours(NamedTuple):
    """A run's scores, as shares; None: too few groups for an interval, or several labels a clip, which have no clusters."""

    task: str
    encoder: str
    clips: int
    queries: int  # clips whose neighbours were looked up
    left_out: int  # those of them of which no clip of another group counts
    p1: float
    p1_low: float | None
    p1_high: float | None
    p10: float
    map_r: float
    chance: float
    ari: float | None
    ami: float | None


def neighbours_of(run: Run) -> Neighbours:
    """FeatureFileError if the run's feature file is missing or has changed."""
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

    from common.evaluation.intervals import share_interval
    from common.heads import fit_scaler

    features = run.features
    raw, labels = features.features.numpy(), features.labels.numpy()
    values = fit_scaler("standard", raw)(raw)  # of all rows: there is nothing to train, and no score to be had by it
    groups = np.arange(len(raw)) if features.groups is None else np.unique(features.groups, return_inverse=True)[1]
    queries = np.sort(np.random.default_rng(SEED).permutation(len(raw))[:QUERIES])
    scores = np.array([*_retrieve(values, labels, groups, queries)])  # (queries, 4)
    kept = np.isfinite(scores[:, 0])
    p1, p10, map_r, chance = scores[kept].mean(axis=0)
    interval = share_interval(scores[kept, 0], groups[queries][kept], np.zeros(kept.sum()))
    ari = ami = None
    if not features.is_multilabel:
        clusters = KMeans(len(features.class_names), n_init=3, random_state=SEED).fit_predict(values)
        ari, ami = (float(score(labels, clusters)) for score in (adjusted_rand_score, adjusted_mutual_info_score))
    low, high = interval or (None, None)
    sizes = (len(raw), len(queries), int((~kept).sum()))
    return Neighbours(run.study.name, run.encoder, *sizes, p1, low, high, p10, map_r, chance, ari, ami)


def _retrieve(values: Array, labels: Array, groups: Array, queries: Array) -> Iterator[tuple[float, ...]]:
    """P@1, P@10, mAP@R, chance of every query (a row); NaN where nothing counts. (N, D) values; labels (N,), or (N, C) bool."""
    import numpy as np

    unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    sets = labels.astype(np.float32)
    step = max(1, BLOCK // len(values))
    blocks = [queries[start : start + step] for start in range(0, len(queries), step)]
    for rows in progress_bar(iterable=blocks, desc="looking up neighbours", unit="block", leave=False):
        similarity = unit[rows] @ unit.T
        counts = sets[rows] @ sets.T > 0 if labels.ndim == 2 else labels[rows, None] == labels
        is_candidate = groups[rows, None] != groups
        similarity[~is_candidate] = -np.inf
        order = np.argsort(-similarity, axis=1, kind="stable")
        hits = np.take_along_axis(counts & is_candidate, order, axis=1)
        for row, n_candidates in zip(hits, is_candidate.sum(axis=1), strict=True):
            relevant = int(row.sum())
            if not relevant:
                yield (np.nan,) * 4
                continue
            precisions = np.cumsum(row[:relevant]) / np.arange(1, relevant + 1)
            nearest = row[: min(10, n_candidates)]
            yield float(row[0]), nearest.mean(), (precisions * row[:relevant]).mean(), relevant / n_candidates


def main() -> None:
    arguments = new_parser(__doc__).parse_args()
    runs, folder = runs_for(arguments), output_folder(arguments)
    rows = [neighbours_of(run) for run in runs]
    table = [["task", "encoder", "clips", "P@1", "95 %", "P@10", "mAP@R", "chance", "ARI", "AMI", "left out"]]
    for row in rows:
        interval = None if row.p1_low is None or row.p1_high is None else (row.p1_low, row.p1_high)
        cells = [row.task, row.encoder, f"{row.clips:,}", percent(row.p1), range_of(interval)]
        cells += map(percent, (row.p10, row.map_r, row.chance))
        cells += ["-" if agreement is None else f"{agreement:.2f}" for agreement in (row.ari, row.ami)]
        table.append([*cells, f"{row.left_out:,}"])
    print(as_text(table, left=2))
    print(textwrap.fill(NOTE, WIDTH))
    write_csv(folder / "neighbours.csv", [Neighbours._fields, *rows])
    write_atomically(folder / "neighbours.md", f"{as_markdown(table, left=2)}\n\n{NOTE}\n".encode())
    print(f"-> {folder / 'neighbours.csv'}, {folder / 'neighbours.md'}")


if __name__ == "__main__":
    run_script(main)
