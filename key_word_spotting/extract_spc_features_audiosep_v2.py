"""Extract AudioSep embeddings of Speech Commands v0.02: 105,829 clips of up to 1 s, 35 words."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import extract_main
from key_word_spotting.speech_commands import V2_TASKS

if __name__ == "__main__":
    extract_main(V2_TASKS)
