"""Encoders against each other on the same clips: scores, paired differences, ranks, costs; as tables and files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from analysis.plots import Panel, plot_heads
from analysis.scores import Run, by_task
from common.datasets import Metric
from common.encoder.measure import CheckRecord
from common.encoder_name import slug_of
from common.evaluation.intervals import LEVEL, MIN_GROUPS, n_permutations
from common.evaluation.record import COMPARED, FIGURES, ComparisonRecord, Interval, Record, corrected
from common.files import write_atomically, write_csv
from common.heads import HEADS, HeadKind, head_title
from common.scripts import ENCODERS_FOLDER
from common.text_table import as_latex, as_markdown, escape_latex, percent, range_of


class EncoderCost(Record):
    """What an encoder costs, and its mean rank (1: best) over the tasks that all encoders have; None or empty: unknown."""

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
    metric: Metric
    clips: int
    classes: int
    chance: float
    units: str  # what is swapped: groups, or clips where groups are unknown
    n_units: int
    can_tell: bool  # whether any test can be significant

    @property
    def heading(self) -> str:
        """With the score, if it is not the accuracy."""
        return self.title + f", {self.metric.label}" * (self.metric is not Metric.ACCURACY)


class EncoderScore(Record):
    """One encoder on one task with one head."""

    task: str
    encoder: str
    folder: str
    head: HeadKind
    score: float
    interval: Interval | None
    leads: bool  # whether it is the best, or not significantly worse

    @property
    def words(self) -> str:
        """In percent, with its interval, and ``*`` if it leads."""
        return percent(self.score) + f" ({range_of(self.interval)})" * (self.interval is not None) + "*" * self.leads


class Pair(ComparisonRecord):
    """Two encoders on the same clips of one task, with one head: first minus second; corrected for all pairs."""

    task: str
    head: HeadKind
    first: str
    second: str

    @property
    def is_different(self) -> bool:
        """Significantly, after the correction."""
        return self.holm_p_value is not None and self.holm_p_value < LEVEL


class EncodersRecord(Record):
    """The content of encoders.json; encoders in the order of their mean ranks."""

    encoders: list[EncoderCost]
    tasks: list[ComparedTask]
    scores: list[EncoderScore]
    pairs: list[Pair]
    left_out: list[str]  # runs that are not compared, and why
    method: str  # how the numbers were made, for a paper

    @property
    def quantity(self) -> str:
        return Metric.words(task.metric for task in self.tasks)

    def heads_of(self, task: ComparedTask) -> dict[str, dict[HeadKind, EncoderScore]]:
        """Encoder -> head -> its score; nothing for those that have not been run."""
        heads: dict[str, dict[HeadKind, EncoderScore]] = {cost.encoder: {} for cost in self.encoders}
        for score in self.scores:
            if score.task == task.task:
                heads[score.encoder][score.head] = score
        return heads


def can_tell(n_units: int, n_tests: int, metric: Metric = Metric.ACCURACY) -> bool:
    """Whether any of `n_tests` tests that swap `n_units` groups can be significant."""
    if metric is Metric.MACRO_MAP:  # a t test
        return n_units >= MIN_GROUPS
    return 2.0 ** (1 - n_units) * n_tests < LEVEL  # swapping G groups has 2^G outcomes, on two sides


def compare_encoders(runs: Sequence[Run], folder: Path) -> EncodersRecord | None:
    """Compare the runs of every task that has several encoders with the same protocol hash; None if no task has. What was
    measured of encoders is read below `folder`. FeatureFileError if a run's predictions are missing or damaged."""
    left_out: list[str] = []
    chosen = [_comparable(of_task, left_out) for of_task in by_task(runs).values()]
    compared = [[(run, run.judged()) for run in of_task] for of_task in chosen if len(of_task) > 1]
    if not compared:
        return None
    of_two = [(*two, head) for of_task in compared for two in itertools.combinations(of_task, 2) for head in HEADS]
    pairs = []
    for (first, judged), (second, other), head in of_two:
        pair = judged[head].minus(other[head], len(of_two))  # type: ignore[arg-type]  # both are of one kind
        names = {"task": first.study.name, "head": head, "first": first.encoder, "second": second.encoder}
        pairs.append(Pair(**pair.model_dump(), **names))
    pairs = corrected(pairs)
    tasks: list[ComparedTask] = []
    scores: list[EncoderScore] = []
    for of_task in compared:
        run = of_task[0][0]
        protocol, features = run.first_protocol, run.record.features
        metric, comparison = protocol.majority_class.metric, protocol.comparison
        task = ComparedTask(
            task=run.study.name,
            title=run.study.task.title,
            division=protocol.division,
            hash=protocol.identity.hash,
            metric=metric,
            clips=features.clips,
            classes=len(features.class_names),
            chance=protocol.majority_class.score,
            units=comparison.units,
            n_units=comparison.n_units,
            can_tell=can_tell(comparison.n_units, len(pairs), metric),
        )
        tasks.append(task)
        scores += _scores(task, [run for run, _ in of_task], pairs)
    all_runs = [run for of_task in compared for run, _ in of_task]
    return EncodersRecord(
        encoders=_costs(all_runs, folder, scores),
        tasks=tasks,
        scores=scores,
        pairs=pairs,
        left_out=left_out,
        method=_method(all_runs, len(pairs)),
    )


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


