"""Extract AudioSep embeddings of Speech Commands v0.02: 105,829 clips of up to 1 s, 35 words."""

from common.cli import extract_main
from key_word_spotting.speech_commands import V2_TASKS

if __name__ == "__main__":
    extract_main(V2_TASKS)
