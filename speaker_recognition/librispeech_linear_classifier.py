"""Train the linear and the three-layer head to tell LibriSpeech train-clean-100's 251 speakers apart."""

from common.cli import classify_main
from speaker_recognition.librispeech import TRAIN_CLEAN_100

if __name__ == "__main__":
    classify_main(TRAIN_CLEAN_100)
