"""Heads: their layers, and the file from which a trained one comes back whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import made_up_features
from torch import nn

from common.evaluation.splits import make_splits
from common.heads import HeadFileError, LinearClassifier, ThreeLayerClassifier, TrainedHead
from common.heads.batched_fit import Job
from common.heads.recipes import Recipe
from common.heads.training import fit_heads


def test_layers() -> None:
    assert [type(layer) for layer in LinearClassifier(384, 50)] == [nn.Linear]
    layers = list(ThreeLayerClassifier(384, 50))
    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    sizes = [(layer.in_features, layer.out_features) for layer in layers[::2]]
    assert sizes == [(384, 256), (256, 256), (256, 50)]


@pytest.mark.parametrize("scaler", ["standard", "whiten", "none"])
@pytest.mark.parametrize("kind", ["linear", "three_layer"])
def test_a_saved_head_predicts_as_before(kind: str, scaler: str, tmp_path: Path) -> None:
    features = made_up_features()
    splits, _ = make_splits(features, 0.2, 42)
    recipe = Recipe(
        epochs=2, batch_size=8, learning_rate=1e-3, hidden_dim=16, scaler=scaler, is_unit_length=scaler == "whiten"
    )
    job = Job(splits[0], seed=0, shrinkage=0.1)
    (fitted,) = fit_heads(kind, features, [job], recipe, torch.device("cpu"))
    head = TrainedHead(kind, fitted.module, fitted.scaler, features.class_names, {"checkpoint": "random:0"})
    head.save(tmp_path / "head.pt")
    torch.load(tmp_path / "head.pt", weights_only=True)
    with torch.no_grad():  # what was saved is a copy
        fitted.module[0].weight.zero_()
    loaded = TrainedHead.load(tmp_path / "head.pt")
    logits = loaded.logits(features.features[splits[0].test])
    assert torch.allclose(logits, fitted.test_logits, atol=1e-5)
    assert loaded.predict(features.features[:2])[0] in features.class_names
    assert (loaded.class_names, loaded.encoder, loaded.kind) == (features.class_names, {"checkpoint": "random:0"}, kind)
    assert np.array_equal(loaded.scaler.mean, fitted.scaler.mean)


def test_files_that_hold_no_head(tmp_path: Path) -> None:
    made_up_features().save(tmp_path / "features.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name in ("features.pt", "text.pt", "missing.pt"):
        with pytest.raises(HeadFileError, match=name):
            TrainedHead.load(tmp_path / name)
