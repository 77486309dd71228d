"""Encoders against each other on the same clips: scores, paired differences, ranks, and what each costs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from analysis.ablation_scores import ScoreRecord
from analysis.runs import ENCODERS_FOLDER, Run, describe_encoder
from common.arrays import Array
from common.encoder.check import CheckRecord
from common.encoder_name import slug_of
from common.evaluation.predictions import prefix_of
from common.evaluation.record import Interval, ProtocolRecord, RunRecord
from common.evaluation.uncertainty import MIN_GROUPS, PERMUTATIONS, difference_interval, holm, paired_p_value
from common.features import FeatureFileError
from common.heads import HEADS, HeadKind

RESAMPLES = 2000
LEVEL = 0.05
KEYS = ["seed", "split", "clip_id"]
# Settings of the heads that two runs must share to be compared.
SAME = (
    "recipe",
    "seeds",
    "random_seed",
    "epochs",
    "batch_size",
    "learning_rate",
    "hidden_dim",
    "scaler",
    "whiten_eps",
    "refit",
)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class EncoderCost(_Record):
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
    fails: list[str] = []


class EncoderScore(_Record):
    """One encoder on one task: both heads, and the share of group bootstraps in which it is first; None with too few
    groups. `folder` is that of its run."""

    encoder: str
    folder: str = ""
    heads: dict[HeadKind, ScoreRecord]
    first: dict[HeadKind, float | None]


class TaskComparison(_Record):
    """All encoders on one task.

    Attributes:
        task, title, division: as its runs have them.
        clips, classes: their numbers.
        units: what is resampled and swapped: groups, or clips where groups are unknown.
        n_units: their number.
        chance: the majority class.
        scores: in the order of the runs.
    """

    task: str
    title: str
    division: str
    clips: int
    classes: int
    units: str
    n_units: int
    chance: float
    scores: list[EncoderScore]


class PairRecord(_Record):
    """Two encoders on the same clips of one task, with one head: first minus second.

    Attributes:
        p_value: of a test that swaps them in whole units; `holm_p_value` is corrected for all pairs, tasks and heads.
    """

    task: str
    head: HeadKind
    first: str
    second: str
    difference: float
    interval: Interval | None
    p_value: float | None
    holm_p_value: float | None

    @property
    def differs(self) -> bool:
        """Whether the difference is significant after the correction."""
        return self.holm_p_value is not None and self.holm_p_value < LEVEL


def smallest_p_value(n_units: int) -> float:
    """The smallest that a test can have: swapping G groups has 2^G outcomes, so it is 2 / 2^G on two sides, and never less
    than one in the number of permutations."""
    return float(max(2.0 ** (1 - n_units), 1 / (PERMUTATIONS + 1)))


class EncodersRecord(_Record):
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
    pairs: list[PairRecord]
    average_rank: dict[str, dict[HeadKind, float]]
    left_out: list[str]
    method: str

    @property
    def common_tasks(self) -> list[str]:
        """The tasks that all encoders have."""
        return [task.task for task in self.tasks if len(task.scores) == len(self.encoders)]

    def can_tell(self, task: TaskComparison) -> bool:
        """Whether the tests of a task can be significant at all."""
        return smallest_p_value(task.n_units) * len(self.pairs) < LEVEL

    def leaders(self, task: TaskComparison, head: HeadKind) -> set[str]:
        """The best encoder of a task, and those that are not significantly worse; none if the tests could not tell."""
        if not self.can_tell(task):
            return set()
        own = [pair for pair in self.pairs if (pair.task, pair.head) == (task.task, head)]
        best = max(task.scores, key=lambda score: score.heads[head].accuracy).encoder
        worse = {
            ({pair.first, pair.second} - {best}).pop()
            for pair in own
            if best in (pair.first, pair.second) and pair.differs
        }
        return {score.encoder for score in task.scores} - worse


@dataclass(frozen=True)
class _Hits:
    """Which predictions of a run are right, in the order of (seed, split, clip).

    Attributes:
        index: (M,) seed, split and clip of each.
        groups: (M,) the group, or the clip where groups are unknown.
        splits: (M,).
        heads: (M,) float hits of each head.
        has_groups: whether groups are known.
    """

    index: pd.Index
    groups: Array
    splits: Array
    heads: dict[HeadKind, Array]
    has_groups: bool

    @classmethod
    def read(cls, one: Run) -> _Hits:
        """From a run's predictions; FeatureFileError if they are missing or damaged."""
        path = one.folder / f"{prefix_of(one.first_protocol)}predictions.csv"
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False).sort_values(KEYS).set_index(KEYS)
            has_groups = bool((table["group"] != "").any())
            clips = table.index.get_level_values("clip_id").to_numpy()
            return cls(
                table.index,
                np.where(table["group"] != "", table["group"], clips) if has_groups else clips,
                table.index.get_level_values("split").to_numpy(),
                {head: (table[head] == table["class_name"]).to_numpy(float) for head in HEADS},
                has_groups,
            )
        except FileNotFoundError as error:
            raise FeatureFileError(f"{path} is missing; classify again") from error
        except (KeyError, ValueError, OverflowError) as error:  # pandas' own and UnicodeDecodeError are ValueErrors
            raise FeatureFileError(f"{path} is damaged ({error}); classify again with --overwrite") from error


