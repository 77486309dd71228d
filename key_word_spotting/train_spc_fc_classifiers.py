"""Train the linear and the three-layer head on Speech Commands embeddings: the archives' own lists as splits."""

from common.cli import classify_main
from key_word_spotting.speech_commands import VERSIONS

if __name__ == "__main__":
    classify_main(VERSIONS)
