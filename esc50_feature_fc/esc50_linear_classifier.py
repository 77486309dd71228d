"""Train the linear and the three-layer head on ESC-50 embeddings; report the official 5-fold accuracy."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import classify_main
from esc50_feature_fc.esc50 import TASK

if __name__ == "__main__":
    classify_main(TASK)
