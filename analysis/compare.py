"""Encoders against each other on the same clips: scores, paired differences, ranks, and what each costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
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
from common.evaluation.predictions import KEYS
from common.evaluation.record import ComparisonRecord, Interval, Record, ScoreKind
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
    speed: float | None = None
    measured_on: str | None = None
    fails: tuple[str, ...] = ()


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
    return EncodersRecord(
        encoders={run.encoder: _cost(run, costs) for run in compared},
        tasks=tasks,
        pairs=[pair.model_copy(update={"holm_p_value": value}) for pair, value in zip(pairs, corrected, strict=True)],
        average_rank=_average_ranks(compared),
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


def _hits(runs: Sequence[Run]) -> dict[HeadKind, pd.DataFrame]:
    """Head -> whether each prediction is right: a row for each, by its group and split; a column for every encoder."""
    tables = {run.encoder: run.predictions() for run in runs}
    first = tables[runs[0].encoder]
    for run in runs:
        if not tables[run.encoder][list(KEYS)].equals(first[list(KEYS)]):
            raise FeatureFileError(
                f"{run.folder} and {runs[0].folder} hold predictions of different clips; classify both again"
            )
    index = [first["group"].where(first["group"] != "", first["clip_id"]), first["split"]]
    return {
        head: pd.DataFrame({name: table[head] == table["class_name"] for name, table in tables.items()})
        .astype(float)
        .set_index(index)
        for head in HEADS
    }


def _compare_task(runs: Sequence[Run], hits: Mapping[HeadKind, pd.DataFrame]) -> TaskComparison:
    run, protocol = runs[0], runs[0].first_protocol
    first = {head: _share_first(hits[head]) for head in HEADS}
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
                heads={
                    head: Score(accuracy=scored.accuracy, interval=scored.interval)
                    for head, scored in run.first_protocol.heads.items()
                },
                first={head: first[head][run.encoder] for head in HEADS},
            )
            for run in runs
        ],
    )


def _share_first(hits: pd.DataFrame) -> Mapping[str, float | None]:
    """Encoder -> the share of bootstraps over groups in which its mean over folds is the highest; ties are shared."""
    encoders = [str(name) for name in hits]
    counts: Array = hits.groupby(level=[0, 1]).size().unstack(fill_value=0).to_numpy()
    if len(counts) < MIN_GROUPS:
        return dict.fromkeys(encoders)
    sums = np.stack([hits[name].groupby(level=[0, 1]).sum().unstack(fill_value=0).to_numpy() for name in encoders])
    rng, firsts = np.random.default_rng(0), np.zeros(len(sums))
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(0, len(counts), len(counts)), minlength=len(counts))
        drawn = times @ counts
        means: Array = (times @ sums / np.maximum(drawn, 1))[:, drawn > 0].mean(axis=1)
        is_best = means >= means.max() - 1e-12
        firsts += is_best / is_best.sum()
    return dict(zip(encoders, (firsts / RESAMPLES).tolist(), strict=True))


def _pairs(task: TaskComparison, hits: Mapping[HeadKind, pd.DataFrame]) -> list[Pair]:
    pairs = []
    for first, second in itertools.combinations([score.encoder for score in task.scores], 2):
        for head, table in hits.items():
            index = [table.index.get_level_values(level).to_numpy() for level in (0, 1)]
            subtracted, other = (Hits(table[name].to_numpy(), *index) for name in (second, first))
            compared = compare_hits(subtracted, other, task.units == "groups")
            pairs.append(Pair(**compared.model_dump(), task=task.task, head=head, first=first, second=second))
    return pairs


def _average_ranks(runs: Sequence[Run]) -> dict[str, dict[HeadKind, float]]:
    """Encoder -> head -> mean rank over the tasks that all encoders have; equal accuracies share their ranks."""
    table = scores(runs)
    table = table[(table["kind"] == ScoreKind.HEAD) & (table["metric"] == "accuracy")]
    table = table[table["protocol"] == table.groupby("run")["protocol"].transform("first")]
    accuracy = table.pivot_table(index=["encoder", "head"], columns="task", values="value").dropna(axis=1)
    ranks = accuracy.groupby("head").rank(ascending=False).mean(axis=1).dropna().unstack()
    return {str(encoder): {head: float(row[head]) for head in HEADS} for encoder, row in ranks.iterrows()}


def _cost(run: Run, costs: Mapping[str, CheckRecord]) -> EncoderCost:
    features = run.record.features
    known = {"parameters": features.parameters, "width": features.width}
    measured = costs.get(features.slug)
    if measured is None or measured.checkpoint != features.checkpoint:  # of other weights
        return EncoderCost(**known)
    fails = tuple(checked.name for checked in measured.properties if checked.holds is False)
    measured_on = measured.cpu if measured.device == "cpu" else measured.device
    return EncoderCost(**known, speed=measured.speed, measured_on=measured_on, fails=fails)


def _method(runs: Sequence[Run], n_tests: int) -> str:
    """How the numbers were made, as a paragraph for a paper; where tasks differ, each way with its tasks."""
    divisions = dict.fromkeys(f"{run.study.task.title} ({run.first_protocol.division})" for run in runs)
    return (
        f"Encoders are frozen. On their embeddings we train a linear head and a head of three linear layers with "
        f"{_by_task(runs, _how_heads_are_fitted)}. Data sets and divisions: {'; '.join(divisions)}. "
        f"We report the accuracy, averaged over folds and seeds, with 95 % intervals by the jackknife over groups "
        f"(Student's t, Wilson's form). Encoders are compared on the same test clips by permutation tests that swap them "
        f"in whole groups, corrected for {n_tests} comparisons (Holm). Computed with {_by_task(runs, _computed_with)}."
    )


def _by_task(runs: Sequence[Run], describe: Callable[[Run], str]) -> str:
    """What is said of the runs: once if it is the same for all, else with the tasks that it holds for."""
    tasks: dict[str, list[str]] = {}
    for run in runs:
        tasks.setdefault(describe(run), []).append(run.study.task.title)
    if len(tasks) == 1:
        return next(iter(tasks))
    return ", or with ".join(f"{words} ({', '.join(dict.fromkeys(titles))})" for words, titles in tasks.items())


def _how_heads_are_fitted(run: Run) -> str:
    config, protocol = run.record.config, run.first_protocol
    fits = "; ".join(
        f"{head}: {recipe.epochs} epochs, batches of {recipe.batch_size}, learning rate {recipe.learning_rate:g}, "
        f"scaler {recipe.scaler}"
        for head, recipe in {"linear": config.recipe_linear, "three-layer": config.recipe_three_layer}.items()
    )
    refit = " and the head refitted on training and validation clips" * protocol.refit
    epoch = f"the epoch chosen on validation clips{refit}" if protocol.chooses_epoch else "the last epoch kept"
    return (
        f"the {config.recipe} recipe ({fits}; scalers are fitted on training clips alone), {epoch}; "
        f"{len(protocol.seeds)} seed{'s' * (len(protocol.seeds) > 1)}"
    )


def _computed_with(run: Run) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.record.versions.items())
    return f"{versions} on {run.record.cpu}"
