"""Analyses over what extraction and classification have saved."""
