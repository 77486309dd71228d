"""The base of every error that a user can fix."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can fix.

    The message is one line that names the file or flag, what is wrong with it, and what to do. Scripts print it without a
    traceback and end with exit status 2. Any other exception is a bug in this project.
    """
