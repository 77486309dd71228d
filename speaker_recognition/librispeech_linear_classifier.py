"""Train the linear and the three-layer head to tell LibriSpeech train-clean-100's 251 speakers apart."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import classify_main
from speaker_recognition.librispeech import TRAIN_CLEAN_100

if __name__ == "__main__":
    classify_main(TRAIN_CLEAN_100)
