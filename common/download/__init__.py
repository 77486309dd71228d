"""The command that gets data sets and weights: ``python -m common.download``."""
