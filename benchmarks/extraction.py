"""How fast clips become embeddings: python benchmarks/extraction.py [--audio FOLDER].

Compares the original project's extraction with this project's at every precision, on the same files, in separate processes
that take turns, and compares their outputs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

import common  # noqa: F401  # first: it says what is missing


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--audio", type=Path, metavar="FOLDER", help="audio files (default: generated ones)")
    parser.add_argument("--clips", type=int, default=48, metavar="N", help="files to take (default: 48)")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="X", help="of a generated clip (default: 5)")
    parser.add_argument("--rate", type=int, default=44_100, metavar="HZ", help="of a generated clip (default: 44100)")
    parser.add_argument("--flac", action="store_true", help="generate FLAC instead of WAV")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="timed runs of every variant (default: 3)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--precisions", nargs="+", default=None, metavar="NAME", help="(default: all the device has)")
    arguments = parser.parse_args()
    from extraction_runs import compare

    if wrong := compare(arguments):
        raise SystemExit(f"outputs differ from the original's by more than allowed: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
