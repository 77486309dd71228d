"""A report as HTML: the answer to its question, for each task the best score and what cannot be told apart from it; and its
content as plain data, inserted into the template with its style, script and chart library."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import jinja2
import numpy as np
import pandas as pd
from plotly.offline import get_plotlyjs

from analysis.compare import LEVEL, EncodersRecord, can_tell, captioned_tables, reading_notes, scores_of
from analysis.maps import FeatureMap
from analysis.scores import Run, by_task
from analysis.similarity import SimilarityRecord
from analysis.studies import STUDIES
from analysis.summary import SummaryRow, notes, summary_rows, summary_table
from analysis.variants import AblationRecord
from common.arrays import Array
from common.datasets import DivisionKind, Metric
from common.encoder_name import EncoderKind
from common.evaluation.record import HeadRecord, PerClass, ProtocolRecord
from common.evaluation.text import remarks, run_title, score_table
from common.heads import HEADS, head_title
from common.text_table import percent, range_of

TEMPLATE = Path(__file__).resolve().with_name("template")
PAIRS = 12  # confusions that are listed
CONTROLS = {EncoderKind.LOGMEL: "log-mel statistics", EncoderKind.UNTRAINED: "an untrained encoder"}
CLASSES = 60  # bars of a chart; if there are more classes, the best and the worst


@dataclass(frozen=True)
class Rival:
    """What the best score of a task is held against: another encoder or a control with the same head, or the other head."""

    name: str
    kind: EncoderKind | None  # None for the other head
    score: float
    p_value: float | None  # corrected for the number of such tests; None: not tested, or too few groups to tell


@dataclass(frozen=True)
class TaskAnswer:
    """One task's best score, by the data set's division where it was run, and what it is held against, best first."""

    best: SummaryRow
    rivals: list[Rival]

    @property
    def kind(self) -> EncoderKind | None:
        """The kind of the best encoder."""
        return self.best.run.record.features.kind

    def is_worse(self, rival: Rival) -> bool | None:
        """Whether a rival is significantly worse than the best; None if it could not be tested."""
        if rival.p_value is None:
            return None
        return rival.p_value < LEVEL and rival.score < self.best.best.score

    def names(self, is_worse: bool | None) -> list[str]:
        """The rivals of which this holds."""
        return [rival.name for rival in self.rivals if self.is_worse(rival) is is_worse]

    def control(self, kind: EncoderKind) -> float | None:
        """The best score of a kind of control, or of the best itself if it is one; None: not run."""
        scores = [rival.score for rival in self.rivals if rival.kind is kind]
        return max([*scores, *[self.best.best.score] * (self.kind is kind)], default=None)

    def beats(self, kind: EncoderKind) -> bool | None:
        """Whether the best is significantly better than a kind of control; None if it is one itself, or not tested."""
        tested = [rival for rival in self.rivals if rival.kind is kind and rival.p_value is not None]
        return None if self.kind is kind or not tested else all(map(self.is_worse, tested))


def answer(runs: Sequence[Run], compared: EncodersRecord | None) -> list[TaskAnswer]:
    """One answer per task, in the order of the runs.

    Only runs of the most clips are considered, and random divisions only where a task has no other runs.

    Args:
        compared: the encoders against each other, if there are several.
    """
    answers = []
    for runs_of_task in by_task(runs).values():
        rows = [summary_rows([run])[0] for run in runs_of_task]  # of the first protocol
        rows = [row for row in rows if row.protocol.kind is not DivisionKind.RANDOM] or rows
        most = max(row.run.record.features.clips for row in rows)
        rows = [row for row in rows if row.run.record.features.clips == most]
        best = max(rows, key=lambda row: row.best.score)
        rivals = [*_of_the_run(best), *_of_other_runs(best, rows, compared)]
        answers.append(TaskAnswer(best, sorted(rivals, key=lambda rival: -rival.score)))
    return answers


def _of_the_run(best: SummaryRow) -> Iterator[Rival]:
    """The other head, and the same head on other features, as the run itself compared them."""
    protocol, head = best.protocol, best.protocol.best_head
    (other,) = set(HEADS) - {head}
    p_value = protocol.comparison.p_value if can_tell(protocol.comparison.n_units, 1) else None
    yield Rival(f"the {head_title(other)} head", None, protocol.heads[other].score, p_value)
    n_tests = sum(map(len, protocol.control_comparisons.values()))
    for control, encoder in best.run.record.controls.items():
        comparison = protocol.control_comparisons[control][head]
        p_value = comparison.holm_p_value if can_tell(comparison.n_units, n_tests) else None
        name = encoder.title if encoder.kind else control
        yield Rival(name, encoder.kind, protocol.controls[control][head].score, p_value)


def _of_other_runs(best: SummaryRow, rows: Sequence[SummaryRow], compared: EncodersRecord | None) -> Iterator[Rival]:
    """The same head on the features of other encoders; without a p-value if the two runs were not compared."""
    task, head = best.run.study.name, best.protocol.best_head
    tells = compared is not None and any(known.task == task and known.can_tell for known in compared.tasks)
    folders = {score.folder for score in compared.scores} if compared and tells else set()
    pairs = [pair for pair in compared.pairs if (pair.task, pair.head) == (task, head)] if compared else []
    p_values = {frozenset((pair.first, pair.second)): pair.holm_p_value for pair in pairs}
    for run, protocol in ((row.run, row.protocol) for row in rows if row.run.encoder != best.run.encoder):
        are_compared = {str(run.folder), str(best.run.folder)} <= folders
        p_value = p_values.get(frozenset((run.encoder, best.run.encoder))) if are_compared else None
        yield Rival(run.encoder, run.record.features.kind, protocol.heads[head].score, p_value)


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
        if protocol.kind is DivisionKind.RANDOM:
            title += " (random division)"
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


def confusion_of(scored: HeadRecord) -> tuple[Array, Array]:
    """Counts (C, C) by the true class and what is predicted, and the shares of the true class.

    With several labels a clip: of the clips with the label of a row, those that are predicted to have the label of a column.
    """
    if scored.label_sets is not None:
        counts, clips = np.array(scored.label_sets.confusion), np.diag(scored.label_sets.co_occurrence)[:, None]
    else:
        counts = np.array(scored.confusion or [[0]])
        clips = counts.sum(axis=1, keepdims=True)
    return counts, counts / np.maximum(clips, 1)


def confused_pairs(protocol: ProtocolRecord, names: Sequence[str]) -> list[list[str]]:
    """The most frequent confusions of the better head, by the share of the true class; with several labels a clip, only where a
    predicted label is not there."""
    scored, n_seeds = protocol.heads[protocol.best_head], len(protocol.seeds)
    confusion, share = confusion_of(scored)
    if scored.label_sets is not None:
        confusion, n_seeds = np.array(scored.label_sets.false_alarms), 1
        share = confusion / np.maximum(np.diag(scored.label_sets.co_occurrence)[:, None], 1)
    np.fill_diagonal(share, 0)
    table = [["true", "predicted", "% of the true class", "clips" if n_seeds == 1 else "clips, mean of seeds"]]
    largest = pd.Series(share.ravel()).nlargest(PAIRS)
    for place in largest[largest > 0].index:
        true, predicted = divmod(place, len(names))
        count = f"{confusion[true, predicted] / n_seeds:,.{int(n_seeds > 1)}f}"
        table.append([names[true], names[predicted], percent(share[true, predicted]), count])
    return table if len(table) > 1 else [*table, ["none", "-", "-", "0"]]


def class_score(scored: HeadRecord) -> str:
    """What the scores of classes are."""
    return "F1" if isinstance(scored.per_class, PerClass) else "average precision"


# What the template calls.
SHOWN_BY: list[Callable[..., object]] = [answer_table, answer_words, captioned_tables, confused_pairs, get_plotlyjs]
SHOWN_BY += [class_score, head_title, notes, reading_notes, remarks, run_title, score_table, summary_table]


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
    charts, rows = _similarity_charts(similarity) if similarity else [], summary_rows(runs)
    quantity = Metric.words(row.metric for row in rows)
    data = {
        "summary": _summary_dots(rows),
        "tasks": {f"run{n}": _charts(shown, quote(links[n])) for n, shown in enumerate(reported)},
        "similarity": charts,
        "encoders": _encoder_dots(compared) if compared else None,
        "quantity": quantity,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.globals.update({function.__name__: function for function in SHOWN_BY})
    return environment.get_template("report.html").render(
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        reported=reported,
        titles=[run.study.task.title + f" ({run.folder.name})" * (names.count(run.study.name) > 1) for run in runs],
        links=links,
        task_count=len(set(names)),
        answers=answer(runs, compared),
        level=f"{LEVEL:g}",
        rows=rows,
        quantity=quantity,
        missing=[study.name for study in STUDIES.values() if study.is_main and study.name not in names],
        compared=compared,
        similarity=similarity,
        charts=charts,
        shown_classes=CLASSES,
        files={name: (TEMPLATE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js")},
        # No clip's name may end the script element.
        data=json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _encoder_dots(record: EncodersRecord) -> list[dict[str, object]]:
    """A row of the chart for every task and encoder."""
    return [
        {
            "task": task.title,
            "label": f"{task.title}: {encoder}",
            "heads": scores_of(heads),
            "beside": {"majority_class": [task.chance]},
        }
        for task in record.tasks
        for encoder, heads in record.heads_of(task).items()
        if heads
    ]


def _summary_dots(rows: Sequence[SummaryRow]) -> list[dict[str, object]]:
    """A row of the chart for every run; random divisions only if there is nothing else."""
    dots: list[dict[str, object]] = []
    several = len({row.run.encoder for row in rows}) > 1
    for row in [row for row in rows if row.protocol.kind is not DivisionKind.RANDOM] or rows:
        recipe, published = row.run.record.config.recipe, row.best_published
        more = [*[row.run.encoder] * several, *[recipe] * (recipe != "paper")]
        label = row.run.study.task.title + f" ({', '.join(more)})" * bool(more)
        beside = {
            "majority_class": [row.protocol.majority_class.score],
            "untrained_encoder": [row.untrained_encoder],
            "published_best": [published and published.score / 100],
        }
        dots.append({"label": label, "heads": scores_of(row.protocol.heads), "beside": beside})
    return dots


def _effect_dots(record: AblationRecord) -> list[dict[str, object]]:
    """A row of the chart for every variant: each head's difference, its interval, and the score as a note."""
    dots: list[dict[str, object]] = []
    for both in record.variants:
        heads = {effect.head: (effect.difference, effect.interval, f" ({percent(effect.score)} %)") for effect in both}
        dots.append({"label": both[0].name, "heads": heads})
    return dots


