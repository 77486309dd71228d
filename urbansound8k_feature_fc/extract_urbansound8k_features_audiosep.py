"""Extract AudioSep embeddings of UrbanSound8K: 8,732 clips of up to 4 s, 10 classes, 10 folds."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import extract_main
from urbansound8k_feature_fc.urbansound8k import TASK

if __name__ == "__main__":
    extract_main(TASK)
