"""Embed audio files with any encoder: python own_sounds/embed.py FILE_OR_FOLDER... -o embeddings.pt (.npz, .csv, .parquet)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from own_sounds.embedding import embed_main

if __name__ == "__main__":
    embed_main()
