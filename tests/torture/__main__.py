"""Attack the project and count what held: python -m tests.torture, or make torture.

A case holds if it ends in the right files, or in a refusal of one line. The exit status is 1 if one did not hold.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

# Read when torch is loaded: cases run in forked processes, where the threads of their parent do not exist.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")
sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' helpers

from common.files import PROJECT_ROOT  # noqa: E402 - after what is read when torch is loaded
from tests.torture.attacks import ATTACKS  # noqa: E402
from tests.torture.runner import Tally, remove_root, run_attack  # noqa: E402

PAGE = PROJECT_ROOT / "docs" / "reliability.md"
START, END = "<!-- torture: start -->", "<!-- torture: end -->"
HEADER = """
| attack | what is done | to | cases | as undisturbed | accepted | refused in one line | broken |
|---|---|---|--:|--:|--:|--:|--:|
""".strip()


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--only", metavar="NAME", default="", help="only attacks with this in their name")
    parser.add_argument("--case", type=int, metavar="N", help="only this case of each")
    parser.add_argument("--quick", action="store_true", help="one or a few cases of each, as make test does")
    parser.add_argument("--seed", type=int, default=0, help="of what is attacked where (default: 0)")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.relative_to(PROJECT_ROOT)}")
    options = parser.parse_args()
    chosen = [attack for attack in ATTACKS if options.only in attack.name]
    if not chosen:
        names = "; ".join(attack.name for attack in ATTACKS)
        parser.error(f"no attack has {options.only!r} in its name; choose from: {names}")
    if options.write and (options.only or options.quick or options.case is not None):
        parser.error("--write wants all attacks in full")
    warnings.simplefilter("ignore")
    tallies = []
    try:
        for attack in chosen:
            tallies.append(run_attack(attack, options.quick, options.seed, options.case))
            print_tally(tallies[-1])
    finally:
        remove_root()
    cases, *_, broken = totals(tallies)
    seconds = sum(tally.seconds for tally in tallies)
    print(f"{cases:,} cases, {cases - broken:,} held, {broken} broken; {seconds:.0f} s")
    if options.write:
        write_table(tallies, options.seed)
        print(f"-> {PAGE}")
    return 1 if broken else 0


def print_tally(tally: Tally) -> None:
    """Print how an attack ended."""
    cases, same, accepted, refused, broken = tally.counts
    result = f"{cases} cases, {same} as undisturbed, {accepted} accepted, {refused} refused, {broken} broken"
    skipped = f"; not run here: {tally.skipped}" if tally.skipped else ""
    print(f"{tally.attack.name}: {result} ({tally.seconds:.1f} s){skipped}", flush=True)
    for line in tally.broken:
        print(f"  BROKEN {line}", flush=True)


def totals(tallies: Sequence[Tally]) -> list[int]:
    """The counts of all attacks together."""
    return [sum(column) for column in zip(*(tally.counts for tally in tallies), strict=True)]


def write_table(tallies: Sequence[Tally], seed: int) -> None:
    """Replace the table in the page on reliability."""
    rows = []
    for tally in tallies:
        attack = tally.attack
        commands = ", ".join(command.name for command in attack.commands)
        counts = " | ".join(f"{count:,}" for count in tally.counts)
        if tally.skipped:
            counts = f"not run: {tally.skipped} | | | |"
        rows.append(f"| {attack.name} | {attack.what} | {commands} | {counts} |")
    rows.append("| **all** | | | " + " | ".join(f"**{count:,}**" for count in totals(tallies)) + " |")
    minutes = sum(tally.seconds for tally in tallies) / 60
    where = f"Python {platform.python_version()} on {platform.system()}, seed {seed}, {minutes:.0f} minutes"
    table = "\n".join([START, "", f"The last run: {where}.", "", HEADER, *rows, "", END])
    page = PAGE.read_text(encoding="utf-8")
    assert START in page
    PAGE.write_text(re.sub(f"{START}.*{END}", lambda match: table, page, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
