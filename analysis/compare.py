"""Encoders against each other on the same clips: scores, paired differences, ranks, and what each costs; as tables and
files."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.plots import Panel, plot_heads
from analysis.scores import ENCODERS_FOLDER, WIDTH, Run, by_task, scores
from common.arrays import Array
from common.encoder.measure import CheckRecord
from common.evaluation.intervals import MIN_GROUPS, PERMUTATIONS, holm
from common.evaluation.predictions import KEYS
from common.evaluation.record import ComparisonRecord, Interval, Record, ScoreKind
from common.evaluation.scores import Hits, compare_hits
from common.features import FeatureFileError
from common.files import write_atomically, write_csv
from common.heads import HEADS, HeadKind, head_title
from common.text_table import as_latex, as_markdown, as_text, escape_latex, percent

RESAMPLES = 2000
LEVEL = 0.05
Table = list[list[str]]


class EncoderCost(Record):
    """What an encoder costs, and its mean rank (1: best) with each head over the tasks that all encoders have; None, or
    empty, where it is unknown."""

    encoder: str
    parameters: int | None
    width: int  # numbers per clip
    speed: float | None = None  # seconds of audio per second, as `common.encoder.check` measured it
    measured_on: str | None = None
    fails: tuple[str, ...] = ()  # the properties that do not hold
    mean_rank: dict[HeadKind, float]


class ComparedTask(Record):
    """A task that at least two encoders have."""

    task: str
    title: str
    division: str
    hash: str  # of the protocol that its runs share
    clips: int
    classes: int
    chance: float
    units: str  # what is swapped and resampled: groups, or clips where groups are unknown
    n_units: int
    can_tell: bool  # whether any test can be significant


class EncoderScore(Record):
    """One encoder on one task with one head."""

    task: str
    encoder: str
    folder: str
    head: HeadKind
    accuracy: float
    interval: Interval | None
    first: float | None  # the share of group bootstraps in which it is first; None with too few groups
    leads: bool  # whether it is the best, or not significantly worse


class Pair(ComparisonRecord):
    """Two encoders on the same clips of one task, with one head: first minus second. `holm_p_value` is corrected for
    all pairs, tasks and heads."""

    task: str
    head: HeadKind
    first: str
    second: str

    def differ(self, task: str, head: HeadKind, *encoders: str) -> bool:
        """Whether it is of these encoders, and they differ significantly."""
        is_theirs = (self.task, self.head, {self.first, self.second}) == (task, head, set(encoders))
        return is_theirs and self.holm_p_value is not None and self.holm_p_value < LEVEL


class EncodersRecord(Record):
    """The content of encoders.json, in the order of the runs; what is not compared, and why; and how the numbers were made,
    for a paper."""

    encoders: list[EncoderCost]
    tasks: list[ComparedTask]
    scores: list[EncoderScore]
    pairs: list[Pair]
    left_out: list[str]
    method: str

    def heads_of(self, task: ComparedTask) -> dict[str, dict[HeadKind, EncoderScore]]:
        """Encoder -> head -> its score; nothing for those that have not been run."""
        heads: dict[str, dict[HeadKind, EncoderScore]] = {cost.encoder: {} for cost in self.encoders}
        for score in self.scores:
            if score.task == task.task:
                heads[score.encoder][score.head] = score
        return heads


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
    by_task_chosen = [_comparable(of_task, left_out) for of_task in by_task(runs).values()]
    compared = [of_task for of_task in by_task_chosen if len(of_task) > 1]
    if not compared:
        return None
    hits = [_hits(of_task) for of_task in compared]
    pairs = [pair for of_task, of_hits in zip(compared, hits, strict=True) for pair in _pairs(of_task[0], of_hits)]
    corrected = holm([pair.p_value for pair in pairs])
    pairs = [pair.model_copy(update={"holm_p_value": value}) for pair, value in zip(pairs, corrected, strict=True)]
    all_runs = [run for of_task in compared for run in of_task]
    return EncodersRecord(
        encoders=_costs(all_runs, costs),
        tasks=[_describe(of_task[0], len(pairs)) for of_task in compared],
        scores=[
            score for of_task, of_hits in zip(compared, hits, strict=True) for score in _scores(of_task, of_hits, pairs)
        ],
        pairs=pairs,
        left_out=left_out,
        method=_method(all_runs, len(pairs)),
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
    hits = {head: {name: table[head] == table["class_name"] for name, table in tables.items()} for head in HEADS}
    return {head: pd.DataFrame(of_head).astype(float).set_index(index) for head, of_head in hits.items()}


def _describe(run: Run, n_tests: int) -> ComparedTask:
    protocol = run.first_protocol
    return ComparedTask(
        task=run.study.name,
        title=run.study.task.title,
        division=protocol.division,
        hash=protocol.identity.hash,
        clips=run.record.features.clips,
        classes=len(run.record.features.class_names),
        chance=protocol.majority_class.accuracy,
        units=protocol.comparison.units,
        n_units=protocol.comparison.n_units,
        can_tell=can_tell(protocol.comparison.n_units, n_tests),
    )


def _scores(
    runs: Sequence[Run], hits: Mapping[HeadKind, pd.DataFrame], pairs: Sequence[Pair]
) -> Iterator[EncoderScore]:
    task, n_units = runs[0].study.name, runs[0].first_protocol.comparison.n_units
    for head in HEADS:
        first, scored = _share_first(hits[head]), {run.encoder: run.first_protocol.heads[head] for run in runs}
        best = max(scored, key=lambda encoder: scored[encoder].accuracy)
        for run in runs:
            is_worse = any(pair.differ(task, head, best, run.encoder) for pair in pairs)
            yield EncoderScore(
                task=task,
                encoder=run.encoder,
                folder=str(run.folder),
                head=head,
                accuracy=scored[run.encoder].accuracy,
                interval=scored[run.encoder].interval,
                first=first[run.encoder],
                leads=can_tell(n_units, len(pairs)) and not is_worse,
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


def _pairs(run: Run, hits: Mapping[HeadKind, pd.DataFrame]) -> Iterator[Pair]:
    """Every two encoders on the task of this run."""
    has_groups = run.first_protocol.comparison.units == "groups"
    for first, second in itertools.combinations(map(str, hits["linear"]), 2):
        for head, table in hits.items():
            index = [table.index.get_level_values(level).to_numpy() for level in (0, 1)]
            subtracted, other = (Hits(table[name].to_numpy(), *index) for name in (second, first))
            compared = compare_hits(subtracted, other, has_groups).model_dump()
            yield Pair(**compared, task=run.study.name, head=head, first=first, second=second)


def _costs(runs: Sequence[Run], measured: Mapping[str, CheckRecord]) -> list[EncoderCost]:
    """Of every encoder, as its last run has it."""
    ranks, costs = _mean_ranks(runs), {}
    for run in runs:
        features, check = run.record.features, measured.get(run.record.features.slug)
        seen: dict[str, Any] = {}
        if check is not None and check.checkpoint == features.checkpoint:  # else it is of other weights
            fails = tuple(checked.name for checked in check.properties if checked.holds is False)
            measured_on = check.cpu if check.device == "cpu" else check.device
            seen = {"speed": check.speed, "measured_on": measured_on, "fails": fails}
        costs[run.encoder] = EncoderCost(
            encoder=run.encoder,
            parameters=features.parameters,
            width=features.width,
            mean_rank=ranks.get(run.encoder, {}),
            **seen,
        )
    return list(costs.values())


def _mean_ranks(runs: Sequence[Run]) -> dict[str, dict[HeadKind, float]]:
    """Encoder -> head -> mean rank over the tasks that all encoders have; equal accuracies share their ranks."""
    table = scores(runs)
    table = table[(table["kind"] == ScoreKind.HEAD) & (table["metric"] == "accuracy")]
    table = table[table["protocol"] == table.groupby("run")["protocol"].transform("first")]
    accuracy = table.pivot_table(index=["encoder", "head"], columns="task", values="value").dropna(axis=1)
    ranks = accuracy.groupby("head").rank(ascending=False).mean(axis=1).dropna().unstack()
    return {str(encoder): {head: float(row[head]) for head in HEADS} for encoder, row in ranks.iterrows()}


def _method(runs: Sequence[Run], n_tests: int) -> str:
    """How the numbers were made, as a paragraph for a paper; what differs between tasks is said with the tasks."""
    divisions = dict.fromkeys(f"{run.study.task.title} ({run.first_protocol.division})" for run in runs)
    seeds = _by_task(
        runs, lambda run: f"{len(run.first_protocol.seeds)} seed{'s' * (len(run.first_protocol.seeds) > 1)}"
    )
    return (
        f"Encoders are frozen. On their embeddings we train a linear head and a head of three linear layers with "
        f"{_by_task(runs, _recipes)}, {_by_task(runs, _epoch)}; {seeds}. Data sets and divisions: {'; '.join(divisions)}. "
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
    return " or ".join(f"{words} (for {', '.join(dict.fromkeys(titles))})" for words, titles in tasks.items())


def _recipes(run: Run) -> str:
    config = run.record.config
    fits = "; ".join(
        f"{head}: {recipe.epochs} epochs, batches of {recipe.batch_size}, learning rate {recipe.learning_rate:g}, "
        f"scaler {recipe.scaler}"
        for head, recipe in {"linear": config.recipe_linear, "three-layer": config.recipe_three_layer}.items()
    )
    return f"the {config.recipe} recipe ({fits}; scalers are fitted on training clips alone)"


def _epoch(run: Run) -> str:
    refit = " and the head refitted on training and validation clips" * run.first_protocol.refit
    return f"the epoch chosen on validation clips{refit}" if run.first_protocol.chooses_epoch else "the last epoch kept"


def _computed_with(run: Run) -> str:
    return f"{', '.join(f'{name} {version}' for name, version in run.record.versions.items())} on {run.record.cpu}"


def encoder_table(record: EncodersRecord, head: HeadKind) -> Table:
    """Encoders by tasks for one head, header first; percent with intervals, ``*`` for the leaders."""
    ranked = any(cost.mean_rank for cost in record.encoders)
    header = ["encoder", "parameters", "width", "audio s/s", *(task.title for task in record.tasks)]
    table = [[*header, *["mean rank"] * ranked]]
    for cost in record.encoders:
        cells = [
            cost.encoder,
            f"{cost.parameters / 1e6:.1f} M" if cost.parameters else "-",
            f"{cost.width:,}" if cost.width else "-",
            "-" if cost.speed is None else f"{cost.speed:,.0f}",
        ]
        for task in record.tasks:
            score = record.heads_of(task)[cost.encoder].get(head)
            if score is None:
                cells.append("-")
                continue
            between = " ({:.1f}-{:.1f})".format(*(100 * end for end in score.interval)) if score.interval else ""
            cells.append(percent(score.accuracy) + between + "*" * score.leads)
        table.append([*cells, *[f"{rank:.1f}" for kind, rank in cost.mean_rank.items() if kind == head]])
    return [*table, ["chance", "", "", "", *(percent(task.chance) for task in record.tasks), *[""] * ranked]]


def pair_table(record: EncodersRecord) -> Table:
    """Every pair, header first: the difference in points, its interval and p-values."""
    titles = {task.task: task.title for task in record.tasks}
    table = [["task", "head", "first", "second", "first - second", "95 %", "p", "p, Holm"]]
    for pair in record.pairs:
        interval = "-" if pair.interval is None else " to ".join(f"{100 * end:+.1f}" for end in pair.interval)
        p_values = ["-" if value is None else f"{value:.2g}" for value in (pair.p_value, pair.holm_p_value)]
        names = [titles[pair.task], head_title(pair.head), pair.first, pair.second]
        table.append([*names, f"{100 * pair.difference:+.1f}", interval, *p_values])
    return table


def ranking_table(record: EncodersRecord) -> Table:
    """How stable each task's first place is: the share of group bootstraps in which an encoder is first."""
    columns = [["first in % of bootstraps", *(cost.encoder for cost in record.encoders)]]
    for task, head in itertools.product(record.tasks, HEADS):
        known = [heads[head].first if heads else None for heads in record.heads_of(task).values()]
        title = f"{task.title}, {head_title(head)}"
        columns.append([title, *("-" if share is None else f"{100 * share:.0f}" for share in known)])
    return [list(row) for row in zip(*columns, strict=True)]


