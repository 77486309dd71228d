"""The parser of command-line flags that every command uses."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import NoReturn, get_args

from common.config import FigureFormat


def add_figure_format(parser: argparse.ArgumentParser) -> None:
    """The flag of commands that draw."""
    formats = get_args(FigureFormat)
    parser.add_argument(
        "--figure-format", choices=formats, default="png", help="what figures are written as (default: png)"
    )


class Parser(argparse.ArgumentParser):
    """argparse's parser without abbreviations, which names the flag that a misspelt one probably means."""

    def __init__(self, description: str | None, prog: str | None = None) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with status 2."""
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        found = re.search(r"unrecognized arguments: .*?(--[\w-]+)", message)
        near = difflib.get_close_matches(found[1], flags, 1) if found else []
        super().error(f"{message}; did you mean {near[0]}?" if near else message)
