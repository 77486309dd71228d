"""Encoders against each other on the same clips: scores, paired differences, ranks, and what each costs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pandas as pd
from pydantic import ValidationError

from analysis.scores import ENCODERS_FOLDER, Run, by_task, scores
from common.arrays import Array
from common.encoder.check import CheckRecord
from common.errors import UserError
from common.evaluation.intervals import MIN_GROUPS, PERMUTATIONS, holm
from common.evaluation.record import ComparisonRecord, HeadRecord, Interval, Record, ScoreKind
from common.evaluation.scores import Hits, compare_hits
from common.features import FeatureFileError
from common.files import DamagedFileError, read_json
from common.heads import HEADS, HeadKind

RESAMPLES = 2000
LEVEL = 0.05


class AnalysisRecord(Record):
    """What an analysis has written as JSON; `script` writes it again."""

    script: ClassVar[str]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it; UserError if it is damaged or of an earlier version."""
        try:
            return cls.model_validate_json(read_json(path))
        except (ValidationError, DamagedFileError) as error:
            raise UserError(f"{path} is damaged or of an earlier version; run {cls.script} again") from error


class Score(Record):
    """An accuracy with its 95 % interval."""

    accuracy: float
    interval: Interval | None

    @classmethod
    def of(cls, scored: HeadRecord) -> Score:
        return cls(accuracy=scored.accuracy, interval=scored.interval)


class EncoderCost(Record):
    """What an encoder costs; None where it is unknown.

    Attributes:
        parameters: their number.
        width: numbers per clip.
        speed: seconds of audio per second, as `common.encoder.check` measured it.
        measured_on: the CPU or GPU of that measurement.
        fails: the properties that `common.encoder.check` found not to hold.
    """

    parameters: int | None
    width: int | None
    speed: float | None
    measured_on: str | None
    fails: list[str]


class EncoderScore(Record):
    """One encoder on one task.

    Attributes:
        encoder: for readers.
        folder: of its run.
        heads: both heads' scores.
        first: head -> the share of group bootstraps in which the encoder is first; None with too few groups.
    """

    encoder: str
    folder: str
    heads: dict[HeadKind, Score]
    first: dict[HeadKind, float | None]


class Pair(ComparisonRecord):
    """Two encoders on the same clips of one task, with one head: first minus second. `holm_p_value` is corrected for
    all pairs, tasks and heads."""

    task: str
    head: HeadKind
    first: str
    second: str

    @property
    def differs(self) -> bool:
        """Whether the difference is significant after the correction."""
        return self.holm_p_value is not None and self.holm_p_value < LEVEL


class TaskComparison(Record):
    """All encoders on one task.

    Attributes:
        task, title, division: as its runs have them.
        hash: of the protocol that all of them share.
        clips, classes: their numbers.
        units: what is resampled and swapped: groups, or clips where groups are unknown.
        n_units: their number.
        chance: the majority class.
        scores: in the order of the runs.
    """

    task: str
    title: str
    division: str
    hash: str
    clips: int
    classes: int
    units: str
    n_units: int
    chance: float
    scores: list[EncoderScore]

    def score_of(self, encoder: str) -> EncoderScore | None:
        """The scores of one encoder; None if it has not been run."""
        return next((score for score in self.scores if score.encoder == encoder), None)


class EncodersRecord(Record):
    """The content of encoders.json.

    Attributes:
        encoders: in the order of the runs -> what they cost.
        tasks: those that at least two encoders have.
        pairs: every two encoders on every task, with both heads.
        average_rank: encoder -> head -> mean rank (1: best) over the tasks that all encoders have; empty without any.
        left_out: runs that are not compared, with the reason.
        method: how the numbers were made, for a paper.
    """

    encoders: dict[str, EncoderCost]
    tasks: list[TaskComparison]
    pairs: list[Pair]
    average_rank: dict[str, dict[HeadKind, float]]
    left_out: list[str]
    method: str

    def can_tell(self, task: TaskComparison) -> bool:
        """Whether the tests of a task can be significant at all."""
        return can_tell(task.n_units, len(self.pairs))

    def leaders(self, task: TaskComparison, head: HeadKind) -> set[str]:
        """The best encoder of a task, and those that are not significantly worse; none if the tests could not tell."""
        if not self.can_tell(task):
            return set()
        best = max(task.scores, key=lambda score: score.heads[head].accuracy).encoder
        pairs = [pair for pair in self.pairs if (pair.task, pair.head) == (task.task, head) and pair.differs]
        worse = {name for pair in pairs for name in (pair.first, pair.second) if best in (pair.first, pair.second)}
        return {score.encoder for score in task.scores} - (worse - {best})


