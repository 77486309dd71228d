"""A report as HTML: the answer to its question, for each task the best score and what cannot be told apart from it; and its
content, inserted into the template with its style and script."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import pandas as pd

from analysis.compare import LEVEL, EncodersRecord, can_tell, captioned_tables, plot_encoders, reading_notes
from analysis.maps import FeatureMap
from analysis.plots import PALETTE
from analysis.report_page.clips import of_run
from analysis.scores import Run, by_task
from analysis.studies import STUDIES
from analysis.summary import SummaryRow, notes, summary_rows, summary_table
from analysis.variants import AblationRecord, plot_effects
from common.datasets import DivisionKind, Metric
from common.encoder_name import EncoderKind
from common.evaluation.plots import figures_of
from common.evaluation.record import HeadRecord, PerClass, ProtocolRecord
from common.evaluation.text import remarks, run_title, score_table
from common.heads import HEADS, head_title
from common.page import as_json, data_uri, environment
from common.text_table import percent

TEMPLATE = Path(__file__).resolve().with_name("template")
PAIRS = 12  # confusions that are listed
CONTROLS = {EncoderKind.LOGMEL: "log-mel statistics", EncoderKind.UNTRAINED: "an untrained encoder"}
Draw = Callable[[Path], None]  # writes a figure


class Verdict(StrEnum):
    """What a score is beside the best of its task, for readers and, by its name, for the style."""

    BEST = "highest score"
    WORSE = "significantly worse"  # after the correction for the number of such tests
    EVEN = "not significantly worse"
    UNTESTED = "not tested"
    FEW = "too few groups to tell"


class Bar(NamedTuple):
    """The best score of a task, or what it is held against: the same head on other features, or the other head."""

    name: str
    kind: EncoderKind | None  # None for the other head
    scored: HeadRecord
    verdict: Verdict
    is_run: bool  # whether it is an encoder with a run of its own, and not a control or a head of the same run


@dataclass(frozen=True)
class TaskAnswer:
    """One task's best score, by the data set's division where it was run, and what it is held against."""

    best: SummaryRow
    bars: list[Bar]  # best first
    can_tell: bool  # whether it has enough groups for a test of its encoders to be significant

    @property
    def title(self) -> str:
        """The task, and which of its clips and divisions this is of, if not all and the data set's own."""
        run = self.best.run
        some = f" ({run.record.features.clips:,} of {self.best.whole:,} clips)" if self.best.is_sample else ""
        return run.study.task.title + some + " (random division)" * (self.best.protocol.kind is DivisionKind.RANDOM)

    @property
    def encoders(self) -> list[Bar]:
        """The other encoders that were run on the same clips."""
        return [bar for bar in self.bars[1:] if bar.is_run]

    def beats(self, kind: EncoderKind) -> bool | None:
        """Whether the best is significantly better than a kind of control; None if it is one itself, or not tested."""
        best, *rivals = self.bars
        verdicts = {rival.verdict for rival in rivals if rival.kind is kind} & {Verdict.WORSE, Verdict.EVEN}
        return None if best.kind is kind or not verdicts else verdicts == {Verdict.WORSE}


def answer(runs: Sequence[Run], compared: EncodersRecord | None) -> list[TaskAnswer]:
    """One answer per task, in the order of the runs: of the most clips, and of a random division only if it has no other."""
    answers = []
    for runs_of_task in by_task(runs).values():
        rows = [summary_rows([run])[0] for run in runs_of_task]  # of the first protocol
        rows = [row for row in rows if row.protocol.kind is not DivisionKind.RANDOM] or rows
        most = max(row.run.record.features.clips for row in rows)
        rows = [row for row in rows if row.run.record.features.clips == most]
        best = max(rows, key=lambda row: row.best.score)
        of_task = [task for task in (compared.tasks if compared else ()) if task.task == best.run.study.name]
        name = f"{best.run.encoder}, {head_title(best.protocol.best_head)} head"
        first = Bar(name, best.run.record.features.kind, best.best, Verdict.BEST, is_run=True)
        rivals = sorted(_rivals(best, rows, compared), key=lambda rival: -rival.scored.score)
        answers.append(TaskAnswer(best, [first, *rivals], all(task.can_tell for task in of_task)))
    return answers


