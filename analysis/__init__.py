"""Analyses of what extraction and classification have saved."""
