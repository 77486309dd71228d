"""Heads: their layers, and the file that keeps a trained head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.config import ScalerName
from common.datasets import Prepared
from common.encoder import LogMelStatistics
from common.evaluation.splits import make_splits
from common.heads import (
    HEADS,
    SCALERS,
    HeadFileError,
    HeadKind,
    Job,
    OtherEncoderError,
    Recipe,
    TrainedHead,
    fit_heads,
    fit_scaler,
    new_head,
)
from tests.support.heads import CPU, SIZE, small_features
from tests.support.samples import made_up_features, noise


def test_heads_have_the_layers_of_the_paper() -> None:
    assert [type(layer) for layer in new_head("linear", 384, 50)] == [nn.Linear]
    layers = list(new_head("three_layer", 384, 50))
    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    sizes = [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)]
    assert sizes == [(384, 256), (256, 256), (256, 50)]


@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize("kind", HEADS)
def test_a_saved_head_predicts_as_before(kind: HeadKind, scaler: ScalerName, tmp_path: Path) -> None:
    features = small_features()
    splits, _ = make_splits(Prepared(features))
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
    assert torch.equal(loaded.logits(test.numpy()), logits)
    assert (loaded.class_names, loaded.encoder, loaded.kind) == (features.class_names, {"checkpoint": "random:0"}, kind)
    assert np.array_equal(loaded.scaler.mean, fitted.scaler.mean)


def test_files_without_a_head_are_refused(tmp_path: Path) -> None:
    made_up_features(size=SIZE).save(tmp_path / "features.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name in ("features.pt", "text.pt", "missing.pt"):
        with pytest.raises(HeadFileError, match=name):
            TrainedHead.load(tmp_path / name)


def head_of(encoder: LogMelStatistics, **changes: object) -> TrainedHead:
    """A head of random weights on the encoder's default output."""
    info = encoder.info
    made = {
        "kind": info.kind.value,
        "encoder": info.encoder,
        "code": info.code,
        "padding": info.padding,
        "checkpoint": info.checkpoint,
        "condition": info.condition,
        "precision": info.precision,
        "layer": encoder.default_output.layer,
        "pool": encoder.default_output.pool,
    }
    torch.manual_seed(0)
    module, scaler = new_head("linear", 256, 3), fit_scaler("standard", np.random.default_rng(0).random((9, 256)))
    return TrainedHead("linear", module, scaler, ["a", "b", "c"], {**made, **changes})


def test_a_head_embeds_waveforms_with_its_own_encoder() -> None:
    encoder, waveforms = LogMelStatistics(), [noise(0, 5000), noise(1, 40_000)]
    head = head_of(encoder)
    probabilities = head.predict_proba(encoder, waveforms)
    expected = head.logits(encoder.embed(waveforms)).softmax(dim=1)
    assert torch.equal(probabilities, expected)
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(2))
    assert head.predict(encoder, waveforms) == ["abc"[label] for label in expected.argmax(dim=1)]


@pytest.mark.parametrize(
    "change", [{"checkpoint": "random:7"}, {"condition": "zero"}, {"precision": "bf16"}, {"padding": "official"}]
)
def test_another_encoder_is_refused_with_the_difference(change: dict[str, str]) -> None:
    encoder = LogMelStatistics()
    ((key, value),) = change.items()
    with pytest.raises(OtherEncoderError, match=f"the head was trained with {key} {value}, but the encoder has"):
        head_of(encoder, **change).predict(encoder, [noise(0, 5000)])
    head = head_of(encoder)
    features = replace(small_features(), features=torch.zeros(72, 256), meta={**head.encoder, **change})
    with pytest.raises(OtherEncoderError, match=f"but the features have {value}"):
        head.predict_features(features)
    assert head.predict_features(replace(features, meta=head.encoder)).shape == (72, 3)


def test_a_head_of_an_unknown_encoder_is_refused() -> None:
    head = replace(head_of(LogMelStatistics()), encoder={})
    with pytest.raises(OtherEncoderError, match="not known which encoder made the embeddings"):
        head.predict(LogMelStatistics(), [noise(0, 5000)])


def test_a_file_that_is_not_a_head_is_explained(tmp_path: Path) -> None:
    made_up_features(size=SIZE).save(tmp_path / "features.pt")
    with pytest.raises(HeadFileError, match="it is a feature file: give the head that was trained on it"):
        TrainedHead.load(tmp_path / "features.pt")
    with pytest.raises(HeadFileError, match=r"missing.pt not found; classification writes the trained heads"):
        TrainedHead.load(tmp_path / "missing.pt")
