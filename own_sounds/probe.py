"""Any folder or table of sounds as a task: features, both heads, scores: python own_sounds/probe.py FOLDER_OR_CSV."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from own_sounds.probing import probe_main

if __name__ == "__main__":
    probe_main()
