"""Extract AudioSep embeddings of NSynth's test set: 4,096 notes of 4 s, labelled by instrument family."""

from common.cli import extract_main
from nsynth_feature_fc.nsynth import task

if __name__ == "__main__":
    extract_main(task("test"))
