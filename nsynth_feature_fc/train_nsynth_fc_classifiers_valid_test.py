"""Train the linear and the three-layer head on NSynth embeddings: fit on train, choose the epoch on valid, test."""

from common.cli import classify_main
from nsynth_feature_fc.nsynth import CLASSIFICATION

if __name__ == "__main__":
    classify_main(CLASSIFICATION)
