"""A report as HTML: its content as plain data, inserted into the template with its style, script and chart library."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import jinja2
import numpy as np
from plotly.offline import get_plotlyjs

from analysis.ablation_scores import AblationRecord
from analysis.compare import LEVEL, EncodersRecord
from analysis.compare_tables import encoder_table, pair_table, ranking_table, reading_notes
from analysis.maps import FeatureMap
from analysis.report_page.answer import answer, answer_table, answer_words
from analysis.scores import Run
from analysis.similarity import COSTS, MEASURES, SimilarityRecord
from analysis.studies import STUDIES
from analysis.summary import SummaryRow, notes, summary_rows, summary_table
from common.arrays import Array
from common.datasets import DivisionKind
from common.encoder_name import EncoderKind
from common.evaluation.record import ProtocolRecord
from common.evaluation.text import remarks, run_title, score_table
from common.heads import HEADS, HeadKind, head_title
from common.text_table import percent

TEMPLATE = Path(__file__).resolve().with_name("template")
PAIRS = 12  # confusions that are listed
CLASSES = 60  # bars of a chart; if there are more classes, the best and the worst
Table = list[list[str]]


@dataclass(frozen=True)
class ReportedRun:
    """A run with what the report shows of it.

    Attributes:
        run: the run.
        map: its map.
        audio: the data root that its clips are played from.
        ablation: of its task and encoder, if there is one.
    """

    run: Run
    map: FeatureMap
    audio: Path
    ablation: AblationRecord | None


@dataclass(frozen=True)
class HeatChart:
    """A heat map between tasks, as the page's script draws it; None in `z` is an empty cell."""

    id: str
    title: str
    caption: str
    words: str
    z: list[list[float | None]]
    digits: int
    diverging: bool
    names: list[str]
    uncertain: list[list[bool]] | None = None