def _rivals(best: SummaryRow, rows: Sequence[SummaryRow], compared: EncodersRecord | None) -> Iterator[Bar]:
    """The other head, and the same head on other features, as the run itself or the comparison of encoders has tested them."""
    run, protocol, head = best.run, best.protocol, best.protocol.best_head
    untested = Verdict.UNTESTED if can_tell(protocol.comparison.n_units, 1) else Verdict.FEW

    def rival(
        name: str, kind: EncoderKind | None, scored: HeadRecord, p_value: float | None, is_run: bool = False
    ) -> Bar:
        is_worse = p_value is not None and p_value < LEVEL and scored.score < best.best.score
        verdict = untested if p_value is None else Verdict.WORSE if is_worse else Verdict.EVEN
        return Bar(name, kind, scored, verdict, is_run)

    (other,) = set(HEADS) - {head}
    p_value = protocol.comparison.p_value if can_tell(protocol.comparison.n_units, 1) else None
    yield rival(f"{run.encoder}, {head_title(other)} head", None, protocol.heads[other], p_value)
    n_tests = sum(map(len, protocol.control_comparisons.values()))
    for control, encoder in run.record.controls.items():
        comparison = protocol.control_comparisons[control][head]
        p_value = comparison.holm_p_value if can_tell(comparison.n_units, n_tests) else None
        name = encoder.title if encoder.kind else control
        yield rival(name, encoder.kind, protocol.controls[control][head], p_value)
    p_values: dict[frozenset[str], float | None] = {}  # of two folders
    if compared and any(task.task == run.study.name and task.can_tell for task in compared.tasks):
        folders = {score.encoder: score.folder for score in compared.scores if score.task == run.study.name}
        for pair in compared.pairs:
            if (pair.task, pair.head) == (run.study.name, head):
                p_values[frozenset((folders[pair.first], folders[pair.second]))] = pair.holm_p_value
    for row in rows:
        if row.run.encoder != run.encoder:
            p_value = p_values.get(frozenset((str(row.run.folder), str(run.folder))))
            yield rival(row.run.encoder, row.run.record.features.kind, row.protocol.heads[head], p_value, is_run=True)


def answer_words(answers: Sequence[TaskAnswer]) -> list[str]:
    """The answer in a few sentences, each true of any number of encoders and tasks."""
    if all(task.bars[0].kind is EncoderKind.UNTRAINED for task in answers):
        return ["No answer yet: the best scores here are of untrained encoders, and say only that everything runs."]
    ranked = [task for task in answers if task.encoders]
    if not ranked:
        low, high = (percent(function(task.best.best.score for task in answers)) for function in (min, max))
        span = low if low == high else f"{low} to {high}"
        lines = [f"{answers[0].best.run.encoder}: {span} %" + f" on {len(answers)} tasks" * (len(answers) > 1) + "."]
    else:
        encoders = Counter(task.best.run.encoder for task in ranked)
        leads = [name + f" ({n} of {len(ranked)} tasks)" * (len(ranked) > 1) for name, n in encoders.most_common()]
        clear = [task for task in ranked if all(bar.verdict is Verdict.WORSE for bar in task.encoders)]
        lines = [f"Highest score: {', '.join(leads)}."]
        if clear:
            others = "all others" if len(ranked[0].encoders) > 1 else "the other"
            where = f" on {len(clear)} of {len(ranked)} tasks" * (len(ranked) > 1)
            lines.append(f"Significantly better than {others}{where}.")
        else:
            few = [task.best.protocol.comparison for task in ranked if not task.can_tell]
            counts = ", ".join(compared.counted_units for compared in few)
            lines.append(
                f"No encoder is significantly better than all others{f'; too few to tell: {counts}' * bool(few)}."
            )
    for kind, words in () if ranked else CONTROLS.items():  # which are among the encoders
        tested = [beaten for task in answers if (beaten := task.beats(kind)) is not None]
        if tested:
            where = f" on {sum(tested)} of {len(tested)} tasks" * (len(tested) > 1)
            better = "Significantly better" if any(tested) else "Not significantly better"
            lines.append(f"{better} than {words}{where}.")
    return lines


@dataclass(frozen=True)
class ReportedRun:
    run: Run
    map: FeatureMap
    audio: Path  # the data root that its clips are played from
    ablation: AblationRecord | None  # of its task and encoder

    def figures(self) -> list[tuple[str, Draw]]:
        """What its figures show, and how they are drawn: of the better head, and how both were fitted."""
        protocol = self.run.first_protocol
        drawn = figures_of(self.run.study.task, self.run.record.features, protocol)
        shown = {
            f"labels_{protocol.best_head}": "Labels that are predicted together",
            f"per_class_{protocol.best_head}": "Scores of the classes, which the table of classes has too",
            "curves_linear": "Training curves of the linear head",
            "curves_three_layer": "Training curves of the three-layer head",
        }
        return [(what, drawn[name]) for name, what in shown.items() if name in drawn]


