"""Train the linear and the three-layer head on UrbanSound8K embeddings; report the official 10-fold accuracy."""

from common.cli import classify_main
from urbansound8k_feature_fc.urbansound8k import TASK

if __name__ == "__main__":
    classify_main(TASK)
