"""Analyses of what extraction and classification have saved."""

import common  # noqa: F401  # says what is missing, before any other import fails
