"""Train the linear and the three-layer head on Speech Commands embeddings, split by the archives' lists."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import classify_main
from key_word_spotting.speech_commands import VERSIONS

if __name__ == "__main__":
    classify_main(VERSIONS)
