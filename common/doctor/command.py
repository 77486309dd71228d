"""Check everything before a long run: python -m common.doctor [DATA_SET ...]. Every failed check says how to fix it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.cli import data_root_of
from common.config import DEVICES, ExtractConfig, load_config
from common.datasets import Task
from common.doctor.findings import BAD, GOOD, NOTE, Finding, Mark
from common.flags import Parser, user_path

MARKS: dict[Mark, str] = {GOOD: "✓", NOTE: "!", BAD: "✗"}
PLAIN_MARKS: dict[Mark, str] = {GOOD: "ok", NOTE: "! ", BAD: "NO"}  # if the terminal cannot encode the others


def main(argv: Sequence[str] | None = None) -> None:
    """The command; exits with status 0 if no check failed, else 1."""
    sets = data_sets()
    parser = Parser(__doc__, prog="python -m common.doctor")
    parser.add_argument(
        "names", nargs="*", metavar="DATA_SET", help=f"{', '.join(sets)} (default: all whose folder exists)"
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="AudioSep weights, or random:SEED (default: as configured)"
    )
    parser.add_argument("--data-root", type=user_path, metavar="FOLDER", help="where the one named data set is")
    parser.add_argument("--device", default="auto", metavar="NAME", help=f"{DEVICES} (default: auto)")
    given = parser.parse_args(argv)
    chosen = [name for name in sets if not given.names or any(name.startswith(want) for want in given.names)]
    unknown = [want for want in given.names if not any(name.startswith(want) for name in sets)]
    if unknown:
        parser.error(f"{unknown[0]} is unknown; choose from {', '.join(sets)}")
    if given.data_root and len(chosen) != 1:
        parser.error("--data-root applies to one data set; name it")
    from common.doctor import checks
    from common.encoder import load_encoder, resolve_device

    device = resolve_device(given.device)
    some_task = next(iter(sets.values()))[0][0]
    checkpoint = given.checkpoint or load_config(ExtractConfig, some_task.config_file).checkpoint

    bad = _show("environment", checks.check_environment(device))
    bad += _show("encoder", [checks.check_encoder(device)])
    finding, encoder = checks.check_checkpoint(checkpoint, device)
    bad += _show("weights", [finding])
    # Without usable weights, random ones serve to measure the speed.
    encoder = encoder or load_encoder("random:0", device)
    absent = []
    for name in chosen:
        divisions = sets[name]
        if not given.names and not _root(divisions[0][0], None).is_dir():
            absent.append(name)
            continue
        download = name.removesuffix("_v1").removesuffix("_v2")
        for place, tasks in enumerate(divisions):
            roots = [_root(task, given.data_root) for task in tasks]
            findings = checks.check_division(tasks, roots, download, encoder, is_wanted=place == 0)
            bad += _show(f"{tasks[0].title if len(tasks) == 1 else name} in {roots[0]}", findings)
    if absent:
        print(f"not found, so not checked: {', '.join(absent)}\n")
    print(f"{bad} failed check{'s' * (bad != 1)}." if bad else "All checks passed.")
    sys.exit(1 if bad else 0)


def data_sets() -> dict[str, tuple[tuple[Task, ...], ...]]:
    """Every data set that an installed package registers: name -> its tasks, one tuple per division."""
    from importlib.metadata import entry_points

    points = entry_points(group="audiosep_probe.data_sets")
    return {point.name: point.load() for point in sorted(points, key=lambda point: point.name)}


def _root(task: Task, given: Path | None) -> Path:
    return Path(os.path.abspath(given or data_root_of(task)))  # noqa: PTH100 - removes ..


def _show(title: str, findings: Iterable[Finding]) -> int:
    """Print findings as they come; returns the number of failed checks."""
    encoding = sys.stdout.encoding or "ascii"
    try:
        "".join(MARKS.values()).encode(encoding)
        marks = MARKS
    except UnicodeEncodeError:
        marks = PLAIN_MARKS
    print(title)
    bad, width = 0, 8
    for finding in findings:
        bad += finding.mark == BAD
        width = max(width, len(finding.what))
        print(f"  {marks[finding.mark]} {finding.what:<{width}} {finding.found}", flush=True)
        if finding.fix:
            print(f"    {'':<{width}} -> {finding.fix}")
    print()
    return bad
