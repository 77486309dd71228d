"""Analyses of what extraction and classification have saved."""

import common  # says what is missing, before any other import fails
