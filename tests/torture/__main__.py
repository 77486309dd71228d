"""Attack the project and count what held: python -m tests.torture, or make torture.

A case holds if it ends in the right result, or in a refusal of one line. The exit status is 1 if one did not hold.
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

# Read when torch is loaded: the cases run in forked processes, where the threads of their parent do not exist.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")
sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own helpers

from common.files import PROJECT_ROOT  # noqa: E402 - after what is read when torch is loaded
from tests.torture import (  # noqa: E402
    archives,
    audio,
    damage,
    feature_files,
    interruptions,
    listings,
    servers,
    surroundings,
)
from tests.torture.harness import Attack, Tally, run_attack  # noqa: E402

ATTACKS: Sequence[Attack] = [
    *interruptions.ATTACKS,
    *damage.ATTACKS,
    *feature_files.ATTACKS,
    *audio.ATTACKS,
    *listings.ATTACKS,
    *archives.ATTACKS,
    *servers.ATTACKS,
    *surroundings.ATTACKS,
]
PAGE = PROJECT_ROOT / "docs" / "reliability.md"
START, END = "<!-- torture: start -->", "<!-- torture: end -->"
MINUTES = 27


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--only", metavar="TEXT", default="", help="only attacks with this in their name")
    parser.add_argument("--case", type=int, metavar="N", help="only this case of each")
    parser.add_argument("--quick", action="store_true", help="a few cases of each, as make test does")
    parser.add_argument("--seed", type=int, default=0, help="of what is attacked where (default: 0)")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.relative_to(PROJECT_ROOT)}")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = [attack for attack in ATTACKS if given.only in attack.name]
    if not chosen:
        parser.error(f"no attack has {given.only!r} in its name; there are: {'; '.join(each.name for each in ATTACKS)}")
    seconds = MINUTES * 60 / len(ATTACKS)
    tallies = []
    for attack in chosen:
        most = attack.quick if given.quick else attack.most
        tally = run_attack(attack, most, attack.seconds or seconds, given.seed, given.case)
        tallies.append(tally)
        print(line_of(tally), flush=True)
        for words in tally.broken:
            print(f"  BROKEN {words}", flush=True)
    total, broken = sum(tally.cases for tally in tallies), sum(len(tally.broken) for tally in tallies)
    print(f"{total:,} cases, {total - broken:,} held, {broken} broken; {sum(each.seconds for each in tallies):.0f} s")
    if given.write:
        if len(chosen) < len(ATTACKS) or given.quick:
            parser.error("--write wants all attacks in full")
        write_table(tallies, given.seed)
        print(f"-> {PAGE}")
    return 1 if broken else 0


def line_of(tally: Tally) -> str:
    """One attack, for the terminal."""
    if tally.skipped:
        return f"{tally.attack.name}: not run here: {tally.skipped}"
    return (
        f"{tally.attack.name}: {tally.cases:,} cases, {tally.right:,} right, {tally.refused:,} refused, "
        f"{len(tally.broken):,} broken ({tally.seconds:.0f} s)"
    )


def numbers_of(tally: Tally) -> tuple[int, ...]:
    """Cases, right, accepted, refused, broken."""
    known = tally.attack.has_answer
    return tally.cases, tally.right * known, tally.right * (not known), tally.refused, len(tally.broken)


def write_table(tallies: Sequence[Tally], seed: int) -> None:
    """Replace the table in the page on reliability."""
    rows = [
        "| attack | what is done | cases | right | accepted | refused in one line | broken |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for tally in tallies:
        attack = tally.attack
        counts = (
            f"not run: {tally.skipped} | | | | "
            if tally.skipped
            else " | ".join(f"{number:,}" for number in numbers_of(tally)) + " "
        )
        rows.append(f"| {attack.name} | {attack.what} | {counts}|")
    total = [sum(each) for each in zip(*map(numbers_of, tallies), strict=True)]
    rows.append("| **together** | | " + " | ".join(f"**{number:,}**" for number in total) + " |")
    minutes = sum(tally.seconds for tally in tallies) / 60
    where = f"Python {platform.python_version()} on {platform.system()}, seed {seed}, {minutes:.0f} minutes"
    table = "\n".join([START, "", f"The last run: {where}.", "", *rows, "", END])
    page = PAGE.read_text(encoding="utf-8")
    assert START in page
    PAGE.write_text(re.sub(f"{START}.*{END}", lambda match: table, page, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
