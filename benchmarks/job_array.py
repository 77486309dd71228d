"""What a job array costs beside one process: python benchmarks/job_array.py [--clips 100000] [--shards 8].

Extracts many short generated clips in shards, a few at a time, as a cluster runs an array: each in a process of its own,
on one core. A stand-in takes the encoder's place. The first shard is killed half-way and started again after all others;
the last one's encoder is slow. Then one process extracts the same clips, and both files must be equal, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

import common  # noqa: F401  # first: it says what is missing

if TYPE_CHECKING:
    from job_array_runs import Attempt, Measured


def main() -> None:
    """Measure, print the tables, and write the figures as JSON if asked to; exit status 1 if the files differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--clips", type=int, default=100_000, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--shards", type=int, default=8, metavar="N", help="at least 2 (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=None, metavar="N", help="processes (default: one per core)")
    parser.add_argument(
        "--encoder-ms", type=float, default=0.5, metavar="X", help="the stand-in sleeps per clip (default: 0.5)"
    )
    parser.add_argument(
        "--slowdown", type=float, default=3.0, metavar="X", help="times the straggler's encoder takes (default: 3)"
    )
    parser.add_argument(
        "--save-every", type=float, default=20.0, metavar="S", help="seconds of work kept as a chunk (default: 20)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="FOLDER",
        help="its sounds/ keeps the clips for the next run (default: a new one)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args()
    at_once = given.at_once or os.cpu_count() or 1
    if given.shards < 2 or given.clips < 4 * given.shards or at_once < 1:
        parser.error("--shards must be at least 2, --clips at least 4 per shard, --at-once at least 1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # children are cleaned up as after Ctrl-C
    from job_array_runs import measure

    from common.text_table import as_text

    try:
        measured = measure(given, at_once)
    except KeyboardInterrupt:
        raise SystemExit("interrupted; its processes are ended, its outputs removed") from None
    figures = figures_of(measured, given, at_once)
    print(
        f"\n{given.clips:,} clips in {given.shards} shards, {at_once} processes at once, {given.encoder_ms:g} ms per clip in "
        f"the encoder\n{figures['cpu']}; Python {figures['python']}, torch {figures['torch']}\n"
    )
    print(as_text(table_of(measured, given)))
    print(f"\n{as_text(totals_of(figures))}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    if not figures["equal"]:
        raise SystemExit(
            f"the files differ: {measured.array_sha256} of the array, {measured.whole_sha256} of one process"
        )


def figures_of(measured: Measured, given: argparse.Namespace, at_once: int) -> dict[str, Any]:
    """Everything that was measured, and what follows from it, by names that JSON can hold."""
    import torch

    from common.encoder.device import describe_cpu

    whole, last = measured.whole, measured.attempts[-1]
    again = sum(attempt.computed for attempt in measured.attempts) - given.clips
    own = {each.shard: each for each in measured.attempts if not each.is_killed}[given.shards - 1]
    slowed_s = own.computed * given.encoder_ms / 1000 * (given.slowdown - 1)
    ideal_s = whole.seconds / at_once
    fair_s = ideal_s + (again / given.clips * whole.seconds + slowed_s) / at_once
    return {
        "clips": given.clips,
        "shards": given.shards,
        "at_once": at_once,
        "encoder_ms": given.encoder_ms,
        "slowdown": given.slowdown,
        "save_every_s": given.save_every,
        "cpu": describe_cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "attempts": [vars(attempt) for attempt in measured.attempts],
        "whole": vars(whole),
        "computed_again": again,
        "wall_s": measured.wall_s,
        "ideal_s": ideal_s,
        "ratio": measured.wall_s / ideal_s,
        "fair_s": fair_s,
        "fair_ratio": measured.wall_s / fair_s,
        "starts_s": sum(attempt.before_s for attempt in measured.attempts) / at_once,
        "assembly_s": last.after_s,
        "file_bytes": measured.file_bytes,
        "sha256": measured.array_sha256,
        "equal": measured.array_sha256 == measured.whole_sha256,
    }


def table_of(measured: Measured, given: argparse.Namespace) -> list[list[str]]:
    """A row for each attempt at a shard, in the order of their ends, and one for the process without shards."""

    def row(name: str, attempt: Attempt, clips: int, again: int) -> list[str]:
        measures = (attempt.seconds, attempt.before_s, attempt.after_s, attempt.cpu_s)
        known = [f"{each:.2f}" for each in measures] if not attempt.is_killed else [f"{attempt.seconds:.2f}", *"---"]
        peak = f"{attempt.peak_bytes / 1e6:.0f}" if attempt.peak_bytes else "-"
        return [name, f"{clips:,}", f"{attempt.computed:,}", f"{again:,}" if again else "-", *known, peak]

    table = [
        [
            "process",
            "clips",
            "computed",
            "of those again",
            "s",
            "before first, s",
            "after last, s",
            "CPU, s",
            "peak, MB",
        ]
    ]
    killed = next(attempt for attempt in measured.attempts if attempt.is_killed)
    own = {attempt.shard: attempt.computed for attempt in measured.attempts if not attempt.is_killed}
    own[killed.shard] = given.clips - sum(count for shard, count in own.items() if shard != killed.shard)
    for attempt in measured.attempts:
        name = f"shard {attempt.shard + 1}/{given.shards}"
        again = 0
        if attempt.is_killed:
            name += ", killed"
        elif attempt.shard == killed.shard:
            name += ", restarted"
            again = killed.computed + attempt.computed - own[killed.shard]
        elif attempt.shard == given.shards - 1:
            name += ", straggler"
        if attempt is measured.attempts[-1]:
            name += ", wrote the file"
        table.append(row(name, attempt, own[attempt.shard], again))
    return [*table, row("one process", measured.whole, given.clips, 0)]


def totals_of(figures: dict[str, Any]) -> list[list[str]]:
    """What the whole array took, beside what it would take if dividing the work cost nothing."""
    return [
        ["the array", ""],
        ["wall time, s", f"{figures['wall_s']:.2f}"],
        [f"one process / {figures['at_once']}, s", f"{figures['ideal_s']:.2f}"],
        ["wall time / that", f"{figures['ratio']:.2f}"],
        ["the same and what the kill and the slow encoder cost, s", f"{figures['fair_s']:.2f}"],
        ["wall time / that", f"{figures['fair_ratio']:.2f}"],
        [f"all shards, before their first clips, / {figures['at_once']}, s", f"{figures['starts_s']:.2f}"],
        ["the last shard, after its last clip: assembly, s", f"{figures['assembly_s']:.2f}"],
        ["peak memory of one process, MB", f"{figures['whole']['peak_bytes'] / 1e6:.0f}"],
        ["file, MB", f"{figures['file_bytes'] / 1e6:.1f}"],
        ["bytes equal", "yes" if figures["equal"] else "no"],
    ]


if __name__ == "__main__":
    main()
