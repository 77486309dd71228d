"""Extract AudioSep embeddings of LibriSpeech train-clean-100: 28,539 utterances of 251 speakers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import extract_main
from speaker_recognition.librispeech import TRAIN_CLEAN_100

if __name__ == "__main__":
    extract_main(TRAIN_CLEAN_100)
