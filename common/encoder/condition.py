"""FiLM's condition: a 512-d CLAP embedding of a text or a sound; none, zeros, or read from a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.arrays import Array
from common.errors import UserError
from common.files import load_torch

CONDITION_SIZE = 512


class ConditionError(UserError):
    """The condition cannot be read or has another size."""


def read_condition(condition: str | Path | Array | torch.Tensor | None) -> tuple[torch.Tensor | None, str]:
    """The 512-d float64 condition (None for no FiLM) and its name in the record of a run."""
    if condition is None or (isinstance(condition, str) and condition == "none"):
        return None, "none"
    if isinstance(condition, str) and condition == "zero":
        return torch.zeros(CONDITION_SIZE, dtype=torch.float64), "zero"
    what = "condition"
    if isinstance(condition, (str, Path)):
        what = f"condition {condition}"
        condition = _read(Path(condition), what)
    if not isinstance(condition, (np.ndarray, torch.Tensor)):
        raise ConditionError(
            f"{what} holds a {type(condition).__name__}; it must be one array of {CONDITION_SIZE} numbers"
        )
    if not (condition.is_floating_point() if torch.is_tensor(condition) else condition.dtype.kind == "f"):
        raise ConditionError(f"{what} holds numbers of type {condition.dtype}; it must hold floating-point ones")
    if condition.squeeze().shape != (CONDITION_SIZE,):
        raise ConditionError(f"{what} has shape {tuple(condition.shape)}; it must hold {CONDITION_SIZE} numbers")
    if isinstance(condition, np.ndarray):
        condition = np.array(condition, dtype=np.float64)
    values = torch.as_tensor(condition).detach().to("cpu", torch.float64).flatten()
    if not torch.isfinite(values).all():
        raise ConditionError(f"{what} holds NaN or infinite values")
    return values, "sha256:" + hashlib.sha256(values.to(torch.float32).numpy().tobytes()).hexdigest()


def _read(path: Path, what: str) -> Any:
    """What a file holds; ConditionError if it is missing or damaged."""
    if not path.is_file():
        raise ConditionError(f"{what} not found; give none, zero, or a .npy or .pt file of {CONDITION_SIZE} numbers")
    try:
        # Mapped: a header may claim any number of numbers, and only 512 are wanted.
        return np.load(path, mmap_mode="r", allow_pickle=False) if path.suffix == ".npy" else load_torch(path)
    except Exception as error:  # NumPy and torch raise many kinds
        cause = " ".join(str(error).split())[:120]
        raise ConditionError(f"{what} cannot be read as .npy or .pt: {cause}") from error
