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
from pydantic import BaseModel, ConfigDict

from analysis.scores import WIDTH, Run, new_parser, output_folder, runs_for
from common.datasets import DivisionKind
from common.entry import run as run_script
from common.files import write_atomically, write_csv
from common.flags import add_figure_format
from common.text_table import as_latex, as_markdown, as_text, percent, range_of

if TYPE_CHECKING:
    from analysis.compare import EncodersRecord
    from common.evaluation.record import ProtocolRecord
    from common.heads import HeadKind

REFERENCES = Path(__file__).resolve().with_name("references.yaml")
SAMPLE_BELOW = 0.95  # of a data set's clips; with fewer, published scores do not stand beside
Range = tuple[float, float]


class Published(NamedTuple):
    """A published score: encoder, accuracy in percent, key of the source, and what was done differently."""

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
    """One run and protocol, with the figures to show beside its scores."""

    run: Run
    protocol: ProtocolRecord
    known: TaskReferences

    @property
    def clips(self) -> int:
        """The clips that were fitted and scored."""
        return self.run.record.features.clips

    @property
    def whole(self) -> int | None:
        """The clips of the whole data set; None if unknown."""
        return self.run.study.task.official_counts.get("clips")

    @property
    def is_sample(self) -> bool:
        """Whether the clips are too few of the data set to stand beside scores of all."""
        return self.whole is not None and self.clips < SAMPLE_BELOW * self.whole

    @property
    def references(self) -> TaskReferences:
        """The figures that may stand beside these scores."""
        if not self.is_sample:
            return self.known
        why = f"only {self.clips:,} of its {self.whole:,} clips were used"
        return TaskReferences(expected=self.known.expected, none=why)

    @property
    def best_published(self) -> Published | None:
        """The best published score that may stand beside these."""
        return max(self.references.published, key=lambda score: score.accuracy, default=None)

    @property
    def best(self) -> HeadKind:
        """The better head."""
        return self.protocol.best_head

    @property
    def interval(self) -> Range | None:
        """The 95 % interval of the better head."""
        return self.protocol.heads[self.best].interval

    def accuracy(self, kind: HeadKind) -> float:
        """The accuracy of one head."""
        return self.protocol.heads[kind].accuracy

    @property
    def untrained_encoder(self) -> float | None:
        """The best score of a control with random weights, if there is one."""
        names = {name for name, encoder in self.run.record.controls.items() if encoder.is_untrained}
        controls = [heads for name, heads in self.protocol.controls.items() if name in names]
        return max((scored.accuracy for heads in controls for scored in heads.values()), default=None)


def summary_rows(runs: Sequence[Run]) -> list[SummaryRow]:
    """One row per run and protocol."""
    references, _ = read_references()
    return [
        SummaryRow(run, protocol, references.get(run.study.name, TaskReferences()))
        for run in runs
        for protocol in run.protocols.values()
    ]


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
    hidden = {"classes", "recipe", "published"}
    if len({row.run.encoder for row in rows}) == 1:
        hidden.add("encoder")
    titles: list[str] = []
    table = []
    for row in rows:
        run, stated = row.run, row.references.expected
        cells = {
            "task": run.study.task.title if is_wide else run.study.name,
            "encoder": run.encoder,
            "clips": f"{row.clips:,}",
            "classes": str(len(run.record.features.class_names)),
            "protocol": row.protocol.kind.label,
            "recipe": run.record.config.recipe,
            "linear": percent(row.accuracy("linear")),
            "three-layer": percent(row.accuracy("three_layer")),
            "best, 95 %": range_of(row.interval),
            "chance": percent(row.protocol.majority_class.accuracy),
            "stated": "-" if stated is None else "/".join(f"{value:.0f}" for value in stated),
            "published": ", ".join(map(str, row.references.published)) or "-",
        }
        titles = [title for title in cells if is_wide or title not in hidden]
        table.append([cells[title] for title in titles])
    return [titles, *table]


