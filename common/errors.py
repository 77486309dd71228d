"""The base of every error that a user can fix."""

from __future__ import annotations

import re

from pydantic import ValidationError

LONGEST_MESSAGE = 900  # characters


class UserError(ValueError):
    """Something that the user can fix.

    The message is one line that names the file or flag, what is wrong with it, and what to do. Scripts print it without a
    traceback and end with exit status 2. Any other exception is a bug in this project.

    File names and flags in the message may be long and odd: line ends become blanks, characters that cannot be printed
    become escapes, and the middle of a long message is left out.
    """

    def __init__(self, message: object = "") -> None:
        text = re.sub(r"[\n\r\t\f\v]+\s*", " ", str(message))
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        if len(text) > LONGEST_MESSAGE:
            text = f"{text[: LONGEST_MESSAGE - 300]} ... {text[-290:]}"
        super().__init__(text)


def first_problem(error: Exception) -> str:
    """What an error says, in a line; of pydantic's, where and what the first is."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())[:300]
    problem = error.errors(include_url=False, include_input=False)[0]
    return ": ".join(filter(None, [".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")]))
