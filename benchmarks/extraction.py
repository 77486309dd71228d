"""How fast clips become embeddings: python benchmarks/extraction.py [--audio FOLDER].

Compares the original project's extraction with this project's at every precision, on the same files, in separate processes
that take turns, and compares their outputs. The original is measured as a user runs it, and with glibc keeping the memory
that it would return after every layer, as this project's encoder asks it to.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

import common  # noqa: F401  # first: it says what is missing

# Environment variables that limit torch's libraries, and numba, to older instructions.
ISAS = {
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx2,+fma",  # otherwise numba adds all features of the CPU
    },
    "avx512": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "NUMBA_CPU_NAME": "skylake-avx512",
        "NUMBA_CPU_FEATURES": "+avx512f",
    },
}


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
    parser.add_argument("--isa", choices=list(ISAS), help="newest CPU instructions to use (default: all)")
    arguments = parser.parse_args()
    os.environ.update(ISAS.get(arguments.isa, {}))  # before torch is imported, here and in the processes that measure
    from extraction_runs import compare

    if wrong := compare(arguments):
        raise SystemExit(f"outputs differ from the original's by more than allowed: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
