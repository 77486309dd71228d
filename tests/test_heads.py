"""Heads: their layers, and the file from which a trained one comes back whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import made_up_features
from heads_helpers import CPU, SIZE, small_features
from torch import nn

from common.config import ScalerName
from common.evaluation.splits import make_splits
from common.heads import (
    HEADS,
    SCALERS,
    HeadFileError,
    HeadKind,
    Job,
    LinearClassifier,
    Recipe,
    ThreeLayerClassifier,
    TrainedHead,
    fit_heads,
    fit_scaler,
)


def test_layers() -> None:
    assert [type(layer) for layer in LinearClassifier(384, 50)] == [nn.Linear]
    layers = list(ThreeLayerClassifier(384, 50))
    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    sizes = [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)]
    assert sizes == [(384, 256), (256, 256), (256, 50)]


@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize("kind", HEADS)
def test_a_saved_head_predicts_as_before(kind: HeadKind, scaler: ScalerName, tmp_path: Path) -> None:
    features = small_features()
    splits, _ = make_splits(features, 0.2, 42)
    recipe = Recipe(
        epochs=2, batch_size=8, learning_rate=1e-3, hidden_dim=16, scaler=scaler, is_unit_length=scaler == "whiten"
    )
    job = Job(splits[0], seed=0, shrinkage=0.1)
    (fitted,) = fit_heads(kind, features, [job], recipe, CPU)
    head = TrainedHead(kind, fitted.module, fitted.scaler, features.class_names, {"checkpoint": "random:0"})
    head.save(tmp_path / "head.pt")
    torch.load(tmp_path / "head.pt", weights_only=True)
    loaded = TrainedHead.load(tmp_path / "head.pt")
    test = features.features[splits[0].test]
    logits = loaded.logits(test)
    assert torch.allclose(logits, fitted.test_logits, atol=1e-5)
    assert loaded.predict(test) == [features.class_names[label] for label in fitted.test_logits.argmax(dim=1)]
    assert (loaded.class_names, loaded.encoder, loaded.kind) == (features.class_names, {"checkpoint": "random:0"}, kind)
    assert np.array_equal(loaded.scaler.mean, fitted.scaler.mean)


def test_a_head_of_the_size_of_the_encoder_is_saved_whole(tmp_path: Path) -> None:
    module = ThreeLayerClassifier(384, 50, 256)
    scaler = fit_scaler("standard", np.random.default_rng(0).standard_normal((9, 384)))
    names = [f"class {label}" for label in range(50)]
    TrainedHead("three_layer", module, scaler, names, {}).save(tmp_path / "head.pt")
    loaded = TrainedHead.load(tmp_path / "head.pt")
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], value)
    assert not loaded.module.training


def test_files_that_hold_no_head(tmp_path: Path) -> None:
    made_up_features(size=SIZE).save(tmp_path / "features.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name in ("features.pt", "text.pt", "missing.pt"):
        with pytest.raises(HeadFileError, match=name):
            TrainedHead.load(tmp_path / name)
