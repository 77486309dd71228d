"""The content of a feature file, checked part by part."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from common.errors import UserError
from common.files import DamagedFileError, UnsafeFileError, load_torch
from common.provenance import Provenance, read_provenance

LONGEST_NAME = 1_000  # letters of a class, clip or group; a path has at most 4,096 bytes


class FeatureFileError(UserError):
    """A feature file cannot be used."""


def provenance_of(meta: Any, path: Path) -> Provenance:
    """What the file says of how it was made; nothing, if it says nothing."""
    if meta is None:
        return {}
    try:
        provenance = read_provenance(meta)
    except ValueError as error:
        raise FeatureFileError(f"{path} is damaged: meta.{error}; extract again") from error
    return provenance


def uneven(path: Path, rows: int, count: int, what: str) -> FeatureFileError:
    """The error for a part that has not one entry per row."""
    return FeatureFileError(f"{path} is damaged: {rows} rows of features but {count} {what}; extract again")


def names_of(values: Any, what: str, count: int, path: Path, exactly: bool = True) -> list[str]:
    """A list of `count` strings, or of at least that many."""
    if not isinstance(values, (list, tuple)):
        raise FeatureFileError(f"{path} is damaged: {what} is a {type(values).__name__}, not a list; extract again")
    if not exactly and len(values) < count:
        raise FeatureFileError(f"{path} is damaged: label {count - 1} but only {len(values)} class names")
    if exactly and len(values) != count:
        raise uneven(path, count, len(values), what)
    strange = next((value for value in values if not isinstance(value, (str, int, float, NoneType))), None)
    if strange is not None:
        raise FeatureFileError(f"{path} is damaged: one of its {what} is a {type(strange).__name__}; extract again")
    names = [str(value) for value in values]
    too_long = next((name for name in names if len(name) > LONGEST_NAME), None)
    if too_long is not None:
        raise FeatureFileError(
            f"{path}: one of its {what} has more than {LONGEST_NAME:,} letters ({too_long[:20]}…); extract again"
        )
    return names


def optional_names(content: dict[str, Any], what: str, rows: int, path: Path) -> list[str] | None:
    """A name per row, if the file has them."""
    return None if content.get(what) is None else names_of(content[what], what, rows, path)


def class_names_of(names: Any, count: int, path: Path) -> list[str]:
    """The names of at least `count` classes, no two of them the same."""
    found = names_of(names, "class_names", count, path, exactly=False)
    if len(set(found)) < len(found):
        twice = next(each for each, times in Counter(found).items() if times > 1)
        raise FeatureFileError(f"{path} is damaged: two of its classes are called {twice!r}; extract again")
    return found


def splits_of(content: dict[str, Any], rows: int, path: Path) -> list[str] | None:
    """train, valid or test for each row, if the file has them; "None" for a row without."""
    found = optional_names(content, "splits", rows, path)
    strangers = set(found or ()) - {"train", "valid", "test", "None"}
    if strangers:
        raise FeatureFileError(
            f"{path} is damaged: a clip's split is {min(strangers)!r}, not train, valid or test; extract again"
        )
    return found


def folds_of(folds: Any, rows: int, path: Path) -> torch.Tensor:
    """(N,) int64."""
    if not torch.is_tensor(folds) or folds.ndim != 1 or not _are_whole(folds):
        raise FeatureFileError(f"{path} is damaged: folds are not a 1-D tensor of whole numbers; extract again")
    if len(folds) != rows:
        raise uneven(path, rows, len(folds), "folds")
    return folds.to(torch.int64)


def labels_of(labels: Any, path: Path) -> torch.Tensor:
    """(N,) int64, none negative, or all -1."""
    try:
        values = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FeatureFileError(f"{path}: 'labels' are not numbers; extract the features again") from error
    is_well_formed = values.ndim == 1 and _are_whole(values)
    if not is_well_formed or (bool((values < 0).any()) and not bool((values == -1).all())):
        raise FeatureFileError(f"{path}: 'labels' must be one non-negative integer per row; extract the features again")
    return values.to(torch.int64)


def _are_whole(values: torch.Tensor) -> bool:
    return not values.is_floating_point() and not values.is_complex()


def read_content(path: Path) -> dict[str, Any]:
    """The dict that the file holds; nothing in it is run."""
    if not path.exists():
        raise FeatureFileError(
            f"{path} not found; run the task's extract_*.py first, or give another file with --features"
        )
    if not path.is_file():
        raise FeatureFileError(f"{path} is a folder, not a feature file")
    try:
        content = load_torch(path)
    except UnsafeFileError as error:
        raise FeatureFileError(f"{path} holds Python objects that would run code when opened; refused") from error
    except DamagedFileError as error:
        raise FeatureFileError(f"{path} is damaged or not a feature file ({error}); extract again") from error
    if not isinstance(content, dict):
        raise FeatureFileError(f"{path} is not a feature file: it holds a {type(content).__name__}, not a dict")
    return content
