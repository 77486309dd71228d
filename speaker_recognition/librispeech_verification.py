"""Verify the speakers of LibriSpeech test-clean by the cosine of AudioSep embeddings: EER, minDCF, DET plot."""

from speaker_recognition.verification import main

if __name__ == "__main__":
    main()