def reading_notes(record: EncodersRecord) -> list[str]:
    """What a reader must know about the tables."""
    few = [f"{task.title} ({task.n_units})" for task in record.tasks if task.n_units < 20 and task.can_tell]
    too_few = [f"{task.title} ({task.n_units})" for task in record.tasks if not task.can_tell]
    unknown = ", ".join(task.title for task in record.tasks if task.units == "clips")
    lines = [
        "* the best of its column, and all that are not significantly worse: paired by groups, corrected for "
        f"{len(record.pairs)} tests (Holm), level {LEVEL:g}.",
        "Intervals are of each score for itself; whether two encoders differ is in the table of pairs.",
    ]
    if unknown:
        lines.append(f"Which clips are related is unknown in {unknown}: there single clips are swapped and resampled.")
    if few:
        lines.append(f"Few groups, so wide intervals and weak tests: {', '.join(few)}.")
    if too_few:
        lines.append(
            f"Too few groups for any difference to be significant, so nothing is marked: {', '.join(too_few)}; below "
            f"{MIN_GROUPS} groups there is no interval either."
        )
    shared = [task.title for task in record.tasks if all(record.heads_of(task).values())]
    if not shared:
        lines.append("No mean rank: no task has been run with every encoder.")
    elif len(shared) < len(record.tasks):
        lines.append(f"Mean rank: over {', '.join(shared)}, which every encoder has.")
    measured = "; ".join(sorted({cost.measured_on for cost in record.encoders if cost.measured_on}))
    if measured:
        lines.append(f"audio s/s: seconds of audio per second, clips of 5 s one by one, on {measured}.")
    failing = "; ".join(f"{cost.encoder} ({', '.join(cost.fails)})" for cost in record.encoders if cost.fails)
    if failing:
        lines.append(f"WARNING: what every encoder needs does not hold of {failing}: its scores mean little.")
    return [*lines, *(f"Not compared: {reason}." for reason in record.left_out)]


