"""The whole pipeline on generated sounds with an untrained encoder: the very scripts that a user runs."""

import json
import subprocess
import sys
from pathlib import Path

from common.cli import run
from demo.generate import generate_esc50, generate_urbansound8k

PROJECT_ROOT = Path(__file__).resolve().parent.parent
DEMO = PROJECT_ROOT / "data" / "demo"
# title, generator, data root, extraction script, classification script
TASKS = (
    (
        "ESC-50",
        generate_esc50,
        "ESC-50-master",
        "esc50_feature_fc/extract_esc50_features_audiosep.py",
        "esc50_feature_fc/esc50_linear_classifier.py",
    ),
    (
        "UrbanSound8K",
        generate_urbansound8k,
        "UrbanSound8K",
        "urbansound8k_feature_fc/extract_urbansound8k_features_audiosep.py",
        "urbansound8k_feature_fc/urbansound8k_linear_classifier.py",
    ),
)
BANNER = """\
DEMO: an UNTRAINED encoder (random weights) on GENERATED sounds. The scores show that the pipeline runs;
they say nothing about AudioSep. For the real thing, get the weights and a data set (see README.md), then:
    cd esc50_feature_fc && python extract_esc50_features_audiosep.py && python esc50_linear_classifier.py --epochs 100
"""


def main() -> None:
    print(BANNER, flush=True)
    table = [("task", "clips", "classes", "protocol", "linear %", "three-layer %")]
    for title, generate, folder, extract_script, classify_script in TASKS:
        root, results = DEMO / folder, DEMO / "results" / folder
        features = results / "features.pt"
        generate(root)
        # --overwrite: what an earlier version of the demo left here is nobody's work.
        for script, flags in (
            (extract_script, ["--data-root", root, "--checkpoint", "random:0", "--output", features, "--overwrite"]),
            (classify_script, ["--features", features, "--output-dir", results, "--overwrite"]),
        ):
            shown = [str(flag).replace(f"{PROJECT_ROOT}/", "") for flag in flags]
            print(f"$ python {script} {' '.join(shown)}", flush=True)
            status = subprocess.run([sys.executable, PROJECT_ROOT / script, *flags], check=False).returncode
            if status:
                sys.exit(status)
        record = json.loads((results / "result.json").read_text())
        accuracies = [f"{100 * head['mean']['accuracy']:.1f}" for head in record["heads"].values()]
        features_record = record["features"]
        classes = len(features_record["class_names"])
        table.append((title, features_record["clips"], classes, record["protocol"], *accuracies))
        print(flush=True)
    widths = [max(len(str(row[column])) for row in table) for column in range(len(table[0]))]
    print("Demo scores (accuracy; untrained encoder, generated sounds):")
    for row in table:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    run(main)
