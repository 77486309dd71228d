"""A run's scores as text: the table in the terminal, and the same in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NAMES = {"balanced_accuracy": "the balanced accuracy", "icbhi_score": "the ICBHI score"}
TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    "macro_f1": "macro-F1",
    "top5_accuracy": "top-5",
    "sensitivity": "sens.",
    "specificity": "spec.",
    "icbhi_score": "ICBHI",
}


def all_heads(protocol: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every row of a protocol's table: heads, probes, controls, the majority class."""
    return {
        **protocol["heads"],
        **protocol["probes"],
        **protocol["controls"],
        "majority_class": protocol["majority_class"],
    }


def score_table(protocol: Mapping[str, Any]) -> list[list[str]]:
    """The table of one protocol, its head first: means, the 95 % interval of the accuracy, spreads; all in percent."""
    rows = all_heads(protocol)
    names = [name for name in TITLES if any(name in scored["mean"] for scored in rows.values())]
    has_folds = any(scored["std_over_folds"] for scored in rows.values())
    has_seeds = any(scored["std_over_seeds"] for scored in rows.values())
    head = ["head", "accuracy", "95 %", *["± folds"] * has_folds, *["± seeds"] * has_seeds]
    table = [head + [TITLES[name] for name in names[1:]]]
    for label, scored in rows.items():
        cells = [
            label.replace("shuffled_labels", "shuffled").replace("_", "-"),
            percent(scored["mean"]["accuracy"]),
            range_of(scored["interval"]),
        ]
        for is_wanted, spread in ((has_folds, scored["std_over_folds"]), (has_seeds, scored["std_over_seeds"])):
            cells += [percent(spread["accuracy"]) if spread else ""] if is_wanted else []
        table.append(cells + [percent(scored["mean"].get(name)) for name in names[1:]])
    return table


def as_text(table: list[list[str]]) -> str:
    """Columns aligned, the first to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


def as_markdown(table: list[list[str]]) -> str:
    """The same for a README."""
    rule = ["---", *["---:"] * (len(table[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [table[0], rule, *table[1:]])


def as_latex(table: list[list[str]]) -> str:
    """The same for a paper, with the rules of the booktabs package."""

    def line(row: list[str]) -> str:
        return " & ".join(_escaped(cell) for cell in row) + r" \\" + "\n"

    columns = "l" + "r" * (len(table[0]) - 1)
    body = "".join(map(line, table[1:]))
    return (
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(table[0])}\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"
    )


def _escaped(cell: str) -> str:
    return re.sub(r"([#$%&_{}])", r"\\\1", cell).replace("±", r"$\pm$")


def remarks(protocol: Mapping[str, Any]) -> list[str]:
    """The sentences under the table: how epochs were chosen, what is no score, how the heads compare."""
    lines = []
    heads = protocol["heads"]
    epochs = {kind: sorted({row["epoch"] for row in scored["splits"]}) for kind, scored in heads.items()}
    chosen = "; ".join(
        f"{kind.replace('_', '-')}: {each[0]}{f'-{each[-1]}' if len(each) > 1 else ''}" for kind, each in epochs.items()
    )
    again = ", then fitted again on training and validation clips" if protocol["refit"] else ""
    of_epochs = len(next(iter(heads.values()))["splits"][0]["train_loss"])
    if protocol["chooses_epoch"]:
        lines.append(f"Epoch (of {of_epochs}) chosen on {protocol['validation']}{again}: {chosen}.")
    else:
        on = "all training and validation clips" if protocol["refit"] else "training clips alone"
        lines.append(f"The last epoch is kept ({chosen}), after learning from {on}.")
    for kind, scored in heads.items():
        shrinkages = sorted({row["shrinkage"] for row in scored["splits"]} - {None})
        if len(shrinkages) > 1:
            values = ", ".join(f"{each:g}" for each in shrinkages)
            lines.append(f"Strength of whitening chosen on validation clips: {values} ({kind.replace('_', '-')}).")
    best = ", ".join(
        f"{kind.replace('_', '-')} "
        + percent(sum(row["best_test_accuracy_over_epochs"] for row in scored["splits"]) / len(scored["splits"]))
        for kind, scored in heads.items()
    )
    lines.append(f"Not a score: with the epoch chosen by the test clips, as the original project did: {best}.")
    related = protocol["related_test_clips"]
    if not protocol["is_official"]:
        known = "" if related is None else f": {related:.0%} of the test clips have relatives that train"
        lines.append(
            "This split separates no recordings, patients or speakers on purpose; here no test clip has relatives that train."
            if related == 0
            else f"WARNING: this split separates no recordings, patients or speakers{known}; the score may flatter."
        )
    elif related:
        lines.append(f"{related:.1%} of the test clips have relatives that train, in the official division too.")
    for name in dict.fromkeys(name for scored in heads.values() for name in scored["more_intervals"]):
        ranges = ", ".join(
            f"{kind.replace('_', '-')} {range_of(scored['more_intervals'].get(name))}" for kind, scored in heads.items()
        )
        lines.append(f"95 % of {NAMES[name]}: {ranges}.")
    compared = protocol["comparison"]
    p_value = compared["p_value"]
    by = "" if p_value is None else f", p = {p_value:.2g} (heads swapped in whole {compared['units']})"
    lines.append(
        f"Three-layer minus linear: {100 * compared['difference']:+.1f} points, 95 % {range_of(compared['interval'])}{by}."
    )
    return lines


def efficiency_table(protocol: Mapping[str, Any]) -> list[list[str]]:
    """Accuracy by the share of labelled clips."""
    table = [["head", "labels", "clips", "accuracy", "95 %"]]
    for point in protocol["label_efficiency"]:
        share = f"{100 * point['fraction']:g} %"
        accuracy = percent(point["mean"]["accuracy"])
        cells = [point["head"].replace("_", "-"), share, f"{point['n_train']:,}", accuracy, range_of(point["interval"])]
        table.append(cells)
    return table


def percent(score: float | None) -> str:
    """A share as a percentage with one digit."""
    return "-" if score is None or score != score else f"{100 * score:.1f}"


def range_of(interval: list[float] | tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
