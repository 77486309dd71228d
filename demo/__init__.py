import common  # says what is missing, before any other import fails
