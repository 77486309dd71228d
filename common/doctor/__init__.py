"""The command that checks everything before a long run: ``python -m common.doctor``."""
