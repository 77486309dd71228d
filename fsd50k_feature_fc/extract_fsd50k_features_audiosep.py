"""Extract AudioSep embeddings of FSD50K: 51,197 clips of 0.3 to 30 s, 200 classes, several a clip."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import extract_main
from fsd50k_feature_fc.fsd50k import TASK

if __name__ == "__main__":
    extract_main(TASK)