def compare_encoders(runs: Sequence[Run], costs: Mapping[str, CheckRecord]) -> EncodersRecord | None:
    """Compare the runs of every task that has more than one encoder; None if there is none.

    Args:
        costs: short name of an encoder -> what was measured of it.

    Raises:
        FeatureFileError: a run's predictions are missing or damaged.
    """
    left_out: list[str] = []
    tasks: list[TaskComparison] = []
    pairs: list[PairRecord] = []
    compared: list[Run] = []
    for _, group in itertools.groupby(runs, key=lambda one: one.study.name):
        own = _comparable(list(group), left_out)
        if len(own) < 2:
            continue
        hits = {name: _Hits.read(one) for name, one in own.items()}
        reference = next(iter(hits.values()))
        for name in [name for name, each in hits.items() if not each.index.equals(reference.index)]:
            left_out.append(f"{own[name].folder}: it was tested on other clips than {next(iter(own.values())).folder}")
            del hits[name], own[name]
        if len(own) < 2:
            continue
        compared += own.values()
        tasks.append(_compare_task(own, hits))
        pairs += _pairs(next(iter(own.values())).study.name, hits)
    if not tasks:
        return None
    corrected = holm([pair.p_value for pair in pairs])
    pairs = [pair.model_copy(update={"holm_p_value": value}) for pair, value in zip(pairs, corrected, strict=True)]
    encoders = {describe_encoder(one.record): _cost(one, costs) for one in compared}
    return EncodersRecord(
        encoders=encoders,
        tasks=tasks,
        pairs=pairs,
        average_rank=_average_ranks(tasks, list(encoders)),
        left_out=left_out,
        method=_method(compared, len(pairs)),
    )


def read_costs(folder: Path) -> dict[str, CheckRecord]:
    """Short name of an encoder -> what was measured of it, from the files below the results."""
    return {path.stem: CheckRecord.load(path) for path in sorted((folder / ENCODERS_FOLDER).glob("*.json"))}


def _comparable(runs: Sequence[Run], left_out: list[str]) -> dict[str, Run]:
    """Encoder -> its run, for the runs that were made like the first one; the others are added to `left_out`."""
    chosen: dict[str, Run] = {}
    first = runs[0]
    for one in runs:
        name = describe_encoder(one.record)
        different = [key for key in SAME if getattr(one.record.config, key) != getattr(first.record.config, key)]
        if _protocol(one).protocol != _protocol(first).protocol:
            different.append("division")
        if different:
            left_out.append(f"{one.folder}: {', '.join(different)} not as in {first.folder}")
        elif name in chosen:
            left_out.append(f"{one.folder}: {name} is already there from {chosen[name].folder}")
        else:
            chosen[name] = one
    return chosen


def _protocol(one: Run) -> ProtocolRecord:
    return one.protocols[one.first_protocol]


def _compare_task(runs: Mapping[str, Run], hits: Mapping[str, _Hits]) -> TaskComparison:
    one, any_hits = next(iter(runs.values())), next(iter(hits.values()))
    first = {head: _share_first({name: each.heads[head] for name, each in hits.items()}, any_hits) for head in HEADS}
    return TaskComparison(
        task=one.study.name,
        title=one.study.task.title,
        division=_protocol(one).protocol,
        clips=one.record.features.clips,
        classes=len(one.record.features.class_names),
        units="groups" if any_hits.has_groups else "clips",
        n_units=len(np.unique(any_hits.groups)),
        chance=_protocol(one).majority_class.accuracy,
        scores=[
            EncoderScore(
                encoder=name,
                folder=str(run.folder),
                heads={
                    head: ScoreRecord(accuracy=scored.accuracy, interval=scored.interval)
                    for head, scored in _protocol(run).heads.items()
                },
                first={head: first[head][name] for head in HEADS},
            )
            for name, run in runs.items()
        ],
    )


