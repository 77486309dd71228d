"""The whole pipeline on generated sounds with an untrained encoder: the very scripts that a user runs."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.cli import run
from demo import generate

PROJECT_ROOT = Path(__file__).resolve().parent.parent
DEMO = PROJECT_ROOT / "data" / "demo"


@dataclass(frozen=True)
class DemoTask:
    """What the demo does for one task.

    Attributes:
        title: its name in the table.
        generate: writes the data set below a root.
        folder: the data set's official folder.
        extract: feature file -> the script that writes it.
        classify: the script that reads them, and writes result.json.
        verify: the script that verifies speakers on the last of the feature files, where there is one.
    """

    title: str
    generate: Callable[[Path], None]
    folder: str
    extract: dict[str, str]
    classify: str
    verify: str = ""


TASKS = (
    DemoTask(
        "ESC-50",
        generate.generate_esc50,
        "ESC-50-master",
        {"features.pt": "esc50_feature_fc/extract_esc50_features_audiosep.py"},
        "esc50_feature_fc/esc50_linear_classifier.py",
    ),
    DemoTask(
        "ICBHI recordings",
        generate.generate_icbhi,
        "ICBHI_final_database",
        {"features.pt": "icbhi_feature_fc/extract_icbhi_features_audiosep.py"},
        "icbhi_feature_fc/icbhi_linear_classifier.py",
    ),
    DemoTask(
        "UrbanSound8K",
        generate.generate_urbansound8k,
        "UrbanSound8K",
        {"features.pt": "urbansound8k_feature_fc/extract_urbansound8k_features_audiosep.py"},
        "urbansound8k_feature_fc/urbansound8k_linear_classifier.py",
    ),
    DemoTask(
        "NSynth",
        generate.generate_nsynth,
        "nsynth",
        {
            f"nsynth_{split}_features.pt": f"nsynth_feature_fc/extract_nsynth_{split}_features_audiosep.py"
            for split in ("train", "valid", "test")
        },
        "nsynth_feature_fc/train_nsynth_fc_classifiers_valid_test.py",
    ),
    DemoTask(
        "LibriSpeech speakers",
        generate.generate_librispeech,
        "LibriSpeech",
        {
            "librispeech_trainclean100_features.pt": "speaker_recognition/extract_train-clean-100_features.py",
            "librispeech_testclean_features.pt": "speaker_recognition/extract_testclean_librispeech_features.py",
        },
        "speaker_recognition/librispeech_linear_classifier.py",
        "speaker_recognition/librispeech_verification.py",
    ),
    DemoTask(
        "Speech Commands v1",
        generate.generate_speech_commands,
        "speech_commands_v0.01",
        {"features.pt": "key_word_spotting/extract_spc_features_audiosep_v1.py"},
        "key_word_spotting/train_spc_fc_classifiers.py",
    ),
)
BANNER = """\
DEMO: an UNTRAINED encoder (random weights) on GENERATED sounds. The scores show that the pipeline runs;
they say nothing about AudioSep. For the real thing, get the weights and a data set (see README.md), then:
    cd esc50_feature_fc && python extract_esc50_features_audiosep.py && python esc50_linear_classifier.py --epochs 100
"""


def call(script: str, *flags: object) -> None:
    """Show a command and run it; end with its status where it fails."""
    shown = [str(flag).replace(f"{PROJECT_ROOT}/", "") for flag in flags]
    print(f"$ python {script} {' '.join(shown)}", flush=True)
    status = subprocess.run([sys.executable, PROJECT_ROOT / script, *map(str, flags)], check=False).returncode
    if status:
        sys.exit(status)


def main() -> None:
    print(BANNER, flush=True)
    table = [("task", "clips", "classes", "majority %", "linear %", "three-layer %")]
    for task in TASKS:
        root, results = DEMO / task.folder, DEMO / "results" / task.folder
        task.generate(root)
        # --overwrite: what an earlier version of the demo left here is nobody's work.
        for file, script in task.extract.items():
            call(script, "--data-root", root, "--checkpoint", "random:0", "--output", results / file, "--overwrite")
        files = [results / file for file in task.extract]
        # NSynth's classification takes its three files by their names from one folder.
        features = results if "nsynth_train_features.pt" in task.extract else files[0]
        # Half the usual epochs: small sets of generated sounds need no more, and a demo should be short.
        call(task.classify, "--features", features, "--output-dir", results, "--epochs", 50, "--overwrite")
        if task.verify:
            call(task.verify, "--features", files[-1], "--output-dir", results / "verification", "--overwrite")
        record = json.loads((results / "result.json").read_text())
        protocol = record["protocols"]["official"]
        scored = (protocol["majority_class"], *protocol["heads"].values())
        accuracies = [f"{100 * head['mean']['accuracy']:.1f}" for head in scored]
        features_record = record["features"]
        classes = len(features_record["class_names"])
        table.append((task.title, features_record["clips"], classes, *accuracies))
        print(flush=True)
    widths = [max(len(str(row[column])) for row in table) for column in range(len(table[0]))]
    print("Demo scores (accuracy; untrained encoder, generated sounds):")
    for row in table:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    run(main)
