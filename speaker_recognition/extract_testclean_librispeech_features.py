"""Extract AudioSep embeddings of LibriSpeech test-clean: 2,620 utterances of 40 speakers (or --subset dev-clean)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import extract_main
from speaker_recognition.librispeech import OTHER_SUBSETS

if __name__ == "__main__":
    extract_main(OTHER_SUBSETS)
