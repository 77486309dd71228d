"""One table of all tasks: the heads' scores, beside the stated ones and those of other encoders' features.

Writes summary.csv, summary.md and summary.tex beside the printed table.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import BaseModel, ConfigDict

from analysis.runs import COLUMNS, Run, describe_encoder, new_parser, output_folder, runs_for
from common.entry import run
from common.files import write_atomically, write_csv

if TYPE_CHECKING:
    from common.evaluation.record import ProtocolRecord
    from common.heads import HeadKind

REFERENCES = Path(__file__).resolve().with_name("references.yaml")
Range = tuple[float, float]


class TaskReferences(BaseModel):
    """The figures shown beside a task's scores, in percent.

    Attributes:
        expected: (linear, three-layer) as the project's brief states them.
        published: (encoder, accuracy, key of the source).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    expected: Range | None = None
    published: list[tuple[str, float, str]] = []


@dataclass(frozen=True)
class SummaryRow:
    """One run and protocol; scores as shares, None where unknown.

    Attributes:
        protocol: ``official``, ``random``, or ``own``: the task's own if there is no official one.
        best: the better head; `best_low` and `best_high` are the ends of its interval.
        stated_linear, stated_three_layer: as the project's brief states them.
        published: (encoder, percent, source).
        intervals: of both heads.
    """

    task: str
    title: str
    clips: int
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
    published: list[tuple[str, float, str]]
    folder: str

    def accuracy(self, kind: HeadKind) -> float:
        """The accuracy of one head."""
        return self.linear if kind == "linear" else self.three_layer

    @property
    def is_untrained(self) -> bool:
        """Whether the encoder is untrained."""
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
    untrained = [scored.accuracy for control, scored in protocol.controls.items() if control.startswith("random")]
    return SummaryRow(
        task=one.study.name,
        title=one.study.task.title,
        clips=one.record.features.clips,
        classes=len(one.record.features.class_names),
        encoder=describe_encoder(one.record),
        protocol=name if protocol.is_official or name == "random" else "own",
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
        folder=str(one.folder),
    )


def read_references() -> tuple[dict[str, TaskReferences], dict[str, str]]:
    """Task -> the figures shown beside its scores; key -> source."""
    content = yaml.safe_load(REFERENCES.read_text(encoding="utf-8"))
    sources = content.pop("sources")
    return {task: TaskReferences.model_validate(values) for task, values in content.items()}, sources


def summary_table(rows: Sequence[SummaryRow], is_wide: bool) -> list[list[str]]:
    """The rows as text, header first; all in percent.

    `is_wide`: with classes, recipe, every published figure, and the encoder if there are several.
    """
    from common.evaluation.tables import percent, range_of

    with_encoder = is_wide and len({row.encoder for row in rows}) > 1
    header = ["task", *["encoder"] * with_encoder, "clips", *["classes"] * is_wide, "protocol"]
    header += [*["recipe"] * is_wide, "linear", "three-layer", "best, 95 %", "chance", "stated"]
    table = [[*header, *["published"] * is_wide]]
    for row in rows:
        stated = (row.stated_linear, row.stated_three_layer)
        published = [f"{name} {score:.1f}" for name, score, _ in row.published]
        table.append(
            [
                row.task,
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
    used = {source for row in rows for *_, source in row.published}
    encoders = sorted({row.encoder for row in rows})
    lines = [
        f"Encoder{'s' * (len(encoders) > 1)}: {'; '.join(encoders)}.",
        "stated: linear/three-layer as the project's brief gives them, as examples; they are not measurements.",
        "chance: always predicting the most frequent training class. best, 95 %: of the better head, groups resampled.",
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
            f"published: linear probes of other frozen encoders, with protocols close to the official ones: {listed}."
        )
    return lines


def write_summary(rows: Sequence[SummaryRow], folder: Path) -> list[Path]:
    """Write summary.csv, .md and .tex into `folder`."""
    from common.evaluation.tables import as_latex, as_markdown

    columns = [each.name for each in fields(SummaryRow) if each.name != "intervals"]
    table: list[list[object]] = [list(columns)]
    for row in rows:
        published = "; ".join(f"{name} {score}" for name, score, _ in row.published)
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
    given = new_parser(__doc__).parse_args()
    from common.evaluation.tables import as_text

    rows = summary_rows(runs_for(given))
    print(as_text(summary_table(rows, is_wide=False)))
    print("\n".join(textwrap.fill(line, COLUMNS) for line in notes(rows)))
    print(f"-> {', '.join(map(str, write_summary(rows, output_folder(given))))}")


if __name__ == "__main__":
    run(main)
