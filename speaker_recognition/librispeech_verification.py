"""Verify the speakers of LibriSpeech test-clean by the cosine of AudioSep embeddings: EER, minDCF, DET plot."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from speaker_recognition.verification import main

if __name__ == "__main__":
    main()
