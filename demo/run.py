"""All six tasks on generated sounds with an untrained encoder, by the very scripts that a user runs: python -m demo.run.

The first results come within a minute, all of them and the report within about three. ``--study`` runs what `make
reproduce` runs instead, on more sounds: both protocols, several seeds, probes and controls.
"""

from __future__ import annotations

import argparse
import runpy
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from common.entry import run
from common.files import PROJECT_ROOT
from demo import generate

DEMO = PROJECT_ROOT / "data" / "demo"
ENCODER = "random:0"
EPOCHS = 50  # half the usual number: small sets of generated sounds need no more
BANNER = """\
DEMO: an UNTRAINED encoder (random weights) on GENERATED sounds. The scores show that the pipeline runs.
They say nothing about AudioSep. For the real thing, get the weights and a data set (see README.md), then:
    make reproduce TASKS=esc50
"""


@dataclass(frozen=True)
class DemoTask:
    """A task of the demo.

    Attributes:
        name: as `make reproduce` knows it.
        folder: the data set's official folder.
        write: writes a small data set into it, and `write_more` a larger one for ``--study``.
        extract: scripts, and the names of their feature files.
        classify: the script with its flags.
        takes_folder: whether classification takes the folder of the features.
    """

    name: str
    folder: str
    write: Callable[[Path], None]
    write_more: Callable[[Path], None]
    extract: tuple[tuple[str, str], ...]
    classify: tuple[str, ...]
    takes_folder: bool = False


TASKS = (
    DemoTask(
        "esc50",
        "ESC-50-master",
        lambda root: generate.generate_esc50(root, recordings=2),
        generate.generate_esc50,
        (("esc50_feature_fc/extract_esc50_features_audiosep.py", "features.pt"),),
        ("esc50_feature_fc/esc50_linear_classifier.py",),
    ),
    DemoTask(
        "icbhi",
        "ICBHI_final_database",
        lambda root: generate.generate_icbhi(root, patients=18),
        generate.generate_icbhi,
        (("icbhi_feature_fc/extract_icbhi_features_audiosep.py", "features.pt"),),
        ("icbhi_feature_fc/icbhi_linear_classifier.py",),
    ),
    DemoTask(
        "urbansound8k",
        "UrbanSound8K",
        lambda root: generate.generate_urbansound8k(root, recordings=2),
        generate.generate_urbansound8k,
        (("urbansound8k_feature_fc/extract_urbansound8k_features_audiosep.py", "features.pt"),),
        ("urbansound8k_feature_fc/urbansound8k_linear_classifier.py",),
    ),
    DemoTask(
        "nsynth",
        "nsynth",
        lambda root: generate.generate_nsynth(root, notes=1),
        generate.generate_nsynth,
        tuple(
            (f"nsynth_feature_fc/extract_nsynth_{split}_features_audiosep.py", f"nsynth_{split}_features.pt")
            for split in ("train", "valid", "test")
        ),
        ("nsynth_feature_fc/train_nsynth_fc_classifiers_valid_test.py",),
        takes_folder=True,
    ),
    DemoTask(
        "librispeech_train-clean-100",
        "LibriSpeech",
        generate.generate_librispeech,
        generate.generate_librispeech,
        (
            (
                "speaker_recognition/extract_train-clean-100_features.py",
                "librispeech_trainclean100_features.pt",
            ),
        ),
        ("speaker_recognition/librispeech_linear_classifier.py",),
    ),
    DemoTask(
        "speech_commands_v1",
        "speech_commands_v0.01",
        generate.generate_speech_commands,
        generate.generate_speech_commands,
        (("key_word_spotting/extract_spc_features_audiosep_v1.py", "features.pt"),),
        ("key_word_spotting/train_spc_fc_classifiers.py", "--version", "v1"),
    ),
)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m demo.run", description=__doc__, allow_abbrev=False)
    parser.add_argument("--study", action="store_true", help="what make reproduce runs, on more sounds (10 minutes)")
    is_study = parser.parse_args(argv).study
    print(BANNER, flush=True)
    _study() if is_study else _demo()


def _demo() -> None:
    """Every task once: official protocol, one seed; then the table and the report."""
    started = time.monotonic()
    results = DEMO / "results"
    # What an earlier demo left is nobody's work.
    shutil.rmtree(results, ignore_errors=True)
    for task in TASKS:
        data, folder = DEMO / "sounds" / task.folder, results / task.name
        task.write(data)
        for script, name in task.extract:
            call(script, "--data-root", data, "--checkpoint", ENCODER, "--output", folder / name)
        features = folder if task.takes_folder else folder / task.extract[0][1]
        call(*task.classify, "--features", features, "--output-dir", folder, "--epochs", EPOCHS)
    _verify_speakers(DEMO / "sounds", results)
    call("analysis/summary.py", "--results", results)
    call("analysis/report.py", "--results", results, "--data", DEMO / "sounds")
    print(f"\nDone in {time.monotonic() - started:.0f} s. The report, for a browser: {results / 'report.html'}")


def _verify_speakers(data: Path, results: Path) -> None:
    """Verification has scores of its own kind, beside the six classifications."""
    folder = results / "librispeech_train-clean-100"
    features = folder / "librispeech_testclean_features.pt"
    script = "speaker_recognition/extract_testclean_librispeech_features.py"
    call(script, "--data-root", data / "LibriSpeech", "--checkpoint", ENCODER, "--output", features, "--overwrite")
    where = ("--features", features, "--output-dir", folder / "verification", "--overwrite")
    call("speaker_recognition/librispeech_verification.py", *where)


def _study() -> None:
    """What `make reproduce` does, with processes of its own; no doctor, who knows that these are not the data sets."""
    from analysis.reproduce import main as reproduce

    data, results = DEMO / "study_sounds", DEMO / "study"
    for task in TASKS:
        task.write_more(data / task.folder)
    flags = ("--checkpoint", ENCODER, "--epochs", EPOCHS, "--seeds", 2, "--no-doctor", "--overwrite")
    reproduce([*(task.name for task in TASKS), "--data", str(data), "--results", str(results), *map(str, flags)])
    _verify_speakers(data, results)
    print(f"\nThe report, for a browser: {results / 'report.html'}")


def call(script: str, *flags: object) -> None:
    """Show a command and run the script in this process, which has loaded torch already; ends where it fails."""
    arguments = [str(flag) for flag in flags]
    shown = " ".join(arguments).replace(f"{PROJECT_ROOT}/", "")
    print(f"\n$ python {script} {shown}", flush=True)
    with mock.patch.object(sys, "argv", [script, *arguments]):
        runpy.run_path(str(PROJECT_ROOT / script), run_name="__main__")


if __name__ == "__main__":
    run(main)