def _charts(reported: ReportedRun, audio: str) -> dict[str, object]:
    """What the page's script draws of one run."""
    run, protocol, ablation = reported.run, reported.run.first_protocol, reported.ablation
    scored, names = protocol.heads[protocol.best_head], run.record.features.class_names
    classes = _class_scores(scored).assign(name=names).dropna().sort_values("value", ascending=False, kind="stable")
    if len(classes) > CLASSES:
        classes = pd.concat([classes[: CLASSES // 2], classes[-CLASSES // 2 :]])
    return {
        "class_names": names,
        "confusion": (100 * confusion_of(scored)[1]).round(2).tolist(),
        "classes": classes.to_dict("records"),
        "class_score": class_score(scored),
        "curves": {kind: _curves(scored) for kind, scored in protocol.heads.items()},
        "map": _map_points(reported),
        "audio": audio,
        "ablation": _effect_dots(ablation) if ablation else None,
    }


def _class_scores(scored: HeadRecord) -> pd.DataFrame:
    """The ``value`` of every class with a ``note``; NaN where it is not defined."""
    table = scored.per_class
    if isinstance(table, PerClass):
        rows = zip(table.precision, table.recall, table.clips, strict=True)
        notes = [f"precision {percent(p)}, recall {percent(r)}, {clips:,.0f} test clips" for p, r, clips in rows]
        return pd.DataFrame({"value": table.f1, "note": notes})
    notes = [f"AUC {percent(auc)}, {clips:,.0f} test clips" for auc, clips in zip(table.auc, table.clips, strict=True)]
    return pd.DataFrame({"value": table.average_precision, "note": notes})


def _curves(scored: HeadRecord) -> dict[str, object]:
    """Mean curves over all fits, and the median epoch kept."""
    validated = [valid for fit in scored.splits if (valid := fit.valid_accuracy or fit.valid_macro_map)]
    return {
        "train_loss": np.mean([fit.train_loss for fit in scored.splits], axis=0).round(4).tolist(),
        "valid": np.mean(validated, axis=0).round(4).tolist() if validated else [],
        "epoch": float(np.median([fit.epoch or 0 for fit in scored.splits])),
    }


def _map_points(reported: ReportedRun) -> dict[str, object]:
    """The points of a map, with the better head's prediction for each clip that was tested."""
    run, rows, points = reported.run, reported.map.rows, reported.map.points.astype(float)
    features, protocol = run.features, run.first_protocol
    table = run.predictions()
    table = table[table["seed"] == protocol.seeds[0]]
    dots = pd.DataFrame({"clip": features.clip_ids, "truth": features.label_texts}).iloc[rows]
    dots["said"] = dots["clip"].map(dict(zip(table["clip_id"], table[protocol.best_head], strict=True)))
    dots["verdict"] = (dots["said"] == dots["truth"]).astype(int).where(dots["said"].notna(), -1)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = np.where(high > low, 0.03 * (high - low), 1)
    return {
        **{str(name): column.tolist() for name, column in dots.fillna("").items()},
        "x": points[:, 0].round(2).tolist(),
        "y": points[:, 1].round(2).tolist(),
        "ranges": np.stack([low - margin, high + margin], axis=1).tolist(),
        "label": features.strata[rows].tolist(),  # of several, the rarest
    }


def _similarity_charts(record: SimilarityRecord) -> list[dict[str, object]]:
    """The heat maps between tasks; None is an empty cell."""
    titles = [STUDIES[name].task.title if name in STUDIES else name for name in record.tasks]
    return [
        {
            "id": heat.name,
            "title": heat.title,
            "caption": heat.caption,
            "z": heat.values.astype(object).where(heat.values.notna(), None).to_numpy().tolist(),
            "names": titles,
            "uncertain": None if heat.uncertain is None else heat.uncertain.tolist(),
        }
        for heat in record.heats()
    ]
