"""What the demo runs: the project's own scripts on generated sounds, with an untrained encoder."""

from __future__ import annotations

import runpy
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

from analysis.studies import STUDIES
from common.files import PROJECT_ROOT
from demo import generate

DEMO = PROJECT_ROOT / "data" / "demo"
ENCODER = "random:0"
EPOCHS = 50  # half the usual number: small sets of generated sounds need no more

# name of the task -> the data set's official folder, and what writes a small data set into it
TASKS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "esc50": ("ESC-50-master", partial(generate.generate_esc50, recordings=1)),
    "icbhi": ("ICBHI_final_database", partial(generate.generate_icbhi, patients=15)),
    "urbansound8k": ("UrbanSound8K", partial(generate.generate_urbansound8k, recordings=1)),
    "nsynth": ("nsynth", partial(generate.generate_nsynth, notes=1)),
    "librispeech_train-clean-100": ("LibriSpeech", partial(generate.generate_librispeech, utterances=4)),
    "speech_commands_v1": ("speech_commands_v0.01", partial(generate.generate_speech_commands, speakers=15)),
}


def demo() -> None:
    """Every task once: official protocol, one seed; then the table and the report."""
    started = time.monotonic()
    results = DEMO / "results"
    # Results of an earlier demo are not worth keeping.
    shutil.rmtree(results, ignore_errors=True)
    for name, (data_folder, write) in TASKS.items():
        study, data, folder = STUDIES[name], DEMO / "sounds" / data_folder, results / name
        write(data)
        for script, task in study.extract.items():
            output = folder / task.features_file
            call(script, "--data-root", data, "--checkpoint", ENCODER, "--output", output)
        features = folder if study.task.parts else output
        flags = ("--features", features, "--output-dir", folder, "--epochs", EPOCHS)
        call(study.classify, *study.classify_flags, *flags)
    _verify_speakers(DEMO / "sounds", results)
    call("analysis/summary.py", "--results", results)
    call("analysis/report.py", "--results", results, "--data", DEMO / "sounds")
    print(f"\nDone in {time.monotonic() - started:.0f} s. The report, for a browser: {results / 'report.html'}")


def _verify_speakers(data: Path, results: Path) -> None:
    """Run the speaker verification, which has its own kind of scores, after the six classifications."""
    folder = results / "librispeech_train-clean-100"
    features = folder / "librispeech_testclean_features.pt"
    script = "speaker_recognition/extract_testclean_librispeech_features.py"
    call(script, "--data-root", data / "LibriSpeech", "--checkpoint", ENCODER, "--output", features, "--overwrite")
    where = ("--features", features, "--output-dir", folder / "verification", "--overwrite")
    call("speaker_recognition/librispeech_verification.py", *where)


def study() -> None:
    """What `make reproduce` does, in separate processes; no doctor, since these are not the real data sets."""
    from analysis.reproduce import main as reproduce

    data, results = DEMO / "study_sounds", DEMO / "study"
    for data_folder, write in TASKS.values():
        (write.func if isinstance(write, partial) else write)(data / data_folder)
    flags = ("--checkpoint", ENCODER, "--epochs", EPOCHS, "--seeds", 2, "--no-doctor", "--overwrite")
    reproduce([*TASKS, "--data", str(data), "--results", str(results), *map(str, flags)])
    _verify_speakers(data, results)
    print(f"\nThe report, for a browser: {results / 'report.html'}")


def call(script: str, *flags: object) -> None:
    """Show a command and run the script in this process, which has already loaded torch; exits if it fails."""
    arguments = [str(flag) for flag in flags]
    shown = " ".join(arguments).replace(f"{PROJECT_ROOT}/", "")
    print(f"\n$ python {script} {shown}", flush=True)
    with mock.patch.object(sys, "argv", [script, *arguments]):
        runpy.run_path(str(PROJECT_ROOT / script), run_name="__main__")