def _scores(task: ComparedTask, of_task: Sequence[Run], pairs: Sequence[Pair]) -> Iterator[EncoderScore]:
    different = [pair for pair in pairs if pair.task == task.task and pair.is_different]
    for head in HEADS:
        scores = {run.encoder: run.first_protocol.heads[head] for run in of_task}
        best = max(scores, key=lambda name: scores[name].score)
        differ = [{pair.first, pair.second} for pair in different if pair.head == head]
        for run in of_task:
            scored = scores[run.encoder]
            yield EncoderScore(
                task=task.task,
                encoder=run.encoder,
                folder=str(run.folder),
                head=head,
                score=scored.score,
                interval=scored.interval,
                leads=task.can_tell and {best, run.encoder} not in differ,
            )


def _costs(runs: Sequence[Run], folder: Path, scores: Sequence[EncoderScore]) -> list[EncoderCost]:
    """Of every encoder, as its last run has it, best first."""
    table = pd.DataFrame([(row.encoder, row.head, row.task, row.score) for row in scores])
    shared = table.pivot(index=[0, 1], columns=2, values=3).dropna(axis=1)  # the tasks that all encoders have
    ranks = shared.groupby(level=1).rank(ascending=False).mean(axis=1).dropna()  # equal scores share their ranks
    costs = {}
    for run in runs:
        features = run.record.features
        path = folder / ENCODERS_FOLDER / f"{slug_of(features.kind, features.encoder or '')}.json"
        cost = EncoderCost(
            encoder=run.encoder,
            parameters=features.parameters,
            width=features.width,
            mean_rank=ranks[run.encoder].to_dict() if len(ranks) else {},
        )
        if path.exists() and (check := CheckRecord.load(path)).checkpoint == features.checkpoint:  # of these weights
            place = check.cpu if check.device == "cpu" else check.device
            cost = cost.model_copy(update={"speed": check.speed, "measured_on": place, "fails": check.failing})
        costs[run.encoder] = cost
    return sorted(costs.values(), key=lambda cost: sum(cost.mean_rank.values()))


def _method(runs: Sequence[Run], n_tests: int) -> str:
    """How the numbers were made, as a paragraph for a paper; what differs between tasks is said with the tasks."""
    metrics = {run.first_protocol.majority_class.metric for run in runs}
    n_swaps = n_permutations(n_tests)
    swaps = (
        f"permutation tests that swap them in whole groups ({n_swaps:,} times, so that p is at least {1 / n_swaps:.1g})"
    )
    tests = [swaps] * (Metric.ACCURACY in metrics)
    tests += ["t tests of the jackknife's differences (mAP)"] * (Metric.MACRO_MAP in metrics)
    said: dict[str, dict[str, None]] = {}  # how a task's numbers were made -> the titles of its tasks
    for run in runs:
        config, protocol = run.record.config, run.first_protocol
        fits = "; ".join(
            f"{head}: {recipe.epochs} epochs, batches of {recipe.batch_size}, learning rate {recipe.learning_rate:g}, "
            f"scaler {recipe.scaler}"
            for head, recipe in {"linear": config.recipe_linear, "three-layer": config.recipe_three_layer}.items()
        )
        refit = " and the head refitted on training and validation clips" * protocol.refit
        epoch = f"the epoch chosen on validation clips{refit}" if protocol.chooses_epoch else "the last epoch kept"
        versions = ", ".join(f"{name} {version}" for name, version in run.record.versions.items())
        text = (
            f"the {config.recipe} recipe ({fits}; scalers are fitted on training clips alone), {epoch}, "
            f"{len(protocol.seeds)} seed{'s' * (len(protocol.seeds) > 1)}, computed with {versions} on {run.record.cpu}"
        )
        said.setdefault(text, {})[run.study.task.title] = None
    settings = [text + f" (for {', '.join(titles)})" * (len(said) > 1) for text, titles in said.items()]
    divisions = dict.fromkeys(f"{run.study.task.title} ({run.first_protocol.division})" for run in runs)
    return (
        f"Encoders are frozen. On their embeddings we train a linear head and a head of three linear layers with "
        f"{'; or with '.join(settings)}. Data sets and divisions: {'; '.join(divisions)}. "
        f"We report the {Metric.words(metrics)}, averaged over folds and seeds, with 95 % intervals by the jackknife over groups "
        f"(Student's t; of shares in Wilson's form, of mAP for its logit). Encoders are compared on the same test clips by "
        f"{' or '.join(tests)}, corrected for {n_tests} comparisons (Holm)."
    )


