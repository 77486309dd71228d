"""Tables of text, header first, for the terminal, Markdown and LaTeX; and how shares are written."""

from __future__ import annotations

import re


def as_text(table: list[list[str]], left: int = 1) -> str:
    """The table with aligned columns: the first `left` to the left, the others, of numbers, to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


def as_markdown(table: list[list[str]], left: int = 1) -> str:
    """The table in Markdown, for a README; columns aligned as in `as_text`."""
    rule = [*["---"] * left, *["---:"] * (len(table[0]) - left)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [table[0], rule, *table[1:]])


def as_latex(table: list[list[str]], caption: str = "", left: int = 1) -> str:
    """The table in LaTeX, for a paper, columns aligned as in `as_text`; with a caption, as a float."""
    begin = r"\begin{tabular}{" + "l" * left + "r" * (len(table[0]) - left) + "}"
    header, *rows = (" & ".join(map(escape_latex, row)) + r" \\" for row in table)
    lines = [begin, r"\toprule", header, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    if caption:
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape_latex(caption)}}}", *lines, r"\end{table}"]
    lines.insert(0, r"% The document needs \usepackage{booktabs}.")
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    escaped = re.sub(r"([#$%&_{}])", r"\\\1", text.replace("\\", "/"))
    return escaped.replace("±", r"$\pm$").replace("–", "--").replace("~", r"\textasciitilde{}").replace("^", r"\^{}")


def percent(score: float | None) -> str:
    """A share as a percentage with one decimal."""
    return "-" if score is None or score != score else f"{100 * score:.1f}"


def range_of(interval: tuple[float, float] | None) -> str:
    """An interval in percent, such as ``43.8 to 47.6``."""
    return "-" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
