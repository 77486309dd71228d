"""Extract AudioSep embeddings of LibriSpeech test-clean: 2,620 utterances of 40 speakers (or --subset dev-clean)."""

from common.cli import extract_main
from speaker_recognition.librispeech import OTHER_SUBSETS

if __name__ == "__main__":
    extract_main(OTHER_SUBSETS)
