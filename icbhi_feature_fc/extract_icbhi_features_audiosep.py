"""Extract AudioSep embeddings of ICBHI 2017: 920 recordings, or with --level cycle their 6,898 breathing cycles."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import extract_main
from icbhi_feature_fc.icbhi import LEVELS

if __name__ == "__main__":
    extract_main(LEVELS)
