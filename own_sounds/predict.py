"""What a trained head hears in any audio: python own_sounds/predict.py HEAD.pt FILE_OR_FOLDER..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from own_sounds.predicting import predict_main

if __name__ == "__main__":
    predict_main()
