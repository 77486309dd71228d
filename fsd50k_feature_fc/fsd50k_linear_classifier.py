"""Train the linear and the three-layer head on FSD50K embeddings; report the mean average precision on eval."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import classify_main
from fsd50k_feature_fc.fsd50k import TASK

if __name__ == "__main__":
    classify_main(TASK)