def can_tell(n_units: int, n_tests: int) -> bool:
    """Whether any of `n_tests` tests that swap `n_units` groups can be significant.

    Swapping G groups has 2^G outcomes, so the smallest p-value is 2 / 2^G on two sides, and never less than one in the
    number of permutations.
    """
    return max(2.0 ** (1 - n_units), 1 / (PERMUTATIONS + 1)) * n_tests < LEVEL


def compare_encoders(runs: Sequence[Run], costs: Mapping[str, CheckRecord]) -> EncodersRecord | None:
    """Compare the runs of every task that has more than one encoder; None if there is none.

    Only runs with the same protocol hash are compared: the same clips, division, recipe and seeds.

    Args:
        costs: short name of an encoder -> what was measured of it.

    Raises:
        FeatureFileError: a run's predictions are missing or damaged.
    """
    left_out: list[str] = []
    tasks: list[TaskComparison] = []
    pairs: list[Pair] = []
    compared: list[Run] = []
    for runs_of_task in by_task(runs).values():
        chosen = _comparable(runs_of_task, left_out)
        if len(chosen) < 2:
            continue
        hits = _hits(chosen)
        compared += chosen
        tasks.append(_compare_task(chosen, hits))
        pairs += _pairs(tasks[-1], hits)
    if not tasks:
        return None
    corrected = holm([pair.p_value for pair in pairs])
    encoders = {run.encoder: _cost(run, costs) for run in compared}
    return EncodersRecord(
        encoders=encoders,
        tasks=tasks,
        pairs=[pair.model_copy(update={"holm_p_value": value}) for pair, value in zip(pairs, corrected, strict=True)],
        average_rank=_average_ranks(compared, len(encoders)),
        left_out=left_out,
        method=_method(compared, len(pairs)),
    )


def read_costs(folder: Path) -> dict[str, CheckRecord]:
    """Short name of an encoder -> what was measured of it, from the files below the results."""
    return {path.stem: CheckRecord.load(path) for path in sorted((folder / ENCODERS_FOLDER).glob("*.json"))}


def _comparable(runs: Sequence[Run], left_out: list[str]) -> list[Run]:
    """The runs with the protocol of the first one, one an encoder; the others are added to `left_out`."""
    first = runs[0]
    chosen: dict[str, Run] = {}
    for run in runs:
        identity, expected = run.first_protocol.identity, first.first_protocol.identity
        if identity.hash != expected.hash:
            left_out.append(f"{run.folder}: {', '.join(identity.differences(expected))} not as in {first.folder}")
        elif run.encoder in chosen:
            left_out.append(f"{run.folder}: {run.encoder} is already there from {chosen[run.encoder].folder}")
        else:
            chosen[run.encoder] = run
    return list(chosen.values())


def _hits(runs: Sequence[Run]) -> dict[str, dict[HeadKind, Hits]]:
    """Encoder -> head -> its hits, all in the same order."""
    hits: dict[str, dict[HeadKind, Hits]] = {}
    keys: pd.DataFrame | None = None
    for run in runs:
        table = run.predictions()
        if keys is not None and not keys.equals(table[["seed", "split", "clip_id"]]):
            raise FeatureFileError(
                f"{run.folder} and {runs[0].folder} hold predictions of different clips; classify both again"
            )
        keys = table[["seed", "split", "clip_id"]]
        groups = table["group"].where(table["group"] != "", table["clip_id"]).to_numpy()
        splits = table["split"].to_numpy()
        hits[run.encoder] = {
            head: Hits((table[head] == table["class_name"]).to_numpy(float), groups, splits) for head in HEADS
        }
    return hits


def _compare_task(runs: Sequence[Run], hits: Mapping[str, Mapping[HeadKind, Hits]]) -> TaskComparison:
    run, protocol = runs[0], runs[0].first_protocol
    first = {head: _share_first({name: of_heads[head] for name, of_heads in hits.items()}) for head in HEADS}
    return TaskComparison(
        task=run.study.name,
        title=run.study.task.title,
        division=protocol.division,
        hash=protocol.identity.hash,
        clips=run.record.features.clips,
        classes=len(run.record.features.class_names),
        units=protocol.comparison.units,
        n_units=protocol.comparison.n_units,
        chance=protocol.majority_class.accuracy,
        scores=[
            EncoderScore(
                encoder=run.encoder,
                folder=str(run.folder),
                heads={head: Score.of(scored) for head, scored in run.first_protocol.heads.items()},
                first={head: first[head][run.encoder] for head in HEADS},
            )
            for run in runs
        ],
    )


