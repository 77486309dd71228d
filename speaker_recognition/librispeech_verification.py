"""Verify the speakers of LibriSpeech test-clean by the cosine of AudioSep embeddings: EER, minDCF, DET plot."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not


from common.config import FitConfig
from common.datasets import Flag
from common.flags import parse_flags, run
from speaker_recognition.librispeech import OTHERS, TRAIN_CLEAN_100

STATISTICS = {"train-clean-100": TRAIN_CLEAN_100, "dev-clean": OTHERS["dev-clean"]}
TASK = replace(
    OTHERS["test-clean"],
    results_folder=TRAIN_CLEAN_100.folder / "verification",
    flags=(Flag("--statistics", "the subset to standardise and whiten by; its speakers differ", tuple(STATISTICS)),),
)
SETTINGS = ("encoder", "features", "use_layer", "use_pool", "output_dir", "random_seed", "figure_format")


def main(argv: Sequence[str] | None = None) -> None:
    """Make the trials, score them by raw, standardised and whitened embeddings; print and save error rates and DET plot."""
    arguments = parse_flags(TASK, "Verify speakers by the cosine of embeddings", argv, FitConfig, SETTINGS)
    from speaker_recognition.verification import verify

    subset = str(arguments.options["statistics"])
    verify(TASK, subset, STATISTICS[subset], arguments.config, arguments.overwrite)


if __name__ == "__main__":
    run(main)
