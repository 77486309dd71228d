"""Extract AudioSep embeddings of LibriSpeech train-clean-100: 28,539 utterances of 251 speakers."""

from common.cli import extract_main
from speaker_recognition.librispeech import TRAIN_CLEAN_100

if __name__ == "__main__":
    extract_main(TRAIN_CLEAN_100)
