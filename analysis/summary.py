"""One table of all tasks: the heads' scores, beside the stated ones and those of other encoders' features.

Writes summary.csv, summary.md and summary.tex beside the printed table.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

import common  # noqa: F401  # first: it says what is missing

# isort: split
import yaml
from pydantic import BaseModel, ConfigDict

from analysis.runs import COLUMNS, Run, describe_encoder, new_parser, output_folder, runs_for
from common.entry import run
from common.files import write_atomically, write_csv
from common.flags import add_figure_format
from common.text_table import as_latex, as_markdown, as_text, percent, range_of

if TYPE_CHECKING:
    from analysis.encoders import EncodersRecord
    from common.datasets import Task
    from common.evaluation.record import ProtocolRecord
    from common.heads import HeadKind

REFERENCES = Path(__file__).resolve().with_name("references.yaml")
SAMPLE_BELOW = 0.95  # of a data set's clips; with fewer, published scores do not stand beside
Range = tuple[float, float]


class Published(NamedTuple):
    """A published score: encoder, accuracy in percent, key of the source, and what was done otherwise than here."""

    encoder: str
    accuracy: float
    source: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.encoder} {self.accuracy:.1f}" + (f" ({self.note})" if self.note else "")


class TaskReferences(BaseModel):
    """The figures shown beside a task's scores, in percent.

    Attributes:
        expected: (linear, three-layer) as the project's brief states them.
        published: those of other encoders, best first.
        none: why there are none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    expected: Range | None = None
    published: list[Published] = []
    none: str = ""


@dataclass(frozen=True)
class SummaryRow:
    """One run and protocol; scores as shares, None where unknown.

    Attributes:
        protocol: ``official``, ``random``, or ``own``: neither, such as by whole chapters.
        whole: clips of the whole data set; None if unknown.
        best: the better head; `best_low` and `best_high` are the ends of its interval.
        stated_linear, stated_three_layer: as the project's brief states them.
        published: the scores of other encoders; `none_published`: why there are none.
        intervals: of both heads.
    """

    task: str
    title: str
    clips: int
    whole: int | None
    classes: int
    encoder: str
    protocol: str
    division: str
    recipe: str
    seeds: int
    majority_class: float
    untrained_encoder: float | None
    linear: float
    three_layer: float
    best: HeadKind
    best_low: float | None
    best_high: float | None
    stated_linear: float | None
    stated_three_layer: float | None
    intervals: dict[HeadKind, Range | None]
    published: list[Published]
    none_published: str
    folder: str

    def accuracy(self, kind: HeadKind) -> float:
        """The accuracy of one head."""
        return self.linear if kind == "linear" else self.three_layer

    @property
    def is_sample(self) -> bool:
        """Whether the clips are too few of the data set to stand beside scores of all."""
        return _is_sample(self.clips, self.whole)

    @property
    def is_untrained(self) -> bool:
        """Whether the encoder is AudioSep's with random weights."""
        return self.encoder.startswith("untrained")


def summary_rows(runs: Sequence[Run]) -> list[SummaryRow]:
    """One row per run and protocol."""
    references, _ = read_references()
    return [
        _summary_row(one, name, protocol, references.get(one.study.name, TaskReferences()))
        for one in runs
        for name, protocol in one.protocols.items()
    ]


def _summary_row(one: Run, name: str, protocol: ProtocolRecord, known: TaskReferences) -> SummaryRow:
    best = protocol.best_head
    interval = protocol.heads[best].interval
    clips, whole = one.record.features.clips, whole_count(one.study.task)
    if _is_sample(clips, whole):
        known = TaskReferences(expected=known.expected, none=f"only {clips:,} of its {whole:,} clips were used")
    untrained = [
        scored.accuracy
        for control, scored in protocol.controls.items()
        if (made := one.record.controls.get(control.partition(", ")[0])) and made.is_untrained
    ]
    return SummaryRow(
        task=one.study.name,
        title=one.study.task.title,
        clips=clips,
        whole=whole,
        classes=len(one.record.features.class_names),
        encoder=describe_encoder(one.record),
        protocol="official" if protocol.is_official else "random" if protocol.is_random else "own",
        division=protocol.protocol,
        recipe=one.record.config.recipe,
        seeds=len(protocol.seeds),
        majority_class=protocol.majority_class.accuracy,
        untrained_encoder=max(untrained, default=None),
        linear=protocol.heads["linear"].accuracy,
        three_layer=protocol.heads["three_layer"].accuracy,
        best=best,
        best_low=interval[0] if interval else None,
        best_high=interval[1] if interval else None,
        stated_linear=known.expected[0] / 100 if known.expected else None,
        stated_three_layer=known.expected[1] / 100 if known.expected else None,
        intervals={kind: scored.interval for kind, scored in protocol.heads.items()},
        published=known.published,
        none_published=known.none,
        folder=str(one.folder),
    )


def _is_sample(clips: int, whole: int | None) -> bool:
    return whole is not None and clips < SAMPLE_BELOW * whole


def whole_count(task: Task) -> int | None:
    """The clips of a task's whole data set; None if it is not known."""
    return task.official_counts.get("clips")


