"""The two heads that are trained on frozen embeddings."""

from __future__ import annotations

from typing import Literal

from torch import nn

HeadKind = Literal["linear", "three_layer"]


class LinearClassifier(nn.Sequential):
    """D -> C: the linear probe."""

    def __init__(self, feature_dim: int, n_classes: int, hidden_dim: int = 256) -> None:
        del hidden_dim  # all heads have the same signature
        super().__init__(nn.Linear(feature_dim, n_classes))


class ThreeLayerClassifier(nn.Sequential):
    """D -> 256 -> ReLU -> 256 -> ReLU -> C."""

    def __init__(self, feature_dim: int, n_classes: int, hidden_dim: int = 256) -> None:
        super().__init__(
            nn.Linear(feature_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, n_classes),
        )


HEADS: dict[HeadKind, type[LinearClassifier] | type[ThreeLayerClassifier]] = {
    "linear": LinearClassifier,
    "three_layer": ThreeLayerClassifier,
}


def head_title(kind: str) -> str:
    """A head's name for readers, such as ``three-layer``."""
    return kind.replace("_", "-")
