"""How data sets are laid out on disk: errors for other layouts."""

from __future__ import annotations

import os
from pathlib import Path

from common.errors import UserError


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
    if not root.is_dir():
        problem = f"is not a folder. Give that of {title} ({expected} in it) with --data-root, or {get}"
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


def files_in(folder: Path) -> list[Path]:
    """All files in a folder and its sub-folders, sorted, as they are named there: links are followed, but none in a circle. Hidden
    files and folders are left out."""
    files: list[Path] = []
    above: dict[Path, frozenset[str]] = {}
    for place, folders, names in os.walk(folder, followlinks=True):
        path, real = Path(place), os.path.realpath(place)
        above[path] = above.get(path.parent, frozenset()) | {real}
        is_circle = real in above.get(path.parent, ())
        folders[:] = [] if is_circle else [name for name in folders if not name.startswith(".")]
        if not is_circle:
            files += [path / name for name in names if not name.startswith(".")]
    return sorted(path for path in files if path.is_file())