@cache
def read_references() -> tuple[dict[str, TaskReferences], dict[str, str]]:
    """Task -> the figures shown beside its scores; key -> source."""
    content = yaml.safe_load(REFERENCES.read_text(encoding="utf-8"))
    sources = content.pop("sources")
    return {task: TaskReferences.model_validate(values) for task, values in content.items()}, sources


def summary_table(rows: Sequence[SummaryRow], is_wide: bool) -> list[list[str]]:
    """The rows as text, header first; all in percent.

    `is_wide`: with titles in place of keys, classes, recipe and every published figure.
    """
    with_encoder = len({row.encoder for row in rows}) > 1
    header = ["task", *["encoder"] * with_encoder, "clips", *["classes"] * is_wide, "protocol"]
    header += [*["recipe"] * is_wide, "linear", "three-layer", "best, 95 %", "chance", "stated"]
    table = [[*header, *["published"] * is_wide]]
    for row in rows:
        stated = (row.stated_linear, row.stated_three_layer)
        published = list(map(str, row.published))
        table.append(
            [
                row.title if is_wide else row.task,
                *[row.encoder] * with_encoder,
                f"{row.clips:,}",
                *[str(row.classes)] * is_wide,
                row.protocol,
                *[row.recipe] * is_wide,
                percent(row.linear),
                percent(row.three_layer),
                range_of(row.intervals[row.best]),
                percent(row.majority_class),
                "/".join(f"{100 * each:.0f}" for each in stated if each is not None) or "-",
                *[", ".join(published) or "-"] * is_wide,
            ]
        )
    return table


def notes(rows: Sequence[SummaryRow]) -> list[str]:
    """What a reader must know about the table."""
    _, sources = read_references()
    used = {each.source for row in rows for each in row.published}
    encoders = sorted({row.encoder for row in rows})
    lines = [
        f"Encoder{'s' * (len(encoders) > 1)}: {'; '.join(encoders)}.",
        "stated: linear/three-layer as the project's brief gives them, as examples; they are not measurements.",
        "chance: always predicting the most frequent training class. best, 95 %: of the better head, by groups.",
    ]
    if any(row.is_untrained for row in rows):
        lines.insert(1, "An UNTRAINED encoder's scores say nothing about AudioSep.")
    if any(row.protocol == "random" for row in rows):
        lines.append(
            "random: stratified, with related clips on both sides; its scores are too high wherever clips are related."
        )
    if used:
        listed = "; ".join(sources[source] for source in sorted(used))
        lines.append(
            "published: linear probes of other frozen encoders, as their authors report them; their protocols are close to the "
            f"official ones, and what is known to differ is in brackets: {listed}."
        )
    lines += [
        f"No published score for {task}: {why}."
        for task, why in {row.task: row.none_published for row in rows}.items()
        if why
    ]
    return lines


def write_summary(rows: Sequence[SummaryRow], folder: Path) -> list[Path]:
    """Write summary.csv, .md and .tex into `folder`."""
    columns = [each.name for each in fields(SummaryRow) if each.name not in ("intervals", "none_published")]
    table: list[list[object]] = [list(columns)]
    for row in rows:
        published = "; ".join(map(str, row.published))
        table.append([published if name == "published" else getattr(row, name) for name in columns])
    write_csv(folder / "summary.csv", table)
    wide, lines = summary_table(rows, is_wide=True), notes(rows)
    contents = {
        "summary.md": as_markdown(wide) + "\n\nPercent. " + "\n".join(f"{line}  " for line in lines) + "\n",
        "summary.tex": as_latex(wide) + "".join(f"% {line}\n" for line in lines),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content.encode())
    return [folder / name for name in ("summary.csv", *contents)]


def main() -> None:
    parser = new_parser(__doc__)
    add_figure_format(parser)
    given = parser.parse_args()
    from analysis.encoder_tables import write_encoders
    from analysis.encoders import compare_encoders, read_costs

    runs, folder = runs_for(given), output_folder(given)
    rows = summary_rows(runs)
    print(as_text(summary_table(rows, is_wide=False)))
    print("\n".join(textwrap.fill(line, COLUMNS) for line in notes(rows)))
    written = write_summary(rows, folder)
    compared = compare_encoders(runs, read_costs(folder))
    if compared is not None:
        _print_encoders(compared)
        written += write_encoders(compared, folder, given.figure_format)
    print(f"-> {', '.join(map(str, written))}")


def _print_encoders(record: EncodersRecord) -> None:
    from analysis.encoder_tables import encoder_table, pair_table, ranking_table, reading_notes
    from common.heads import HEADS, head_title

    for head in HEADS:
        print(f"\nEncoders, {head_title(head)} head, accuracy in percent (95 %)")
        print(as_text(encoder_table(record, head)))
    print(f"\n{as_text(ranking_table(record))}")
    print(f"\n{as_text(pair_table(record), left=4)}")
    print("\n".join(textwrap.fill(line, COLUMNS) for line in reading_notes(record)))


if __name__ == "__main__":
    run(main)
