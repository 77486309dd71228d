"""Check everything before a long run: python -m common.doctor [DATA_SET ...]. Every failed check says how to fix it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

from common.cli import data_root_of
from common.config import COMMON_CONFIG, DEVICES, ExtractConfig, load_config
from common.datasets import Task, download_command
from common.flags import Parser, run, user_path


def main(argv: Sequence[str] | None = None) -> None:
    """The command; exits with status 0 if no check failed, else 1."""
    points = sorted(entry_points(group="audiosep_probe.data_sets"), key=lambda point: point.name)
    sets: dict[str, tuple[tuple[Task, ...], ...]] = {point.name: point.load() for point in points}
    parser = Parser(__doc__, prog="python -m common.doctor")
    parser.add_argument("names", nargs="*", metavar="DATA_SET", help=f"{', '.join(sets)} (default: all that exist)")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights, or random:SEED (default: as configured)")
    parser.add_argument("--data-root", type=user_path, metavar="FOLDER", help="where the named data set is")
    parser.add_argument("--device", default="auto", metavar="NAME", help=f"{DEVICES} (default: auto)")
    arguments = parser.parse_args(argv)
    for prefix in arguments.names:
        if not any(name.startswith(prefix) for name in sets):
            parser.error(f"{prefix} is unknown; choose from {', '.join(sets)}")
    chosen = [name for name in sets if name.startswith(tuple(arguments.names) or "")]
    if arguments.data_root and len(chosen) != 1:
        parser.error("--data-root applies to one data set; name it")
    from common.doctor import checks
    from common.encoder import resolve_device

    device = resolve_device(arguments.device)
    checkpoint = arguments.checkpoint or load_config(ExtractConfig, COMMON_CONFIG).checkpoint
    failed = checks.show("environment", checks.check_environment(device))
    failed += checks.show("encoder", [checks.check_encoder(device)])
    failed += checks.show("weights", [checks.check_checkpoint(checkpoint, device)])
    absent = [name for name in chosen if not arguments.names and not data_root_of(sets[name][0][0]).is_dir()]
    for name in (name for name in chosen if name not in absent):
        for place, tasks in enumerate(sets[name]):
            for task in tasks:
                root = (arguments.data_root or data_root_of(task)).absolute()
                get = download_command(name.removesuffix("_v1").removesuffix("_v2"), root)
                findings = checks.check_data(task, root, get, is_wanted=place == 0)
                failed += checks.show(f"{task.title} in {root}", findings)
    if absent:
        print(f"not found, so not checked: {', '.join(absent)}\n")
    print(f"{failed} failed check{'s' * (failed != 1)}." if failed else "All checks passed.")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run(main)