def confused_pairs(protocol: ProtocolRecord, names: Sequence[str]) -> list[list[str]]:
    """The better head's most frequent confusions, by the share of the true class; of several labels, only wrong ones."""
    scored, n_seeds = protocol.heads[protocol.best_head], len(protocol.seeds)
    counts = np.array(scored.confusion or [[0]])
    clips = counts.sum(axis=1)
    if scored.label_sets is not None:
        counts, clips, n_seeds = np.array(scored.label_sets.false_alarms), np.diag(scored.label_sets.co_occurrence), 1
    share = counts / np.maximum(clips, 1)[:, None]
    np.fill_diagonal(share, 0)
    table = [["true", "predicted", "% of the true class", "clips" if n_seeds == 1 else "clips, mean of seeds"]]
    largest = pd.Series(share.ravel()).nlargest(PAIRS)
    for place in largest[largest > 0].index:
        true, predicted = divmod(place, len(names))
        count = f"{counts[true, predicted] / n_seeds:,.{int(n_seeds > 1)}f}"
        table.append([names[true], names[predicted], percent(share[true, predicted]), count])
    return table if len(table) > 1 else [*table, ["none", "-", "-", "0"]]


def class_table(protocol: ProtocolRecord, names: Sequence[str]) -> list[list[str]]:
    """The better head's scores of every class in percent, best first, and its test clips; header first."""
    scored = protocol.heads[protocol.best_head].per_class
    if isinstance(scored, PerClass):
        scores = {"F1": scored.f1, "precision": scored.precision, "recall": scored.recall}
    else:
        scores = {"average precision": scored.average_precision, "AUC": scored.auc}
    columns = {"class": names, **scores, "test clips": [f"{clips:,.0f}" for clips in scored.clips]}
    table = pd.DataFrame(columns).sort_values(next(iter(scores)), ascending=False, kind="stable")
    table[list(scores)] = table[list(scores)].map(percent)
    return [list(columns), *table.to_numpy().tolist()]


def picture(draw: Draw) -> str:
    """A figure as an address that holds it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "figure.svg")
        draw(path)
        return data_uri("image/svg+xml", path.read_bytes())


# What the template calls.
SHOWN_BY: list[Callable[..., object]] = [answer_words, captioned_tables, class_table, confused_pairs]
SHOWN_BY += [head_title, notes, partial, percent, picture, plot_effects, plot_encoders, reading_notes]
SHOWN_BY += [remarks, run_title, score_table, summary_table]


def render(
    reported: Sequence[ReportedRun],
    folder: Path,
    compared: EncodersRecord | None = None,
    spectrograms: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """The page, whose links to the sounds are relative to the folder where it will be; `spectrograms` of `clips.draw_sounds`."""
    runs = [shown.run for shown in reported]
    names = [run.study.name for run in runs]
    main_tasks = {study.name: None for study in STUDIES.values() if study.is_main}.keys()
    links = [Path(os.path.relpath(shown.audio, folder)).as_posix() for shown in reported]
    titles = [f"{run.study.task.title}, {run.encoder}" for run in runs]
    rows, answers = summary_rows(runs), answer(runs, compared)
    shown_runs = [
        {**of_run(shown.run, shown.map), "title": title, "audio": quote(link)}
        for shown, title, link in zip(reported, titles, links, strict=True)
    ]
    templates = environment(TEMPLATE)
    templates.globals.update({function.__name__: function for function in SHOWN_BY})
    return templates.get_template("report.html").render(
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        reported=reported,
        titles=titles,
        # Of several encoders on a task, the best is shown, and the others are folded.
        folded=[all(task.best.run is not run for task in answers) for run in runs],
        links=links,
        palette=PALETTE,
        answers=answers,
        level=f"{LEVEL:g}",
        rows=rows,
        quantity=Metric.words(row.metric for row in rows),
        # Not said of one's own sounds alone.
        missing=[name for name in main_tasks if name not in names] if main_tasks & set(names) else [],
        compared=compared,
        data=as_json({"runs": shown_runs, "spectrograms": spectrograms or {}}),
    )
