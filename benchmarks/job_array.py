"""What a job array costs beside one process: python benchmarks/job_array.py [--clips 100000] [--shards 8].

Extracts many short generated clips in shards, a few at a time, as a cluster runs an array: each in a separate process on one
core. A stand-in takes the encoder's place. The first shard is killed half-way and started again after all others; the last
one's encoder is slow. Then one process extracts the same clips, and both files must be equal, byte for byte.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

import common  # noqa: F401  # first: it says what is missing

if TYPE_CHECKING:
    from job_array_runs import Attempt, Measured

HEADER = [
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


def main() -> None:
    """Measure, print the tables, and write the figures as JSON if asked to; exit status 1 if the files differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--clips", type=int, default=100_000, metavar="N", help="(default: 100000)")
    parser.add_argument("--shards", type=int, default=8, metavar="N", help="at least 2 (default: 8)")
    parser.add_argument("--at-once", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--encoder-ms", type=float, default=0.5, metavar="X", help="sleep per clip (default: 0.5)")
    parser.add_argument("--slowdown", type=float, default=3.0, metavar="X", help="of the straggler (default: 3)")
    parser.add_argument("--save-every", type=float, default=20.0, metavar="S", help="seconds of a chunk (default: 20)")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="keeps the clips in sounds/ (default: a new one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    arguments.at_once = arguments.at_once or os.cpu_count() or 1
    if arguments.shards < 2 or arguments.clips < 4 * arguments.shards or arguments.at_once < 1:
        parser.error("--shards must be at least 2, --clips at least 4 per shard, --at-once at least 1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # children are cleaned up as after Ctrl-C
    import torch
    from job_array_runs import measure
    from measuring import save_figures

    from common.encoder.device import describe_cpu
    from common.text_table import as_text

    try:
        measured = measure(arguments)
    except KeyboardInterrupt:
        raise SystemExit("interrupted; its processes are ended, its outputs removed") from None
    print(
        f"\n{arguments.clips:,} clips in {arguments.shards} shards, {arguments.at_once} processes at once, "
        f"{arguments.encoder_ms:g} ms per clip in the encoder\n"
        f"{describe_cpu()}; Python {platform.python_version()}, torch {torch.__version__}\n"
    )
    totals = totals_of(measured, arguments)
    print(f"{as_text(table_of(measured, arguments))}\n\n{as_text(totals)}")
    save_figures(arguments.json, {**vars(arguments), "cpu": describe_cpu(), **asdict(measured), "totals": totals})
    if measured.array_sha256 != measured.whole_sha256:
        raise SystemExit(
            f"the files differ: {measured.array_sha256} of the array, {measured.whole_sha256} of one process"
        )


def row_of(name: str, attempt: Attempt, clips: int, again: int = 0) -> list[str]:
    """The cells of one process."""
    seconds = (attempt.seconds, attempt.before_s, attempt.after_s, attempt.cpu_s)
    cells = [f"{attempt.seconds:.2f}", *"----"]
    if not attempt.is_killed:
        cells = [*(f"{value:.2f}" for value in seconds), f"{attempt.peak_bytes / 1e6:.0f}"]
    return [name, f"{clips:,}", f"{attempt.computed:,}", f"{again:,}" if again else "-", *cells]


def table_of(measured: Measured, arguments: argparse.Namespace) -> list[list[str]]:
    """A row for each attempt at a shard, in the order of their ends, and one for the process without shards."""
    (killed,) = (attempt for attempt in measured.attempts if attempt.is_killed)
    clips = {attempt.shard: attempt.computed for attempt in measured.attempts if attempt.shard != killed.shard}
    clips[killed.shard] = arguments.clips - sum(clips.values())
    roles = {killed.shard: ", restarted", arguments.shards - 1: ", straggler"}
    table = [HEADER]
    for attempt in measured.attempts:
        name = f"shard {attempt.shard + 1}/{arguments.shards}"
        name += ", killed" if attempt.is_killed else roles.get(attempt.shard, "")
        name += ", wrote the file" if attempt is measured.attempts[-1] else ""
        is_restarted = attempt.shard == killed.shard and not attempt.is_killed
        again = killed.computed + attempt.computed - clips[killed.shard] if is_restarted else 0
        table.append(row_of(name, attempt, clips[attempt.shard], again))
    return [*table, row_of("one process", measured.whole, arguments.clips)]


def totals_of(measured: Measured, arguments: argparse.Namespace) -> list[list[str]]:
    """What the whole array took, beside what it would take if dividing the work cost nothing."""
    at_once, wall_s, whole_s, attempts = arguments.at_once, measured.wall_s, measured.whole.seconds, measured.attempts
    last = arguments.shards - 1
    slow_clips = sum(attempt.computed for attempt in attempts if attempt.shard == last and not attempt.is_killed)
    slowed_s = slow_clips * arguments.encoder_ms / 1000 * (arguments.slowdown - 1)
    again_s = (sum(attempt.computed for attempt in attempts) / arguments.clips - 1) * whole_s
    ideal_s, fair_s = whole_s / at_once, (whole_s + again_s + slowed_s) / at_once
    starts_s = sum(attempt.before_s for attempt in attempts) / at_once
    return [
        ["the array", ""],
        ["wall time, s", f"{wall_s:.2f}"],
        [f"one process / {at_once}, s", f"{ideal_s:.2f}"],
        ["wall time / that", f"{wall_s / ideal_s:.2f}"],
        ["the same and what the kill and the slow encoder cost, s", f"{fair_s:.2f}"],
        ["wall time / that", f"{wall_s / fair_s:.2f}"],
        [f"all shards, before their first clips, / {at_once}, s", f"{starts_s:.2f}"],
        ["the last shard, after its last clip: assembly, s", f"{attempts[-1].after_s:.2f}"],
        ["peak memory of one process, MB", f"{measured.whole.peak_bytes / 1e6:.0f}"],
        ["file, MB", f"{measured.file_bytes / 1e6:.1f}"],
        ["bytes equal", "yes" if measured.array_sha256 == measured.whole_sha256 else "no"],
    ]


if __name__ == "__main__":
    main()