def encoder_table(record: EncodersRecord, head: HeadKind) -> list[list[str]]:
    """Encoders by tasks for one head, header first; percent with intervals, ``*`` for the leaders."""
    costs = record.encoders
    columns = [
        ["encoder", *(cost.encoder for cost in costs), "chance"],
        ["parameters", *(f"{cost.parameters / 1e6:.1f} M" if cost.parameters else "-" for cost in costs), ""],
        ["width", *(f"{cost.width:,}" for cost in costs), ""],
        ["audio s/s", *("-" if cost.speed is None else f"{cost.speed:,.0f}" for cost in costs), ""],
    ]
    for task in record.tasks:
        cells = [heads[head].words if heads else "-" for heads in record.heads_of(task).values()]
        columns.append([task.heading, *cells, percent(task.chance)])
    if len(record.tasks) > 1 and any(cost.mean_rank for cost in costs):
        columns.append(["mean rank", *(f"{cost.mean_rank[head]:.1f}" for cost in costs), ""])
    return [list(row) for row in zip(*columns, strict=True)]


def pair_table(record: EncodersRecord, pairs: Sequence[Pair]) -> list[list[str]]:
    titles = {task.task: task.title for task in record.tasks}
    rows = [[titles[pair.task], head_title(pair.head), pair.first, pair.second, *pair.cells] for pair in pairs]
    return [["task", "head", "first", "second", "first - second", *COMPARED], *rows]


def reading_notes(record: EncodersRecord) -> list[str]:
    """What a reader must know about the tables."""
    few = [f"{task.title} ({task.n_units})" for task in record.tasks if task.n_units < 20 or not task.can_tell]
    unknown = ", ".join(task.title for task in record.tasks if task.units == "clips")
    lines = [
        "* the best of its column, and all that are not significantly worse: paired by groups, corrected for "
        f"{len(record.pairs)} tests (Holm), level {LEVEL:g}.",
        "Intervals are of each score for itself; whether two encoders differ is in the table of pairs, where p, corrected, decides.",
        *["Mean rank: over the tasks that every encoder has."] * (len(record.tasks) > 1),
    ]
    if unknown:
        lines.append(f"Which clips are related is unknown in {unknown}: there single clips are swapped.")
    if few:
        lines.append(f"Few groups, so weak tests, and no mark where none can be significant: {', '.join(few)}.")
    measured = "; ".join(sorted({cost.measured_on for cost in record.encoders if cost.measured_on}))
    if measured:
        lines.append(f"audio s/s: seconds of audio per second, clips of 5 s one by one, on {measured}.")
    failing = "; ".join(f"{cost.encoder} ({', '.join(cost.fails)})" for cost in record.encoders if cost.fails)
    if failing:
        lines.append(f"WARNING: what every encoder needs does not hold of {failing}: its scores mean little.")
    return [*lines, *(f"Not compared: {reason}." for reason in record.left_out)]


def captioned_tables(record: EncodersRecord, is_short: bool = False) -> list[tuple[str, list[list[str]], int]]:
    """Caption, table and number of columns of words, heads first; `is_short`: pairs that do not differ are only counted."""
    pairs = [pair for pair in record.pairs if pair.is_different or not is_short]
    rest = f" that differ significantly; {len(record.pairs) - len(pairs)} others do not, or cannot be told" * is_short
    caption = f"{{}} head: {record.quantity} in percent (95 %)"
    return [
        *((caption.format(head_title(head).capitalize()), encoder_table(record, head), 1) for head in HEADS),
        (f"Every two encoders{rest}, points", pair_table(record, pairs), 4),
    ]


def write_encoders(record: EncodersRecord, folder: Path, figure_format: str = "png") -> list[Path]:
    """Write encoders.json, .csv (every pair), .md, .tex and a picture into `folder`."""
    tables, notes = captioned_tables(record), reading_notes(record)
    parts = [f"**{caption}**\n\n{as_markdown(table, left)}" for caption, table, left in tables]
    parts += ["\n".join(f"- {line}" for line in notes), record.method]
    tex = [f"% {caption}\n{as_latex(table)}" for caption, table, _ in tables[: len(HEADS)]]
    tex += [*(f"% {line}\n" for line in notes), f"\n{escape_latex(record.method)}\n"]
    files = [folder / f"encoders.{ending}" for ending in ("json", "md", "tex", "csv", figure_format)]
    contents = (record.model_dump_json(indent=1) + "\n", "\n\n".join(parts) + "\n", "".join(tex))
    for path, content in zip(files[:3], contents, strict=True):
        write_atomically(path, content.encode())
    rows = [[pair.task, pair.head, pair.first, pair.second, *pair.figures] for pair in record.pairs]
    write_csv(files[-2], [["task", "head", "first", "second", *FIGURES], *rows])
    plot_encoders(record, files[-1])
    return files


def plot_encoders(record: EncodersRecord, path: Path) -> None:
    panels = [
        Panel(
            f"{task.heading}\n({task.clips:,} clips, {task.classes} classes)",
            [
                {head: (scored.score, scored.interval) for head, scored in heads.items()}
                for heads in record.heads_of(task).values()
            ],
            (task.chance, "chance"),
        )
        for task in record.tasks
    ]
    caption = "95 % intervals of each score by groups; whether two encoders differ is in the table of pairs."
    plot_heads(panels, [cost.encoder for cost in record.encoders], f"{record.quantity}, %", caption, path)
