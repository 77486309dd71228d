"""Train the linear and the three-layer head on ICBHI embeddings; report the official 60/40 split's scores."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import classify_main
from icbhi_feature_fc.icbhi import LEVELS

if __name__ == "__main__":
    classify_main(LEVELS)
