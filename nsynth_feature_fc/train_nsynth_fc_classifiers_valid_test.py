"""Train the linear and the three-layer head on NSynth embeddings: fit on train, choose the epoch on valid, test."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import classify_main
from nsynth_feature_fc.nsynth import CLASSIFICATION

if __name__ == "__main__":
    classify_main(CLASSIFICATION)
