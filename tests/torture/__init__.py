"""Attacks on the project, by class; `python -m tests.torture` runs them."""
