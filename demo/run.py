"""All six tasks on generated sounds with an untrained encoder, by the scripts that a user runs: python -m demo.run.

The first results appear within a minute, all of them and the report within about three. ``--study`` instead runs what
`make reproduce` runs, on more sounds: both protocols, several seeds, probes and controls.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.entry import run
from common.flags import Parser

BANNER = """\
DEMO: an UNTRAINED encoder (random weights) on GENERATED sounds. The scores show that the pipeline runs.
They say nothing about AudioSep. For the real thing, get the weights and a data set (see README.md), then:
    make reproduce TASKS=esc50
"""


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(__doc__, prog="python -m demo.run")
    parser.add_argument("--study", action="store_true", help="what make reproduce runs, on more sounds (10 minutes)")
    is_study = parser.parse_args(argv).study
    print(BANNER, flush=True)
    from demo import pipeline  # after --help, which needs none of what it imports

    pipeline.study() if is_study else pipeline.demo()


if __name__ == "__main__":
    run(main)