def _share_first(hits: Mapping[str, Array], where: _Hits) -> Mapping[str, float | None]:
    """Encoder -> the share of bootstraps over groups in which its mean over folds is the highest; ties are shared."""
    names, group = np.unique(where.groups, return_inverse=True)
    if len(names) < MIN_GROUPS:
        return dict.fromkeys(hits)
    folds, fold = np.unique(where.splits, return_inverse=True)
    counts = np.zeros((len(names), len(folds)))
    np.add.at(counts, (group, fold), 1)
    sums = np.zeros((len(hits), *counts.shape))
    for own, values in zip(sums, hits.values(), strict=True):
        np.add.at(own, (group, fold), values)
    rng, firsts = np.random.default_rng(0), np.zeros(len(hits))
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))
        drawn = times @ counts
        means = (times @ sums / np.maximum(drawn, 1))[:, drawn > 0].mean(axis=1)
        is_best = means >= means.max() - 1e-12
        firsts += is_best / is_best.sum()
    return dict(zip(hits, (firsts / RESAMPLES).tolist(), strict=True))


def _pairs(task: str, hits: Mapping[str, _Hits]) -> list[PairRecord]:
    pairs = []
    for (first, one), (second, other) in itertools.combinations(hits.items(), 2):
        _, fold, sizes = np.unique(one.splits, return_inverse=True, return_counts=True)
        for head in HEADS:
            difference = one.heads[head] - other.heads[head]
            weighted = difference / sizes[fold] / len(sizes)  # every fold has the same weight
            pairs.append(
                PairRecord(
                    task=task,
                    head=head,
                    first=first,
                    second=second,
                    difference=float(weighted.sum()),
                    interval=difference_interval(difference, one.groups, one.splits),
                    p_value=paired_p_value(weighted, one.groups),
                    holm_p_value=None,
                )
            )
    return pairs


def _average_ranks(tasks: Sequence[TaskComparison], encoders: Sequence[str]) -> dict[str, dict[HeadKind, float]]:
    """Encoder -> head -> mean rank over the tasks that all encoders have; equal accuracies share their ranks."""
    whole = [task for task in tasks if len(task.scores) == len(encoders)]
    if not whole:
        return {}
    ranks: dict[str, dict[HeadKind, float]] = {encoder: {} for encoder in encoders}
    for head in HEADS:
        table = pd.DataFrame(
            {task.task: {score.encoder: score.heads[head].accuracy for score in task.scores} for task in whole}
        )
        for encoder, rank in table.rank(ascending=False).mean(axis=1).items():
            ranks[str(encoder)][head] = float(rank)
    return ranks


def _cost(one: Run, costs: Mapping[str, CheckRecord]) -> EncoderCost:
    features = one.record.features
    measured = costs.get(slug_of(features.encoder or "audiosep"))
    if measured is not None and measured.checkpoint != features.checkpoint:
        measured = None  # of other weights
    return EncoderCost(
        parameters=features.parameters,
        width=features.width,
        speed=None if measured is None else measured.speed,
        fails=[] if measured is None else [each.name for each in measured.properties if each.holds is False],
        measured_on=None if measured is None else (measured.cpu if measured.device == "cpu" else measured.device),
    )


def _method(runs: Sequence[Run], tests: int) -> str:
    """How the numbers were made, as a paragraph for a paper."""
    record = runs[0].record
    heads = {"linear": record.config.recipe_linear, "three-layer": record.config.recipe_three_layer}
    fits = "; ".join(
        f"{head}: {own.epochs} epochs, batches of {own.batch_size}, learning rate {own.learning_rate:g}, scaler {own.scaler}"
        for head, own in heads.items()
    )
    protocol = _protocol(runs[0])
    divisions = dict.fromkeys(f"{one.study.task.title} ({_protocol(one).protocol})" for one in runs)
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
        f"in whole groups, corrected for {tests} comparisons (Holm). {_software(record)}"
    )


def _software(record: RunRecord) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return f"Computed with {versions} on {record.cpu}."
