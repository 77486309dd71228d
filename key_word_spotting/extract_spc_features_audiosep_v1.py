"""Extract AudioSep embeddings of Speech Commands v0.01: 64,721 clips of up to 1 s, 30 words."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import extract_main
from key_word_spotting.speech_commands import V1_TASKS

if __name__ == "__main__":
    extract_main(V1_TASKS)
