"""Evaluation: feature files -> scores with intervals and the record of a run."""
