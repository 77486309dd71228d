"""One table of all tasks: the heads' scores, beside the stated ones and those of other encoders' features.

Writes summary.csv, summary.md and summary.tex beside the printed table.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

import common  # noqa: F401  # first: it says what is missing

# isort: split
import yaml
from pydantic import TypeAdapter

from analysis.scores import WIDTH, Run, new_parser, output_folder, runs_for
from common.datasets import DivisionKind, Metric
from common.files import write_atomically, write_csv
from common.flags import add_figure_format
from common.flags import run as run_script
from common.text_table import as_latex, as_markdown, as_text, percent, range_of

if TYPE_CHECKING:
    from common.evaluation.record import HeadRecord, ProtocolRecord

REFERENCES = Path(__file__).resolve().with_name("references.yaml")
SAMPLE_BELOW = 0.95  # of a data set's clips; with fewer, published scores do not stand beside


class Published(NamedTuple):
    """A published score: encoder, accuracy or mAP in percent, key of the source, and what was done differently."""

    encoder: str
    score: float
    source: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.encoder} {self.score:.1f}" + f" ({self.note})" * bool(self.note)


class TaskReferences(NamedTuple):
    """The figures shown beside a task's scores, in percent."""

    expected: tuple[float, float] | None = None  # linear, three-layer, as the project's brief states them
    published: Sequence[Published] = ()  # of other encoders, best first
    none: str = ""  # why there are none


@dataclass(frozen=True)
class SummaryRow:
    """One run and protocol, with the figures that may stand beside its scores."""

    run: Run
    protocol: ProtocolRecord
    references: TaskReferences
    whole: int | None  # clips of the whole data set, if known
    is_sample: bool  # whether those of the run are too few to stand beside scores of all

    @property
    def metric(self) -> Metric:
        """The score that the task is judged by."""
        return self.protocol.majority_class.metric

    @property
    def best(self) -> HeadRecord:
        return self.protocol.heads[self.protocol.best_head]

    @property
    def untrained_encoder(self) -> float | None:
        """The best score of a control with random weights, if there is one."""
        untrained = {name for name, encoder in self.run.record.controls.items() if encoder.is_untrained}
        controls = [heads for name, heads in self.protocol.controls.items() if name in untrained]
        return max((scored.score for heads in controls for scored in heads.values()), default=None)


def summary_rows(runs: Sequence[Run]) -> list[SummaryRow]:
    rows = []
    for run in runs:
        known = read_references()[0].get(run.study.name, TaskReferences())
        clips, whole = run.record.features.clips, run.study.task.official_counts.clips
        is_sample = whole is not None and clips < SAMPLE_BELOW * whole
        if is_sample:
            known = TaskReferences(expected=known.expected, none=f"only {clips:,} of its {whole:,} clips were used")
        rows += [SummaryRow(run, protocol, known, whole, is_sample) for protocol in run.record.protocols.values()]
    return rows


@cache
def read_references() -> tuple[dict[str, TaskReferences], dict[str, str]]:
    """Task -> the figures shown beside its scores; key -> source."""
    content = yaml.safe_load(REFERENCES.read_text(encoding="utf-8"))
    sources = content.pop("sources")
    return TypeAdapter(dict[str, TaskReferences]).validate_python(content), sources


