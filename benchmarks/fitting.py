"""How much faster heads are fitted together than one at a time: python benchmarks/fitting.py.

The plain way is the original project's: a DataLoader with batches of 8, one model at a time, torch.optim.Adam. Both fit the
same heads on the same generated features of ESC-50's size, and take turns.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

import common  # noqa: F401  # first: it says what is missing


def main() -> None:
    """Measure, print a table, and write the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of both ways (default: 3)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds fitted together with 5 folds (default: 5)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    from fitting_runs import compare
    from measuring import save_figures

    from common.encoder import resolve_device

    device = resolve_device(arguments.device)
    comparisons = compare(device, arguments.rounds, arguments.seeds)
    figures = [asdict(comparison) for comparison in comparisons]
    save_figures(arguments.json, {"device": str(device), "figures": figures})


if __name__ == "__main__":
    main()
