"""Data sets of the Hugging Face hub: fetched as Parquet files or tars, of one revision, which is recorded."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from common.datasets.clip import CONTAINER_SUFFIXES
from common.datasets.layout import DatasetError, DatasetMissingError
from common.datasets.tables import SPLITS

HUB = "hf:"
NAME = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[^@]+))?(?:@(?P<revision>.+))?")
CONVERTED = "refs/convert/parquet"  # where the hub keeps Parquet files of data sets in other forms


def is_on_hub(place: Path) -> bool:
    return str(place).startswith(HUB)


def fetch(text: str, only: Sequence[str]) -> list[Path]:
    """Fetch a data set, ``hf:OWNER/NAME[:CONFIG][@REVISION]``, or what is missing of it, into the hub's cache: the files that match
    one of the globs `only`, if any does. Without a network, what is there is taken. Returns the files, below a folder named after
    their commit.

    DatasetMissingError: huggingface_hub is not installed, the hub cannot be reached, or there is no such data set. DatasetError: it
    is not such a name, has neither Parquet files nor tars, or has several configurations.
    """
    match = NAME.fullmatch(text)
    if match is None:
        raise DatasetError(f"{text} is not hf:OWNER/NAME[:CONFIG][@REVISION]")
    name, config, revision = match["name"], match["config"], match["revision"]
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import DryRunError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise DatasetMissingError(f"{text} needs huggingface_hub: pip install huggingface_hub") from error
    patterns = [f"{config}/*{suffix}" if config else f"*{suffix}" for suffix in CONTAINER_SUFFIXES]
    for wanted in dict.fromkeys((revision, revision or CONVERTED)):
        fetch_files: Callable[..., Any] = partial(snapshot_download, name, repo_type="dataset", revision=wanted)
        try:
            try:
                listed = fetch_files(allow_patterns=patterns, dry_run=True)
                files, is_local = matching([file.filename for file in listed], only), False
            except DryRunError:  # no network, or no such data set
                files, is_local = [f"*{glob}*" for glob in only] or patterns, True
            if files:
                _refuse_several(files, text, config)
                folder = Path(fetch_files(allow_patterns=files, local_files_only=is_local))
                names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))]
                return [folder / below for below in names if any(fnmatch(below, file) for file in files)]
        except LocalEntryNotFoundError as error:
            why = "is not whole in the hub's cache, and the hub has no such data set or cannot be reached"
            raise DatasetMissingError(f"{text} {why}") from error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            if wanted == revision:
                raise DatasetMissingError(f"{text} cannot be fetched: {' '.join(str(error).split())[:200]}") from error
    raise DatasetError(f"{text} has neither Parquet files nor tars" + f" in {config}/" * bool(config))


def matching(names: Sequence[str], only: Sequence[str]) -> list[str]:
    """The names that match one of the globs, or all if none does."""
    return [name for name in names if any(fnmatch(name, f"*{glob}*") for glob in only)] or list(names)


def _refuse_several(names: Sequence[str], text: str, config: str | None) -> None:
    """DatasetError if the files are of several configurations: of folders that are not splits."""
    folders = sorted({PurePosixPath(name).parts[0] for name in names if "/" in name})
    if not config and len(folders) > 1 and not all(re.split("[.-]", folder)[0] in SPLITS for folder in folders):
        raise DatasetError(f"{text} has several configurations ({', '.join(folders)}); give one: {text}:{folders[0]}")
