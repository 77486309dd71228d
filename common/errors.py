"""The base of every error that a user can fix."""

from __future__ import annotations

import re
import unicodedata


class UserError(ValueError):
    """Something that the user can fix.

    The message is one line that names the file or flag, what is wrong with it, and what to do. Scripts print it without a
    traceback and end with exit status 2. Any other exception is a bug in this project.

    What a file or a flag brings into the message may be of any length and hold any letters: line ends become blanks, other control
    characters are shown as escapes, and the middle of a long message is left out.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_as_line(str(message)))


LONGEST_MESSAGE = 900  # letters


def _as_line(text: str) -> str:
    text = re.sub(r"[\n\r\t\f\v]+\s*", " ", text)
    if not text.isprintable():
        text = "".join(_shown(letter) for letter in text)
    if len(text) > LONGEST_MESSAGE:
        text = f"{text[: LONGEST_MESSAGE - 300]} ... {text[-290:]}"
    return text


def _shown(letter: str) -> str:
    is_control = unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return letter.encode("unicode_escape").decode() if is_control else letter