def _share_first(hits: Mapping[str, Hits]) -> Mapping[str, float | None]:
    """Encoder -> the share of bootstraps over groups in which its mean over folds is the highest; ties are shared."""
    table = pd.DataFrame({encoder: of_encoder.hits for encoder, of_encoder in hits.items()})
    where = next(iter(hits.values()))
    cells = table.groupby([where.groups, where.splits])
    counts: Array = cells.size().unstack(fill_value=0).to_numpy()
    if len(counts) < MIN_GROUPS:
        return dict.fromkeys(hits)
    sums = np.stack([cells[encoder].sum().unstack(fill_value=0).to_numpy() for encoder in hits])
    rng, firsts = np.random.default_rng(0), np.zeros(len(hits))
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(0, len(counts), len(counts)), minlength=len(counts))
        drawn = times @ counts
        means: Array = (times @ sums / np.maximum(drawn, 1))[:, drawn > 0].mean(axis=1)
        is_best = means >= means.max() - 1e-12
        firsts += is_best / is_best.sum()
    return dict(zip(hits, (firsts / RESAMPLES).tolist(), strict=True))


def _pairs(task: TaskComparison, hits: Mapping[str, Mapping[HeadKind, Hits]]) -> list[Pair]:
    pairs = []
    for (first, hits_of_first), (second, hits_of_second) in itertools.combinations(hits.items(), 2):
        for head in HEADS:
            compared = compare_hits(hits_of_second[head], hits_of_first[head], task.units == "groups")
            pairs.append(Pair(**compared.model_dump(), task=task.task, head=head, first=first, second=second))
    return pairs


def _average_ranks(runs: Sequence[Run], n_encoders: int) -> dict[str, dict[HeadKind, float]]:
    """Encoder -> head -> mean rank over the tasks that all encoders have; equal accuracies share their ranks."""
    table = scores(runs)
    table = table[(table["kind"] == ScoreKind.HEAD) & (table["metric"] == "accuracy")]
    table = table[table["protocol"] == table.groupby("run")["protocol"].transform("first")]
    ranks: dict[str, dict[HeadKind, float]] = {}
    for head in HEADS:
        accuracy = table[table["head"] == head].pivot_table(index="encoder", columns="task", values="value")
        shared = accuracy.dropna(axis=1)
        if len(accuracy) < n_encoders or shared.empty:
            return {}
        for encoder, rank in shared.rank(ascending=False).mean(axis=1).items():
            ranks.setdefault(str(encoder), {})[head] = float(rank)
    return ranks


def _cost(run: Run, costs: Mapping[str, CheckRecord]) -> EncoderCost:
    features = run.record.features
    cost = EncoderCost(parameters=features.parameters, width=features.width, speed=None, measured_on=None, fails=[])
    measured = costs.get(features.slug)
    if measured is None or measured.checkpoint != features.checkpoint:  # of other weights
        return cost
    fails = [checked.name for checked in measured.properties if checked.holds is False]
    measured_on = measured.cpu if measured.device == "cpu" else measured.device
    return cost.model_copy(update={"speed": measured.speed, "measured_on": measured_on, "fails": fails})


def _method(runs: Sequence[Run], n_tests: int) -> str:
    """How the numbers were made, as a paragraph for a paper."""
    record, protocol = runs[0].record, runs[0].first_protocol
    recipes = {"linear": record.config.recipe_linear, "three-layer": record.config.recipe_three_layer}
    fits = "; ".join(
        f"{head}: {recipe.epochs} epochs, batches of {recipe.batch_size}, learning rate {recipe.learning_rate:g}, "
        f"scaler {recipe.scaler}"
        for head, recipe in recipes.items()
    )
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    divisions = dict.fromkeys(f"{run.study.task.title} ({run.first_protocol.division})" for run in runs)
    how = (
        f"the epoch chosen on validation clips{' and the head refitted on training and validation clips' * protocol.refit}"
        if protocol.chooses_epoch
        else "the last epoch kept"
    )
    return (
        f"Encoders are frozen. On their embeddings we train a linear head and a head of three linear layers with the "
        f"{record.config.recipe} recipe ({fits}; scalers are fitted on training clips alone), {how}; "
        f"{len(protocol.seeds)} seed{'s' * (len(protocol.seeds) > 1)}. Data sets and divisions: {'; '.join(divisions)}. "
        f"We report the accuracy, averaged over folds and seeds, with 95 % intervals by the jackknife over groups "
        f"(Student's t, Wilson's form). Encoders are compared on the same test clips by permutation tests that swap them "
        f"in whole groups, corrected for {n_tests} comparisons (Holm). Computed with {versions} on {record.cpu}."
    )