def summary_table(rows: Sequence[SummaryRow], is_wide: bool, with_stated: bool = False) -> list[list[str]]:
    """The rows as text, header first, in percent; `is_wide`: with titles, classes, recipe and every published figure;
    `with_stated`: with the example numbers of the task description."""
    hidden = set() if is_wide else {"classes", "recipe", "published"}
    if not with_stated:
        hidden.add("examples")
    if {row.metric for row in rows} == {Metric.ACCURACY}:
        hidden.add("score")
    if not is_wide and len({row.run.encoder for row in rows}) == 1:
        hidden.add("encoder")
    table = []
    for row in rows:
        run, features, stated = row.run, row.run.record.features, row.references.expected
        cells = {
            "task": run.study.task.title if is_wide else run.study.name,
            "encoder": run.encoder,
            "clips": f"{features.clips:,}",
            "classes": str(len(features.class_names)),
            "protocol": row.protocol.kind.label,
            "score": row.metric.label,
            "recipe": run.record.config.recipe,
            "linear": percent(row.protocol.heads["linear"].score),
            "three-layer": percent(row.protocol.heads["three_layer"].score),
            "best, 95 %": range_of(row.best.interval),
            "chance": percent(row.protocol.majority_class.score),
            "examples": "-" if stated is None else "/".join(f"{value:.0f}" for value in stated),
            "published": ", ".join(map(str, row.references.published)) or "-",
        }
        table.append({title: cell for title, cell in cells.items() if title not in hidden})
    return [list(table[0]), *(list(cells.values()) for cells in table)]


def thesis_table(rows: Sequence[SummaryRow]) -> str:
    """Both heads' scores in LaTeX with a full caption: a row a task and encoder; a random division only of what has no other."""
    divided = {id(row.run) for row in rows if row.protocol.kind is not DivisionKind.RANDOM}
    rows = [row for row in rows if row.protocol.kind is not DivisionKind.RANDOM or id(row.run) not in divided]
    columns: dict[str, list[str]] = {
        "encoder": [row.run.encoder for row in rows],
        "protocol": [row.protocol.kind.label for row in rows],
        "recipe": [row.run.record.config.recipe for row in rows],
    }
    names = [name for name, values in columns.items() if len(set(values)) > 1]
    table = [["task", *names, "linear", "three-layer", "chance"]]
    for place, row in enumerate(rows):
        cells = [_with_spread(scored) for scored in row.protocol.heads.values()]
        named = [columns[name][place] for name in names]
        table.append([row.run.study.task.title, *named, *cells, percent(row.protocol.majority_class.score)])
    settings = dict.fromkeys(
        f"{row.run.record.config.recipe} recipe, seed{'s' * (len(row.protocol.seeds) > 1)} "
        + "--".join(str(seed) for seed in dict.fromkeys((row.protocol.seeds[0], row.protocol.seeds[-1])))
        for row in rows
    )
    untrained = " Scores of untrained encoders say nothing about AudioSep." * any(
        row.run.record.features.is_untrained for row in rows
    )
    quantity = Metric.words(row.metric for row in rows)
    caption = (
        f"{quantity[:1].upper()}{quantity[1:]} in percent of a linear head and a head of three layers on frozen embeddings of "
        f"{'; '.join(dict.fromkeys(columns['encoder']))}.{untrained} In brackets: 95 % intervals over groups (± is the standard "
        f"deviation over seeds, where there are too few). Protocol: {', '.join(dict.fromkeys(columns['protocol']))}; "
        f"{'; '.join(settings)}. Chance: the most frequent training class."
    )
    return as_latex(table, caption, left=1 + len(names))


def _with_spread(scored: HeadRecord) -> str:
    """A score in percent with its interval, or else its standard deviation over seeds."""
    if scored.interval is not None:
        low, high = (percent(end) for end in scored.interval)
        return f"{percent(scored.score)} ({low}–{high})"
    deviation = scored.std_over_seeds
    return percent(scored.score) + (f" ± {percent(deviation[scored.metric.value])}" if deviation else "")


def notes(rows: Sequence[SummaryRow], with_stated: bool = False) -> list[str]:
    """What a reader must know about the table."""
    _, sources = read_references()
    used = {score.source for row in rows for score in row.references.published}
    encoders = sorted({row.run.encoder for row in rows})
    lines = [
        f"Encoder{'s' * (len(encoders) > 1)}: {'; '.join(encoders)}.",
        "chance: always predicting the most frequent training class; of mAP, how frequent every label is. best, 95 %: of the "
        "better head, by groups; the same test clips chose that head, so it is a little too high.",
    ]
    if with_stated:
        lines.append("examples: linear/three-layer, example numbers of the task description; nobody measured them.")
    if any(row.run.record.features.is_untrained for row in rows):
        lines.insert(1, "An UNTRAINED encoder's scores say nothing about AudioSep.")
    kinds = {row.protocol.kind for row in rows}
    if DivisionKind.RANDOM in kinds:
        lines.append("random: stratified, related clips on both sides; too high wherever clips are related.")
    if kinds & {DivisionKind.OWN_FOLDS, DivisionKind.OWN_SPLIT}:
        lines.append("own folds, own split: a division that is not the data set authors'.")
    if used:
        how = "linear probes of other frozen encoders, as their authors report them; known differences in brackets"
        lines.append(f"published: {how}: {'; '.join(sources[source] for source in sorted(used))}.")
    unpublished = {row.run.study.name: row.references.none for row in rows}
    return lines + [f"No published score for {task}: {why}." for task, why in unpublished.items() if why]


