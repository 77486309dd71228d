"""Attack the project and count what held: python -m tests.torture, or make torture.

The exit status is 1 if a case is broken: it ended neither in valid files nor in one line.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Sequence

# Read when torch is loaded. Forked processes do not have the threads of their parent.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")
sys.dont_write_bytecode = True

from common.files import PROJECT_ROOT  # noqa: E402 - after what is read when torch is loaded
from tests.torture.attacks import ATTACKS  # noqa: E402
from tests.torture.runner import Tally, run_attack  # noqa: E402

PAGE = PROJECT_ROOT / "docs" / "reliability.md"
START, END = "<!-- torture: start -->", "<!-- torture: end -->"
HEADER = """
| attack | what is done | to | cases | as undisturbed | accepted | refused in one line | broken |
|---|---|---|--:|--:|--:|--:|--:|
""".strip()


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--only", metavar="NAME", default="", help="only those attacks")
    parser.add_argument("--quick", action="store_true", help="a few cases of each, as in make test")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (default: 0)")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    options = parser.parse_args()
    chosen = [attack for attack in ATTACKS if options.only in attack.name]
    if not chosen:
        names = "; ".join(attack.name for attack in ATTACKS)
        parser.error(f"no attack has {options.only!r} in its name; choose from: {names}")
    if options.write and (options.only or options.quick):
        parser.error("--write wants all attacks in full")
    warnings.simplefilter("ignore")
    tallies, started = [], time.monotonic()
    for attack in chosen:
        cases = attack.quick if options.quick else attack.cases
        tallies.append(run_attack(attack, cases, options.seed))
        print("\n".join([row_of(tallies[-1]), *tallies[-1].broken]), flush=True)
    cases, *_, broken = totals(tallies)
    seconds = time.monotonic() - started
    print(f"{cases:,} cases, {cases - broken:,} held, {broken} broken; {seconds:.0f} s")
    if options.write:
        write_table(tallies, options.seed, seconds)
        print(f"-> {PAGE}")
    return 1 if broken else 0


def row_of(tally: Tally) -> str:
    """A row of the table."""
    attack = tally.attack
    commands = ", ".join(command.name for command in attack.commands)
    counts = " | ".join(map(str, tally.counts))
    if tally.skipped:
        counts = f"not run: {tally.skipped} | | | |"
    return f"| {attack.name} | {attack.summary} | {commands} | {counts} |"


def totals(tallies: Sequence[Tally]) -> list[int]:
    """The counts of all attacks together."""
    return [sum(column) for column in zip(*(tally.counts for tally in tallies), strict=True)]


def write_table(tallies: Sequence[Tally], seed: int, seconds: float) -> None:
    """Replace the table in the page on reliability."""
    sums = " | ".join(f"**{count:,}**" for count in totals(tallies))
    rows = [*map(row_of, tallies), f"| **all** | | | {sums} |"]
    where = f"Python {platform.python_version()} on {platform.system()}, seed {seed}"
    last_run = f"The last run: {where}, {seconds / 60:.0f} minutes."
    table = "\n".join([START, "", last_run, "", HEADER, *rows, "", END])
    page = PAGE.read_text(encoding="utf-8")
    assert START in page
    page = re.sub(f"{START}.*{END}", lambda match: table, page, flags=re.DOTALL)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
