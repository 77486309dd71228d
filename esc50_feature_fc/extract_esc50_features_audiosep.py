"""Extract AudioSep embeddings of ESC-50: 2,000 clips of 5 s, 50 classes, 5 folds."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import extract_main
from esc50_feature_fc.esc50 import TASK

if __name__ == "__main__":
    extract_main(TASK)