def render(
    reported: Sequence[ReportedRun],
    similarity: SimilarityRecord | None,
    folder: Path,
    compared: EncodersRecord | None = None,
) -> str:
    """The page.

    Args:
        reported: the runs, in order.
        similarity: what analysis/task_similarity.py has written.
        folder: where the page will be; links to the sounds are relative to it.
        compared: the encoders against each other, if there are several.
    """
    runs = [shown.run for shown in reported]
    rows = summary_rows(runs)
    sections, tasks = [], {}
    for number, shown in enumerate(reported):
        link = Path(os.path.relpath(shown.audio, folder)).as_posix()
        has_siblings = sum(run.study is shown.run.study for run in runs) > 1
        sections.append({"id": f"run{number}", **_section(shown, has_siblings, link)})
        tasks[f"run{number}"] = _task_charts(shown, quote(link))
    charts = _similarity_charts(similarity) if similarity else []
    untrained = [run.record.features.is_untrained for run in runs]
    encoders = {run.encoder for run in runs}
    answers = answer(runs, compared)
    present = {run.study.name for run in runs}
    data = {
        "summary": [_summary_point(row, len(encoders) > 1) for row in rows],
        "tasks": tasks,
        "similarity": [asdict(chart) for chart in charts],
        "encoders": _encoder_points(compared) if compared else None,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html").render(
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        task_count=len(present),
        untrained="all" if all(untrained) else "some" if any(untrained) else "",
        question=_question(runs),
        answer=answer_table(answers),
        answer_words=answer_words(answers),
        level=f"{LEVEL:g}",
        summary=summary_table(rows, is_wide=True),
        summary_notes=[*notes(rows), *_leak_note(runs)],
        missing=[study.name for study in STUDIES.values() if study.is_main and study.name not in present],
        similarity=charts,
        encoder_tables=_encoder_tables(compared) if compared else [],
        encoder_notes=reading_notes(compared) if compared else [],
        method=compared.method if compared else "",
        compared="" if similarity is None else similarity.words,
        sections=sections,
        style=(TEMPLATE / "report.css").read_text(encoding="utf-8"),
        script=(TEMPLATE / "report.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
        # No clip's name may end the script element.
        data=json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _question(runs: Sequence[Run]) -> str:
    """The page's title."""
    features = [run.record.features for run in runs]
    if {made_by.kind for made_by in features} <= {EncoderKind.AUDIOSEP, EncoderKind.UNTRAINED, None}:
        return "How good are AudioSep’s frozen features?"
    if len({made_by.slug for made_by in features}) == 1:
        return "How good are these features?"
    return "How good are these encoders’ frozen features?"


def _encoder_tables(record: EncodersRecord) -> list[tuple[str, Table]]:
    """The tables of the comparison, with their captions."""
    by_head = [
        (f"{head_title(head).capitalize()} head: accuracy in percent (95 %)", encoder_table(record, head))
        for head in HEADS
    ]
    stability = ("How stable the first place is", ranking_table(record))
    return [*by_head, stability, ("Every two encoders, points", pair_table(record))]


def _encoder_points(record: EncodersRecord) -> list[dict[str, object]]:
    """A row of the chart for every task and encoder."""
    return [
        {
            "task": task.title,
            "label": f"{task.title}: {score.encoder}",
            "majority_class": task.chance,
            **{head: scored.accuracy for head, scored in score.heads.items()},
            "intervals": {head: scored.interval for head, scored in score.heads.items()},
        }
        for task in record.tasks
        for score in task.scores
    ]


def _leak_note(runs: Sequence[Run]) -> list[str]:
    """What a random division changes, if one was run."""
    gains = [
        (100 * (random.heads[kind].accuracy - scored.accuracy), run.study.task.title, kind)
        for run in runs
        if (random := run.protocols.get("random")) and run.first_protocol.kind is not DivisionKind.RANDOM
        for kind, scored in run.first_protocol.heads.items()
    ]
    if not gains:
        return []
    gain, title, kind = max(gains)
    return [
        f"A random division, which puts related clips on both sides, changes scores by up to {gain:+.1f} points "
        f"({title}, {head_title(kind)} head)."
    ]


def _summary_point(row: SummaryRow, with_encoder: bool) -> dict[str, object]:
    recipe, protocol = row.run.record.config.recipe, row.protocol
    more = [*[row.run.encoder] * with_encoder, *[recipe] * (recipe != "paper")]
    return {
        "label": row.run.study.task.title + f" ({', '.join(more)})" * bool(more),
        "protocol": protocol.kind.label,
        "linear": row.accuracy("linear"),
        "three_layer": row.accuracy("three_layer"),
        "majority_class": protocol.majority_class.accuracy,
        "untrained_encoder": row.untrained_encoder,
        "intervals": {kind: scored.interval for kind, scored in protocol.heads.items()},
        "published_best": row.best_published and row.best_published.accuracy / 100,
    }


def _section(reported: ReportedRun, has_siblings: bool, audio_link: str) -> dict[str, object]:
    """What the template shows of one run."""
    run, ablation = reported.run, reported.ablation
    record, features, first = run.record, run.record.features, run.first_protocol
    names, best = features.class_names, run.first_protocol.best_head
    about = (
        f"{features.clips:,} clips, {len(names)} classes. Encoder: {run.encoder}. "
        f"Features: {features.layer or 'unknown layer'}, {features.pool or 'unknown'} pool, "
        f"condition {features.condition or 'unknown'}."
    )
    missing = features.counts.get("missing", 0)
    failed = features.counts.get("failed", 0) - missing
    for number, why in ((failed, "could not be read"), (missing, "were not there")):
        if number:
            about += f" {number:,} clips {why} and are left out; the feature file names them."
    plays = f"Clips play from {audio_link}, once the data set is there."
    if reported.audio.is_dir():
        plays = f"Click a dot to play its clip, from {audio_link}."
    return {
        "title": run.study.task.title + (f" ({run.folder.name})" if has_siblings else ""),
        "about": about,
        "protocols": [
            {
                "name": protocol.kind.label,
                "title": run_title(run.study.task, record, protocol),
                "table": score_table(protocol),
                "remarks": remarks(protocol),
            }
            for protocol in run.protocols.values()
        ],
        "division": first.division[:1].upper() + first.division[1:],
        "head": head_title(best),
        "pairs": _confused_pairs(np.array(first.heads[best].confusion), names, len(first.seeds)),
        "class_names": names,
        "shown_classes": CLASSES,
        "map_caption": reported.map.caption,
        "audio_words": plays,
        "record": run.folder / "result.json",
        "ablation": ablation and f"{ablation.baseline_words} {ablation.clips_words}; 95 % intervals by groups.",
    }


def _confused_pairs(confusion: Array, names: Sequence[str], n_seeds: int) -> Table:
    """The most frequent confusions, by the share of the true class."""
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(share, 0)
    table = [["true", "predicted", "% of the true class", "clips" if n_seeds == 1 else "clips, mean of seeds"]]
    for flat in np.argsort(-share, axis=None, kind="stable")[:PAIRS]:
        true, predicted = np.unravel_index(flat, share.shape)
        if share[true, predicted] > 0:
            count = f"{confusion[true, predicted] / n_seeds:,.{int(n_seeds > 1)}f}"
            table.append([names[true], names[predicted], percent(float(share[true, predicted])), count])
    return table if len(table) > 1 else [*table, ["none", "-", "-", "0"]]


def _task_charts(reported: ReportedRun, audio: str) -> dict[str, object]:
    """What the page's script draws of one run."""
    run = reported.run
    protocol = run.first_protocol
    best, names = protocol.best_head, run.record.features.class_names
    effects = reported.ablation.model_dump(mode="json")["effects"] if reported.ablation else None
    return {
        "class_names": names,
        "confusion": protocol.heads[best].confusion,
        "f1": _class_bars(protocol, best, names),
        "curves": {kind: _curves(protocol, kind) for kind in protocol.heads},
        "map": _map_points(run, best, reported.map),
        "audio": audio,
        "ablation": effects,
    }


def _class_bars(protocol: ProtocolRecord, kind: HeadKind, names: Sequence[str]) -> list[dict[str, object]]:
    scored = protocol.heads[kind].per_class
    order = sorted(range(len(names)), key=lambda label: -scored.f1[label])
    if len(order) > CLASSES:
        order = order[: CLASSES // 2] + order[-CLASSES // 2 :]
    scores = scored.model_dump(exclude={"clips"})
    return [
        {
            "name": names[label],
            **{name: values[label] for name, values in scores.items()},
            "clips": round(scored.clips[label]),
        }
        for label in order
    ]


def _curves(protocol: ProtocolRecord, kind: HeadKind) -> dict[str, object]:
    """Mean curves over all fits, and the median epoch kept."""
    fits = protocol.heads[kind].splits
    validated = [fit.valid_accuracy for fit in fits if fit.valid_accuracy]
    return {
        "train_loss": np.mean([fit.train_loss for fit in fits], axis=0).round(4).tolist(),
        "valid_accuracy": np.mean(validated, axis=0).round(4).tolist() if validated else [],
        "epoch": float(np.median([fit.epoch or 0 for fit in fits])),
    }


def _map_points(run: Run, kind: HeadKind, drawn: FeatureMap) -> dict[str, object]:
    """The points of a map, with the head's prediction for each clip that was tested."""
    features, (x, y) = run.features, drawn.points.astype(float).T
    label_of = {name: label for label, name in enumerate(features.class_names)}
    table = run.predictions()
    table = table[table["seed"] == run.first_protocol.seeds[0]]
    predicted = dict(zip(table["clip_id"], table[kind], strict=True))
    clips = [features.clip_ids[row] for row in drawn.rows]
    return {
        "x": x.round(2).tolist(),
        "y": y.round(2).tolist(),
        "bounds": {"x": [x.min(), x.max()], "y": [y.min(), y.max()]},
        "label": features.labels[drawn.rows].tolist(),
        "said": [label_of[predicted[clip]] if clip in predicted else -1 for clip in clips],
        "clip": clips,
    }


def _similarity_charts(record: SimilarityRecord) -> list[HeatChart]:
    """The heat maps between tasks."""
    titles = [STUDIES[name].task.title if name in STUDIES else name for name in record.tasks]
    charts = []
    for key, (title, how) in MEASURES.items():
        caption = f"{how[:1].upper()}{how[1:]}. {record.reading(key)}"
        values = np.array(record.measures[key])
        words = _largest(values, titles)
        charts.append(HeatChart(f"similarity-{key}", title, caption, words, values.tolist(), 2, False, titles))
    for key, title in COSTS.items() if record.transfer else ():
        values, uncertain = record.transfer_points(key)
        caption = (
            "Points of accuracy (linear head) of the row’s task, prepared by what was fitted on the column’s clips; "
            "red: loss; in brackets: the 95 % interval covers 0."
        )
        values = values.round(2)
        z = [[None if np.isnan(value) else value for value in row] for row in values.tolist()]
        words = _largest(values, titles)
        charts.append(HeatChart(f"transfer-{key}", title, caption, words, z, 1, True, titles, uncertain.tolist()))
    return charts


def _largest(values: Array, names: Sequence[str]) -> str:
    """The largest value between two tasks, in words."""
    between = np.where(np.eye(len(names), dtype=bool) | np.isnan(values), -1, np.abs(values))
    largest = between.max(initial=-1)
    if largest < 0:
        return "nothing to compare"
    row, column = np.argwhere(between == largest)[-1]
    return f"largest between {names[row]} and {names[column]}, {values[row, column]:.2f}"