def encoders_text(record: EncodersRecord) -> str:
    """All tables and notes for the terminal."""
    heads = [
        f"\nEncoders, {head_title(head)} head, accuracy in percent (95 %)\n{as_text(encoder_table(record, head))}"
        for head in HEADS
    ]
    tables = [f"\n{as_text(ranking_table(record))}", f"\n{as_text(pair_table(record), left=4)}"]
    return "\n".join([*heads, *tables, *(textwrap.fill(line, WIDTH) for line in reading_notes(record))])


def captioned_tables(record: EncodersRecord) -> list[tuple[str, Table]]:
    """The tables of the comparison with their captions; those of the heads come first."""
    caption = "{} head: accuracy in percent (95 %)"
    return [
        *((caption.format(head_title(head).capitalize()), encoder_table(record, head)) for head in HEADS),
        ("How stable the first place is", ranking_table(record)),
        ("Every two encoders, points", pair_table(record)),
    ]


def write_encoders(record: EncodersRecord, folder: Path, figure_format: str = "png") -> list[Path]:
    """Write encoders.json, .csv (every pair), .md, .tex and a picture into `folder`."""
    heads = {head_title(head): encoder_table(record, head) for head in HEADS}
    notes = reading_notes(record)
    parts = [
        f"**{head.capitalize()} head** (accuracy, percent)\n\n{as_markdown(table)}" for head, table in heads.items()
    ]
    parts.append("\n".join(f"- {line}" for line in notes))
    parts += [as_markdown(ranking_table(record)), as_markdown(pair_table(record), left=4), record.method]
    tex = "\n".join(f"% {head} head\n{as_latex(table)}" for head, table in heads.items())
    comments = "".join(f"% {line}\n" for line in notes)
    contents = {
        "encoders.json": record.model_dump_json(indent=1) + "\n",
        "encoders.md": "\n\n".join(parts) + "\n",
        "encoders.tex": f"{tex}{comments}\n{escape_latex(record.method)}\n",
    }
    for name, content in contents.items():
        write_atomically(folder / name, content.encode())
    header = ("task", "head", "first", "second", "difference", "low", "high", "p_value", "holm_p_value")
    rows: list[Sequence[object]] = [header]
    for pair in record.pairs:
        figures = (pair.difference, *(pair.interval or (None, None)), pair.p_value, pair.holm_p_value)
        rows.append((pair.task, pair.head, pair.first, pair.second, *figures))  # shares, not percent
    write_csv(folder / "encoders.csv", rows)
    panels = [_panel(record, task) for task in record.tasks]
    caption = "95 % intervals of each score by groups; whether two encoders differ is in the table of pairs."
    names = [cost.encoder for cost in record.encoders]
    plot_heads(panels, names, "accuracy, %", caption, folder / f"encoders.{figure_format}")
    return [folder / name for name in (*contents, "encoders.csv", f"encoders.{figure_format}")]


def _panel(record: EncodersRecord, task: ComparedTask) -> Panel:
    """Both heads of every encoder on one task."""
    rows = [
        {head: (score.accuracy, score.interval) for head, score in heads.items()}
        for heads in record.heads_of(task).values()
    ]
    title = f"{task.title}\n({task.clips:,} clips, {task.classes} classes)"
    return Panel(title, (task.chance, "chance"), rows)