def notes(rows: Sequence[SummaryRow]) -> list[str]:
    """What a reader must know about the table."""
    _, sources = read_references()
    used = {score.source for row in rows for score in row.references.published}
    encoders = sorted({row.run.encoder for row in rows})
    lines = [
        f"Encoder{'s' * (len(encoders) > 1)}: {'; '.join(encoders)}.",
        "stated: linear/three-layer as the project's brief gives them, as examples; they are not measurements.",
        "chance: always predicting the most frequent training class. best, 95 %: of the better head, by groups.",
    ]
    if any(row.run.record.features.is_untrained for row in rows):
        lines.insert(1, "An UNTRAINED encoder's scores say nothing about AudioSep.")
    if any(row.protocol.kind is DivisionKind.RANDOM for row in rows):
        lines.append(
            "random: stratified, with related clips on both sides; its scores are too high wherever clips are related."
        )
    if any(row.protocol.kind in (DivisionKind.OWN_FOLDS, DivisionKind.OWN_SPLIT) for row in rows):
        lines.append("own folds, own split: a division that is not the data set authors'.")
    if used:
        listed = "; ".join(sources[source] for source in sorted(used))
        lines.append(
            "published: linear probes of other frozen encoders, as their authors report them; their protocols are close to the "
            f"official ones, and what is known to differ is in brackets: {listed}."
        )
    unpublished = {row.run.study.name: row.references.none for row in rows}
    return lines + [f"No published score for {task}: {why}." for task, why in unpublished.items() if why]


def write_summary(rows: Sequence[SummaryRow], folder: Path) -> list[Path]:
    """Write summary.csv, .md and .tex into `folder`."""
    write_csv(folder / "summary.csv", _as_csv(rows))
    wide, lines = summary_table(rows, is_wide=True), notes(rows)
    encoders = "; ".join(sorted({row.run.encoder for row in rows}))
    contents = {
        "summary.md": as_markdown(wide) + "\n\nPercent. " + "\n".join(f"{line}  " for line in lines) + "\n",
        "summary.tex": as_latex(wide, f"Accuracy in percent. Encoder: {encoders}.")
        + "".join(f"% {line}\n" for line in lines),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content.encode())
    return [folder / name for name in ("summary.csv", *contents)]


def _as_csv(rows: Sequence[SummaryRow]) -> list[Sequence[object]]:
    header = "task title clips whole classes encoder protocol division hash recipe seeds majority_class"
    header += " untrained_encoder linear three_layer best best_low best_high stated_linear stated_three_layer published folder"
    table: list[Sequence[object]] = [header.split()]
    for row in rows:
        run, protocol, known = row.run, row.protocol, row.references
        features, stated = run.record.features, known.expected or (None, None)
        table.append(
            (
                *(run.study.name, run.study.task.title, row.clips, row.whole, len(features.class_names)),
                *(run.encoder, protocol.kind.value, protocol.division, protocol.identity.hash),
                *(run.record.config.recipe, len(protocol.seeds)),
                *(protocol.majority_class.accuracy, row.untrained_encoder),
                *(row.accuracy("linear"), row.accuracy("three_layer"), row.best, *(row.interval or (None, None))),
                *(value if value is None else value / 100 for value in stated),
                *("; ".join(map(str, known.published)), run.folder),
            )
        )
    return table


def main() -> None:
    parser = new_parser(__doc__)
    add_figure_format(parser)
    arguments = parser.parse_args()
    from analysis.compare import compare_encoders, read_costs
    from analysis.compare_tables import write_encoders

    runs, folder = runs_for(arguments), output_folder(arguments)
    rows = summary_rows(runs)
    print(as_text(summary_table(rows, is_wide=False)))
    print("\n".join(textwrap.fill(line, WIDTH) for line in notes(rows)))
    written = write_summary(rows, folder)
    compared = compare_encoders(runs, read_costs(folder))
    if compared is not None:
        _print_encoders(compared)
        written += write_encoders(compared, folder, arguments.figure_format)
    print(f"-> {', '.join(map(str, written))}")


def _print_encoders(record: EncodersRecord) -> None:
    from analysis.compare_tables import encoder_table, pair_table, ranking_table, reading_notes
    from common.heads import HEADS, head_title

    for head in HEADS:
        print(f"\nEncoders, {head_title(head)} head, accuracy in percent (95 %)")
        print(as_text(encoder_table(record, head)))
    print(f"\n{as_text(ranking_table(record))}")
    print(f"\n{as_text(pair_table(record), left=4)}")
    print("\n".join(textwrap.fill(line, WIDTH) for line in reading_notes(record)))


if __name__ == "__main__":
    run_script(main)
