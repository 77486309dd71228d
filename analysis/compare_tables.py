"""The comparison of encoders as tables, files and a picture, with what a reader must know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.compare import LEVEL, EncodersRecord
from analysis.plots import plot_encoders
from common.evaluation.intervals import MIN_GROUPS
from common.files import write_atomically, write_csv
from common.heads import HEADS, HeadKind, head_title
from common.text_table import as_latex, as_markdown, escape_latex, percent


def encoder_table(record: EncodersRecord, head: HeadKind) -> list[list[str]]:
    """Encoders by tasks for one head, header first; percent with intervals, ``*`` for the leaders."""
    header = ["encoder", "parameters", "width", "audio s/s", *(task.title for task in record.tasks)]
    ranked = bool(record.average_rank)
    table = [[*header, *["mean rank"] * ranked]]
    for encoder, cost in record.encoders.items():
        cells = []
        for task in record.tasks:
            scored = task.score_of(encoder)
            if scored is None:
                cells.append("-")
                continue
            score = scored.heads[head]
            between = " ({:.1f}-{:.1f})".format(*(100 * end for end in score.interval)) if score.interval else ""
            cells.append(percent(score.accuracy) + between + "*" * (encoder in record.leaders(task, head)))
        parameters = f"{cost.parameters / 1e6:.1f} M" if cost.parameters else "-"
        speed = "-" if cost.speed is None else f"{cost.speed:,.0f}"
        rank = [f"{record.average_rank[encoder][head]:.1f}"] if ranked else []
        table.append([encoder, parameters, f"{cost.width:,}" if cost.width else "-", speed, *cells, *rank])
    table.append(["chance", "", "", "", *(percent(task.chance) for task in record.tasks), *[""] * ranked])
    return table


def pair_table(record: EncodersRecord) -> list[list[str]]:
    """Every pair, header first: the difference in points, its interval and p-values."""
    titles = {task.task: task.title for task in record.tasks}
    table = [["task", "head", "first", "second", "first - second", "95 %", "p", "p, Holm"]]
    for pair in record.pairs:
        interval = "-" if pair.interval is None else " to ".join(f"{100 * end:+.1f}" for end in pair.interval)
        p_values = ["-" if value is None else f"{value:.2g}" for value in (pair.p_value, pair.holm_p_value)]
        names = [titles[pair.task], head_title(pair.head), pair.first, pair.second]
        table.append([*names, f"{100 * pair.difference:+.1f}", interval, *p_values])
    return table


def ranking_table(record: EncodersRecord) -> list[list[str]]:
    """How stable each task's first place is: the share of group bootstraps in which an encoder is first."""
    columns = [f"{task.title}, {head_title(head)}" for task in record.tasks for head in HEADS]
    table = [["first in % of bootstraps", *columns]]
    for encoder in record.encoders:
        cells = []
        for task in record.tasks:
            scored = task.score_of(encoder)
            shares = [scored.first[head] if scored else None for head in HEADS]
            cells += ["-" if share is None else f"{100 * share:.0f}" for share in shares]
        table.append([encoder, *cells])
    return table


def reading_notes(record: EncodersRecord) -> list[str]:
    """What a reader must know about the tables."""
    few = [f"{task.title} ({task.n_units})" for task in record.tasks if task.n_units < 20 and record.can_tell(task)]
    too_few = [f"{task.title} ({task.n_units})" for task in record.tasks if not record.can_tell(task)]
    unknown = [task.title for task in record.tasks if task.units == "clips"]
    lines = [
        "* the best of its column, and all that are not significantly worse: paired by groups, corrected for "
        f"{len(record.pairs)} tests (Holm), level {LEVEL:g}.",
        "Intervals are of each score for itself; whether two encoders differ is in the table of pairs.",
    ]
    if unknown:
        names = ", ".join(unknown)
        lines.append(f"Which clips are related is unknown in {names}: there single clips are swapped and resampled.")
    if few:
        lines.append(f"Few groups, so wide intervals and weak tests: {', '.join(few)}.")
    if too_few:
        lines.append(
            f"Too few groups for any difference to be significant, so nothing is marked: {', '.join(too_few)}; below "
            f"{MIN_GROUPS} groups there is no interval either."
        )
    shared = [task.title for task in record.tasks if len(task.scores) == len(record.encoders)]
    if not record.average_rank:
        lines.append("No mean rank: no task has been run with every encoder.")
    elif len(shared) < len(record.tasks):
        lines.append(f"Mean rank: over {', '.join(shared)}, which every encoder has.")
    measured = {cost.measured_on for cost in record.encoders.values() if cost.measured_on}
    if measured:
        lines.append(
            f"audio s/s: seconds of audio per second, clips of 5 s one by one, on {'; '.join(sorted(measured))}."
        )
    failing = [f"{name} ({', '.join(cost.fails)})" for name, cost in record.encoders.items() if cost.fails]
    if failing:
        lines.append(
            f"WARNING: what every encoder needs does not hold of {'; '.join(failing)}: its scores mean little."
        )
    lines += [f"Not compared: {reason}." for reason in record.left_out]
    return lines


def write_encoders(record: EncodersRecord, folder: Path, figure_format: str = "png") -> list[Path]:
    """Write encoders.json, .csv (every pair), .md, .tex and a picture into `folder`."""
    parts = [
        f"**{head_title(head).capitalize()} head** (accuracy, percent)\n\n{as_markdown(encoder_table(record, head))}"
        for head in HEADS
    ]
    notes = "\n".join(f"- {line}" for line in reading_notes(record))
    tables = [as_markdown(ranking_table(record)), as_markdown(pair_table(record), left=4)]
    tex = "\n".join(f"% {head_title(head)} head\n{as_latex(encoder_table(record, head))}" for head in HEADS)
    comments = "".join(f"% {line}\n" for line in reading_notes(record))
    contents = {
        "encoders.json": record.model_dump_json(indent=1) + "\n",
        "encoders.md": "\n\n".join([*parts, notes, *tables, record.method]) + "\n",
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
    caption = "95 % intervals of each score by groups; whether two encoders differ is in the table of pairs."
    picture = folder / f"encoders.{figure_format}"
    plot_encoders(record.tasks, list(record.encoders), caption, picture)
    return [*(folder / name for name in (*contents, "encoders.csv")), picture]