def write_summary(rows: Sequence[SummaryRow], folder: Path, with_stated: bool = False) -> list[Path]:
    cells = [_as_csv(row, with_stated) for row in rows]
    write_csv(folder / "summary.csv", [list(cells[0]), *(list(row.values()) for row in cells)])
    wide, lines = summary_table(rows, is_wide=True, with_stated=with_stated), notes(rows, with_stated)
    contents = {
        "summary.md": as_markdown(wide) + "\n\nPercent. " + "\n".join(f"{line}  " for line in lines) + "\n",
        "summary.tex": thesis_table(rows),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content.encode())
    return [folder / name for name in ("summary.csv", *contents)]


def _as_csv(row: SummaryRow, with_stated: bool) -> dict[str, object]:
    run, protocol = row.run, row.protocol
    low, high = row.best.interval or (None, None)
    linear, three_layer = (score and score / 100 for score in row.references.expected or (None, None))
    stated = {"example_linear": linear, "example_three_layer": three_layer} if with_stated else {}
    return {
        "task": run.study.name,
        "title": run.study.task.title,
        "clips": run.record.features.clips,
        "whole": row.whole,
        "classes": len(run.record.features.class_names),
        "encoder": run.encoder,
        "protocol": protocol.kind.value,
        "metric": row.metric.value,
        "division": protocol.division,
        "hash": protocol.identity.hash,
        "recipe": run.record.config.recipe,
        "seeds": len(protocol.seeds),
        "majority_class": protocol.majority_class.score,
        "untrained_encoder": row.untrained_encoder,
        "linear": protocol.heads["linear"].score,
        "three_layer": protocol.heads["three_layer"].score,
        "best": protocol.best_head,
        "best_low": low,
        "best_high": high,
        **stated,
        "published": "; ".join(map(str, row.references.published)),
        "folder": run.folder,
    }


def main() -> None:
    parser = new_parser(__doc__)
    text = "print the table for a thesis or paper, which summary.tex has too"
    parser.add_argument("--latex", action="store_true", help=text)
    text = "beside the scores, the example numbers of the task description, which nobody measured"
    parser.add_argument("--stated", action="store_true", help=text)
    add_figure_format(parser)
    arguments = parser.parse_args()
    from analysis.compare import captioned_tables, compare_encoders, reading_notes, write_encoders

    runs, folder = runs_for(arguments), output_folder(arguments)
    rows = summary_rows(runs)
    written = write_summary(rows, folder, arguments.stated)
    if arguments.latex:
        print(thesis_table(rows), end="")
        print(f"-> {', '.join(map(str, written))}", file=sys.stderr)
        return
    print(as_text(summary_table(rows, is_wide=False, with_stated=arguments.stated)))
    print("\n".join(textwrap.fill(line, WIDTH) for line in notes(rows, arguments.stated)))
    compared = compare_encoders(runs, folder)
    if compared is not None:
        for caption, table, left in captioned_tables(compared):
            print(f"\n{caption}\n{as_text(table, left)}")
        print("\n".join(textwrap.fill(line, WIDTH) for line in reading_notes(compared)))
        written += write_encoders(compared, folder, arguments.figure_format)
    print(f"-> {', '.join(map(str, written))}")


if __name__ == "__main__":
    run_script(main)
