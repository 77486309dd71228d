import common  # noqa: F401  # says what is missing, before any other import fails
