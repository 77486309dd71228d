"""The command that downloads data sets and weights: ``python -m common.download``."""
