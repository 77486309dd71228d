"""The type of NumPy arrays in annotations; docstrings give shapes and element types."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
