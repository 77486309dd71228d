"""One table over all tasks: what the heads score, beside what was stated and what other encoders' features score.

Writes summary.csv, summary.md and summary.tex beside the printed table.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from analysis.studies import COLUMNS, Run, encoder_words, output_folder, parser_of, runs_for
from common.cli import run
from common.files import write_atomically, write_csv
from common.tables import as_latex, as_markdown, as_text, percent

REFERENCES = Path(__file__).resolve().with_name("references.yaml")


def summary_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row a run and protocol, numbers as shares; what is unknown is None."""
    references = read_references()
    rows = []
    for one in runs:
        known = references.get(one.study.name, {})
        for name, protocol in one.protocols.items():
            means = {kind: scored["mean"]["accuracy"] for kind, scored in protocol["heads"].items()}
            best = max(means, key=means.__getitem__)
            interval = protocol["heads"][best]["interval"] or (None, None)
            untrained = [scored for control, scored in protocol["controls"].items() if control.startswith("random")]
            expected = known.get("expected") or (None, None)
            rows.append(
                {
                    "task": one.study.name,
                    "title": one.study.task.title,
                    "clips": one.record["features"]["clips"],
                    "classes": len(one.record["features"]["class_names"]),
                    "encoder": encoder_words(one.record),
                    "protocol": name if protocol["is_official"] or name == "random" else "own",
                    "division": protocol["protocol"],
                    "recipe": one.record["config"]["recipe"],
                    "seeds": len(protocol["seeds"]),
                    "majority_class": protocol["majority_class"]["mean"]["accuracy"],
                    "untrained_encoder": max((each["mean"]["accuracy"] for each in untrained), default=None),
                    **means,
                    "best": best,
                    "best_low": interval[0],
                    "best_high": interval[1],
                    "stated_linear": expected[0] and expected[0] / 100,
                    "stated_three_layer": expected[1] and expected[1] / 100,
                    "intervals": {kind: scored["interval"] for kind, scored in protocol["heads"].items()},
                    "published": [tuple(each) for each in known.get("published", [])],
                    "folder": str(one.folder),
                }
            )
    return rows


def read_references() -> dict[str, Any]:
    """The figures that scores stand beside, with their sources."""
    return yaml.safe_load(REFERENCES.read_text(encoding="utf-8"))


def summary_table(rows: Sequence[Mapping[str, Any]], is_wide: bool) -> list[list[str]]:
    """The rows as text; all in percent. `is_wide`: with classes, recipe, every published figure, and the encoder where there are several."""
    with_encoder = is_wide and len({row["encoder"] for row in rows}) > 1
    head = [
        "task",
        *["encoder"] * with_encoder,
        "clips",
        *["classes"] * is_wide,
        "protocol",
        *["recipe"] * is_wide,
        "linear",
    ]
    table = [[*head, "three-layer", "best, 95 %", "chance", "stated", *["published"] * is_wide]]
    for row in rows:
        cells = [
            row["task"],
            *[row["encoder"]] * with_encoder,
            f"{row['clips']:,}",
            *[str(row["classes"])] * is_wide,
            row["protocol"],
        ]
        low, high = percent(row["best_low"]), percent(row["best_high"])
        stated = (row["stated_linear"], row["stated_three_layer"])
        published = [f"{name} {score:.1f}" for name, score, _ in row["published"]]
        table.append(
            [
                *cells,
                *[row["recipe"]] * is_wide,
                percent(row["linear"]),
                percent(row["three_layer"]),
                f"{low} to {high}" if row["best_low"] is not None else "-",
                percent(row["majority_class"]),
                "-" if stated[0] is None else "/".join(f"{100 * each:.0f}" for each in stated),
                *[", ".join(published) or "-"] * is_wide,
            ]
        )
    return table


def notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know of the table."""
    sources = read_references()["sources"]
    used = {source for row in rows for *_, source in row["published"]}
    encoders = sorted({row["encoder"] for row in rows})
    lines = [
        f"Encoder{'s' * (len(encoders) > 1)}: {'; '.join(encoders)}.",
        "stated: linear/three-layer as the project's brief gives them, as examples; they are not measurements.",
        "chance: always saying the most frequent training class. best, 95 %: of the better head, drawn by groups.",
    ]
    if any(encoder.startswith("untrained") for encoder in encoders):
        lines.insert(1, "An UNTRAINED encoder's scores say nothing about AudioSep.")
    if any(row["protocol"] == "random" for row in rows):
        lines.append("random: stratified, with related clips on both sides; it flatters wherever clips are related.")
    if used:
        listed = "; ".join(sources[source] for source in sorted(used))
        lines.append(
            f"published: linear probes of other frozen encoders, protocols close to the official ones: {listed}."
        )
    return lines


def write_summary(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """summary.csv, .md and .tex in `folder`."""
    columns = [key for key in rows[0] if key != "intervals"]
    table = [columns]
    for row in rows:
        published = "; ".join(f"{name} {score}" for name, score, _ in row["published"])
        table.append([{**row, "published": published}[key] for key in columns])
    write_csv(folder / "summary.csv", table)
    wide, said = summary_table(rows, is_wide=True), notes(rows)
    contents = {
        "summary.md": as_markdown(wide) + "\n\nPercent. " + "\n".join(f"{line}  " for line in said) + "\n",
        "summary.tex": as_latex(wide) + "".join(f"% {line}\n" for line in said),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content.encode())
    return [folder / name for name in ("summary.csv", *contents)]


def main() -> None:
    given = parser_of(__doc__).parse_args()
    rows = summary_rows(runs_for(given))
    print(as_text(summary_table(rows, is_wide=False)))
    print("\n".join(textwrap.fill(line, COLUMNS) for line in notes(rows)))
    print(f"-> {', '.join(map(str, write_summary(rows, output_folder(given))))}")


if __name__ == "__main__":
    run(main)
