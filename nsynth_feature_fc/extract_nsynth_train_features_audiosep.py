"""Extract AudioSep embeddings of NSynth's train set: 289,205 notes of 4 s, labelled by instrument family."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import extract_main
from nsynth_feature_fc.nsynth import task

if __name__ == "__main__":
    extract_main(task("train"))
