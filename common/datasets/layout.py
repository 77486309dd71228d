"""How data sets are laid out on disk: errors for other layouts, and reading of official metadata tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


class DatasetNote(UserWarning):
    """A warning about a data set that does not stop the run."""


class DatasetError(UserError):
    """A data set is not laid out as expected."""


class DatasetMissingError(DatasetError):
    """A data set, or a part of it, is missing."""


def layout_error(root: Path, title: str, expected: str, usual_folder: str, download: str) -> DatasetMissingError:
    """The error for a data root that differs from the official archive; `download` is the data set's name for
    `python -m common.download`."""
    get = f"get it: {download_command(download, root)}"
    whole = next((parent for parent in (root.parent, root.parent.parent) if parent.name == usual_folder), None)
    if not root.exists():
        problem = f"does not exist. Give the folder of {title} ({expected} in it) with --data-root, or {get}"
    elif not root.is_dir():
        problem = f"is a file; give the folder of {title} ({expected} in it): --data-root"
    elif (root / usual_folder).is_dir():
        problem = f"is one folder too high for {title}: give --data-root {root / usual_folder}"
    elif whole is not None:
        problem = f"is a part of {title}; give all of it: --data-root {whole}"
    else:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
        content = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "nothing"
        problem = f"is not laid out as {title}: expected {expected}; found {content}. If that is missing, {get}"
    return DatasetMissingError(f"data root {root} {problem}")


def download_command(download: str, root: Path) -> str:
    """The command that downloads a data set whose folder is `root`."""
    return f"python -m common.download {download} --root {root.parent}"


def plain_name(name: str, listing: Path) -> str:
    """A file name from a data set's listing; DatasetError if it leads out of its folder."""
    if "\0" in name or "/" in name or "\\" in name or name in ("", ".", ".."):
        raise DatasetError(f"{listing} lists {name!r}, which is not a file name; unpack the official archive again")
    return name


def read_text(path: Path) -> str:
    """A data set's text file; DatasetError if it cannot be read as UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = "not text in UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise DatasetError(f"{path} cannot be read ({cause}); get it again") from error


def read_csv(path: Path, columns: Sequence[str], fix: str, **options: Any) -> pd.DataFrame:
    """A CSV that has rows and all `columns`; else DatasetError, whose message ends with `fix`. `options` are pandas'."""
    import pandas as pd

    try:
        table: pd.DataFrame = pd.read_csv(path, **options)
    except (ValueError, OverflowError, OSError) as error:  # pandas' errors and UnicodeDecodeError are ValueErrors
        raise DatasetError(f"{path} cannot be read as a table: {' '.join(str(error).split())[:200]}; {fix}") from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas has taken the first column for names of rows
        raise DatasetError(f"{path} has lines with more fields than its header; {fix}")
    missing = [column for column in columns if column not in table.columns]
    if missing:
        present = ", ".join(map(str, table.columns[:10]))
        raise DatasetError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} (it has {present}); {fix}"
        )
    if table.empty:
        raise DatasetError(f"{path} lists no clips; {fix}")
    return table


def read_metadata(path: Path, columns: tuple[str, ...], whole_numbers: tuple[str, ...], title: str) -> pd.DataFrame:
    """A data set's official CSV, with all `columns` present and without empty fields; `whole_numbers` are int64."""
    fix = f"unpack {title} again"
    table = read_csv(path, columns, fix)
    empty = table[list(columns)].isna().any(axis=1)
    if empty.any():
        raise DatasetError(f"{path} line {int(empty.to_numpy().argmax()) + 2} has an empty field; {fix}")
    for column in whole_numbers:
        wrong = ~table[column].astype(str).str.fullmatch(r"\d{1,15}(\.0)?")
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            text = str(table[column][row])[:50]
            raise DatasetError(f"{path} line {row + 2}: {column} must be a whole number, not {text!r}; {fix}")
        table[column] = table[column].astype(float).astype("int64")
    return table
