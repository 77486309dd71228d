"""A report as HTML: the answer to its question, for each task the best score and what cannot be told apart from it; and its
content, inserted into the template with its style and script."""

from __future__ import annotations

import base64
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from analysis.compare import LEVEL, EncodersRecord, can_tell, captioned_tables, plot_encoders, reading_notes
from analysis.maps import FeatureMap
from analysis.plots import plot_heat
from analysis.scores import Run, by_task
from analysis.similarity import SimilarityRecord
from analysis.studies import STUDIES
from analysis.summary import SummaryRow, notes, plot_summary, summary_rows, summary_table
from analysis.variants import AblationRecord, plot_effects
from common.datasets import DivisionKind, Metric
from common.encoder_name import EncoderKind
from common.evaluation.plots import figures_of
from common.evaluation.record import PerClass, ProtocolRecord
from common.evaluation.text import remarks, run_title, score_table
from common.heads import HEADS, head_title
from common.page import as_json, environment
from common.text_table import percent, range_of

TEMPLATE = Path(__file__).resolve().with_name("template")
PAIRS = 12  # confusions that are listed
CONTROLS = {EncoderKind.LOGMEL: "log-mel statistics", EncoderKind.UNTRAINED: "an untrained encoder"}
TAB20 = [to_hex(rgb) for rgb in matplotlib.color_sequences["tab20"]]
PALETTE = TAB20[::2] + TAB20[1::2]  # of classes: first the strong colours, then the pale ones
Draw = Callable[[Path], None]  # writes a figure


class Rival(NamedTuple):
    """What the best score of a task is held against: another encoder or a control with the same head, or the other head."""

    name: str
    kind: EncoderKind | None  # None for the other head
    score: float
    # Significantly, corrected for the number of such tests; None: not tested, or too few groups to tell.
    is_worse: bool | None


@dataclass(frozen=True)
class TaskAnswer:
    """One task's best score, by the data set's division where it was run, and what it is held against, best first."""

    best: SummaryRow
    rivals: list[Rival]

    @property
    def kind(self) -> EncoderKind | None:
        """The kind of the best encoder."""
        return self.best.run.record.features.kind

    def names(self, is_worse: bool | None) -> list[str]:
        """The rivals of which this holds."""
        return [rival.name for rival in self.rivals if rival.is_worse is is_worse]

    def control(self, kind: EncoderKind) -> float | None:
        """The best score of a kind of control, or of the best itself if it is one; None: not run."""
        scores = [rival.score for rival in self.rivals if rival.kind is kind]
        return max([*scores, *[self.best.best.score] * (self.kind is kind)], default=None)

    def beats(self, kind: EncoderKind) -> bool | None:
        """Whether the best is significantly better than a kind of control; None if it is one itself, or not tested."""
        tested = [rival.is_worse for rival in self.rivals if rival.kind is kind and rival.is_worse is not None]
        return None if self.kind is kind or not tested else all(tested)


def answer(runs: Sequence[Run], compared: EncodersRecord | None) -> list[TaskAnswer]:
    """One answer per task, in the order of the runs: of the runs of the most clips, and of random divisions only where a task has
    no other runs."""
    answers = []
    for runs_of_task in by_task(runs).values():
        rows = [summary_rows([run])[0] for run in runs_of_task]  # of the first protocol
        rows = [row for row in rows if row.protocol.kind is not DivisionKind.RANDOM] or rows
        most = max(row.run.record.features.clips for row in rows)
        rows = [row for row in rows if row.run.record.features.clips == most]
        best = max(rows, key=lambda row: row.best.score)
        answers.append(TaskAnswer(best, sorted(_rivals(best, rows, compared), key=lambda rival: -rival.score)))
    return answers


def _rivals(best: SummaryRow, rows: Sequence[SummaryRow], compared: EncodersRecord | None) -> Iterator[Rival]:
    """All that the best is held against: the other head, and the same head on other features, as the run itself or the comparison
    of encoders has tested them."""

    def rival(name: str, kind: EncoderKind | None, score: float, p_value: float | None) -> Rival:
        return Rival(name, kind, score, None if p_value is None else p_value < LEVEL and score < best.best.score)

    run, protocol, head = best.run, best.protocol, best.protocol.best_head
    (other,) = set(HEADS) - {head}
    p_value = protocol.comparison.p_value if can_tell(protocol.comparison.n_units, 1) else None
    yield rival(f"the {head_title(other)} head", None, protocol.heads[other].score, p_value)
    n_tests = sum(map(len, protocol.control_comparisons.values()))
    for control, encoder in run.record.controls.items():
        comparison = protocol.control_comparisons[control][head]
        p_value = comparison.holm_p_value if can_tell(comparison.n_units, n_tests) else None
        name = encoder.title if encoder.kind else control
        yield rival(name, encoder.kind, protocol.controls[control][head].score, p_value)
    p_values: dict[frozenset[str], float | None] = {}  # of two folders
    if compared and any(task.task == run.study.name and task.can_tell for task in compared.tasks):
        folders = {score.encoder: score.folder for score in compared.scores if score.task == run.study.name}
        for pair in compared.pairs:
            if (pair.task, pair.head) == (run.study.name, head):
                p_values[frozenset((folders[pair.first], folders[pair.second]))] = pair.holm_p_value
    for row in rows:
        if row.run.encoder != run.encoder:
            p_value = p_values.get(frozenset((str(row.run.folder), str(run.folder))))
            yield rival(row.run.encoder, row.run.record.features.kind, row.protocol.heads[head].score, p_value)


