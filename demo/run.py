"""All six tasks on generated sounds with an untrained encoder, by the scripts that a user runs: python -m demo.run.

The first results appear within a minute, all results and the report within about three. ``--study`` instead runs what
`make reproduce` runs, on more sounds: both protocols, several seeds, probes and controls.
"""

from __future__ import annotations

import runpy
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from common.files import PROJECT_ROOT
from common.flags import Parser, run
from common.scripts import show_command

FOLDER = PROJECT_ROOT / "data" / "demo"
ENCODER = "random:0"
EPOCHS = 50  # enough for small sets of generated sounds
BANNER = """\
DEMO: an UNTRAINED encoder (random weights) on GENERATED sounds. The scores show that the pipeline runs.
They say nothing about AudioSep. For the real thing, get the weights and a data set (see README.md), then:
    make reproduce TASKS=esc50
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__, prog="python -m demo.run")
    study = "what make reproduce runs, for all tasks (10 minutes) or the named ones, on more sounds"
    parser.add_argument("--study", nargs="*", metavar="TASK", help=study)
    arguments = parser.parse_args(argv)
    print(BANNER, flush=True)
    _demo() if arguments.study is None else _study(arguments.study)


def _demo() -> None:
    """Every task with its official protocol and a single seed; then the table and the report."""
    from analysis.studies import STUDIES
    from demo.generate import DATA_SETS

    started, sounds, results = time.monotonic(), FOLDER / "sounds", FOLDER / "results"
    shutil.rmtree(results, ignore_errors=True)  # of an earlier demo
    for name, (data_folder, write, few) in DATA_SETS.items():
        study, folder = STUDIES[name], results / name
        write(sounds / data_folder, **few)
        for script, task in study.extract.items():
            output = folder / task.features_file
            _call(script, "--data-root", sounds / data_folder, "--checkpoint", ENCODER, "--output", output)
        features = folder if study.task.parts else output
        flags = ("--features", features, "--output-dir", folder, "--epochs", EPOCHS)
        _call(study.classify, *study.classify_flags, *flags)
    _verify_speakers(sounds, results)
    _call("analysis/summary.py", "--results", results)
    _call("analysis/report.py", "--results", results, "--data", sounds)
    print(f"\nDone in {time.monotonic() - started:.0f} s. The report, for a browser: {results / 'report.html'}")


def _study(names: Sequence[str]) -> None:
    """What `make reproduce` does, in separate processes, without the doctor, who knows only the real data sets."""
    from analysis.reproduce import main as reproduce
    from demo.generate import DATA_SETS

    sounds, results = FOLDER / "study_sounds", FOLDER / "study"
    for name in names or DATA_SETS:
        data_folder, write, _ = DATA_SETS[name]
        write(sounds / data_folder)
    flags = ("--checkpoint", ENCODER, "--epochs", EPOCHS, "--seeds", 2, "--no-doctor", "--overwrite")
    reproduce([*(names or DATA_SETS), "--data", str(sounds), "--results", str(results), *map(str, flags)])
    if not names or "librispeech_train-clean-100" in names:
        _verify_speakers(sounds, results)
    print(f"\nThe report, for a browser: {results / 'report.html'}")


def _verify_speakers(sounds: Path, results: Path) -> None:
    """Run the speaker verification, which is not a classification."""
    folder = results / "librispeech_train-clean-100"
    features = folder / "librispeech_testclean_features.pt"
    script = "speaker_recognition/extract_testclean_librispeech_features.py"
    _call(script, "--data-root", sounds / "LibriSpeech", "--checkpoint", ENCODER, "--output", features, "--overwrite")
    places = ("--features", features, "--output-dir", folder / "verification")
    _call("speaker_recognition/librispeech_verification.py", *places, "--overwrite")


def _call(script: str, *flags: object) -> None:
    """Show a command and run the script in this process, which has loaded torch; exits if it fails."""
    show_command(script, *flags)
    with mock.patch.object(sys, "argv", [script, *map(str, flags)]):
        runpy.run_path(str(PROJECT_ROOT / script), run_name="__main__")


if __name__ == "__main__":
    run(main)
