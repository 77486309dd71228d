"""Train the linear and the three-layer head on ESC-50 embeddings; report the official 5-fold accuracy."""

from common.cli import classify_main
from esc50_feature_fc.esc50 import TASK

if __name__ == "__main__":
    classify_main(TASK)