def answer_table(answers: Sequence[TaskAnswer]) -> list[list[str]]:
    """The answers as text, header first; in percent."""
    header = ["task", "best", "95 %", "head", "encoder", "not significantly worse"]
    table = [[*header, "log-mel", "untrained", "chance", "best published"]]
    for task in answers:
        row, run, protocol = task.best, task.best.run, task.best.protocol
        not_worse, untested = task.names(False), ", ".join(task.names(None))
        told = [", ".join(not_worse) or "nothing"] if not_worse or not untested else []
        told += [f"not tested: {untested}"] if untested else []
        title = run.study.task.title
        if row.is_sample:
            title += f" ({run.record.features.clips:,} of {row.whole:,} clips)"
        title += " (random division)" * (protocol.kind is DivisionKind.RANDOM)
        score = [percent(row.best.score), range_of(row.best.interval), head_title(protocol.best_head), run.encoder]
        shares = [*map(task.control, CONTROLS), protocol.majority_class.score]
        table.append([title, *score, "; ".join(told), *map(percent, shares), str(row.best_published or "-")])
    return table


def answer_words(answers: Sequence[TaskAnswer]) -> list[str]:
    """The answer in a few sentences."""
    if all(task.kind is EncoderKind.UNTRAINED for task in answers):
        return ["No answer yet: the best scores here are of untrained encoders, and say only that everything runs."]
    encoders = Counter(task.best.run.encoder for task in answers)
    if len(encoders) > 1:
        leads = [f"{name} ({count} of {len(answers)})" for name, count in encoders.most_common()]
        lines = [f"Highest scores: {', '.join(leads)}."]
    else:
        low, high = (percent(function(task.best.best.score for task in answers)) for function in (min, max))
        span = low if low == high else f"{low} to {high}"
        lines = [f"{answers[0].best.run.encoder}: {span} %" + f" on {len(answers)} tasks" * (len(answers) > 1) + "."]
    for kind, words in CONTROLS.items():
        tested = [beaten for task in answers if (beaten := task.beats(kind)) is not None]
        if tested:
            tasks = f"{sum(tested)} of {len(tested)} task{'s' * (len(tested) > 1)}"
            lines.append(f"Significantly better than {words} on {tasks}.")
    return lines


@dataclass(frozen=True)
class ReportedRun:
    """A run with what the report shows of it."""

    run: Run
    map: FeatureMap
    audio: Path  # the data root that its clips are played from
    ablation: AblationRecord | None  # of its task and encoder

    def figures(self) -> list[tuple[str, Draw]]:
        """What its figures show, and how they are drawn: of the better head, and how both were fitted."""
        protocol = self.run.first_protocol
        drawn = figures_of(self.run.study.task, self.run.record.features, protocol)
        shown = {
            f"confusion_{protocol.best_head}": "Confusion matrix; the largest confusions are in the table of pairs",
            f"labels_{protocol.best_head}": "Labels that are predicted together",
            f"per_class_{protocol.best_head}": "Scores of the classes, which the table of classes has too",
            "curves_linear": "Training curves of the linear head",
            "curves_three_layer": "Training curves of the three-layer head",
        }
        return [(what, drawn[name]) for name, what in shown.items() if name in drawn]


def confused_pairs(protocol: ProtocolRecord, names: Sequence[str]) -> list[list[str]]:
    """The most frequent confusions of the better head, by the share of the true class; with several labels a clip, only where a
    predicted label is not there."""
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
        return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"


# What the template calls.
SHOWN_BY: list[Callable[..., object]] = [answer_table, answer_words, captioned_tables, class_table, confused_pairs]
SHOWN_BY += [head_title, notes, partial, picture, plot_effects, plot_encoders, plot_heat, plot_summary, reading_notes]
SHOWN_BY += [remarks, run_title, score_table, summary_table]


def render(
    reported: Sequence[ReportedRun],
    similarity: SimilarityRecord | None,
    folder: Path,
    compared: EncodersRecord | None = None,
) -> str:
    """The page, whose links to the sounds are relative to the folder where it will be."""
    runs = [shown.run for shown in reported]
    names = [run.study.name for run in runs]
    links = [Path(os.path.relpath(shown.audio, folder)).as_posix() for shown in reported]
    rows = summary_rows(runs)
    data = [{**_map_points(shown), "audio": quote(link)} for shown, link in zip(reported, links, strict=True)]
    templates = environment(TEMPLATE)
    templates.globals.update({function.__name__: function for function in SHOWN_BY})
    return templates.get_template("report.html").render(
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        reported=reported,
        titles=[run.study.task.title + f" ({run.folder.name})" * (names.count(run.study.name) > 1) for run in runs],
        links=links,
        palette=PALETTE,
        task_count=len(set(names)),
        answers=answer(runs, compared),
        level=f"{LEVEL:g}",
        rows=rows,
        quantity=Metric.words(row.metric for row in rows),
        missing=[study.name for study in STUDIES.values() if study.is_main and study.name not in names],
        compared=compared,
        similarity=similarity,
        data=as_json(data),
    )


def _map_points(reported: ReportedRun) -> dict[str, object]:
    """A map for the page's script: places in a unit square, and the better head's prediction of every clip that was tested."""
    run, rows, points = reported.run, reported.map.rows, reported.map.points.astype(float)
    features, protocol = run.features, run.first_protocol
    table = run.predictions()
    said = table[table["seed"] == protocol.seeds[0]].set_index("clip_id")[protocol.best_head].to_dict()
    dots = pd.DataFrame({"clip": features.clip_ids, "truth": features.label_texts, "label": features.strata}).iloc[rows]
    x, y = ((points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-9)).round(4).T
    return {
        "colours": [PALETTE[label % len(PALETTE)] for label in range(len(features.class_names))],
        **{str(name): column.tolist() for name, column in dots.assign(x=x, y=1 - y).items()},
        "said": [said.get(clip) for clip in dots["clip"]],
    }
