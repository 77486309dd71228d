"""Extract AudioSep embeddings of UrbanSound8K: 8,732 clips of up to 4 s, 10 classes, 10 folds."""

from common.cli import extract_main
from urbansound8k_feature_fc.urbansound8k import TASK

if __name__ == "__main__":
    extract_main(TASK)
