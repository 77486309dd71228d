"""Train the linear and the three-layer head on UrbanSound8K embeddings; report the official 10-fold accuracy."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import classify_main
from urbansound8k_feature_fc.urbansound8k import TASK

if __name__ == "__main__":
    classify_main(TASK)
