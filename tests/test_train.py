"""Fitting: the stack equals plain torch and each head alone; nothing of the test rows is seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import made_up_features
from torch.utils.data import DataLoader, TensorDataset

from common.features import FeatureSet
from common.heads import HEADS
from common.splits import Split, make_splits
from common.train import FitError, FittedHead, _generator, check_fittable, fit_heads

SETTINGS = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "hidden_dim": 32, "seed": 42}
CPU = torch.device("cpu")


def fit(kind: str, features: FeatureSet, splits: list[Split], **changes) -> list[FittedHead]:
    return fit_heads(kind, features, splits, device=CPU, **{**SETTINGS, **changes})


def uneven_splits(features: FeatureSet) -> list[Split]:
    """Training sides of 72, 50 and 9 rows: different numbers of batches, and last batches of 8, 2 and 1."""
    rows = np.arange(len(features))
    return [Split(name, rows[:size], rows[size:]) for name, size in (("small", 9), ("whole", 72), ("middle", 50))]


def weights(head: FittedHead) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in head.module.parameters()])


@pytest.mark.parametrize("kind", HEADS)
def test_a_stack_learns_what_each_head_learns_alone(kind: str) -> None:
    features = made_up_features()
    splits = uneven_splits(features)
    for split, together in zip(splits, fit(kind, features, splits), strict=True):
        (alone,) = fit(kind, features, [split])
        assert together.split is split
        assert torch.allclose(weights(together), weights(alone), atol=1e-6)
        assert together.train_loss == pytest.approx(alone.train_loss, rel=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_equals_plain_torch(kind: str) -> None:
    """DataLoader, module, cross-entropy and torch.optim.Adam, on the same order of clips."""
    features = made_up_features()
    for split in uneven_splits(features):
        (fitted,) = fit(kind, features, [split])
        train = features.features[split.train].double().numpy()
        mean, std = train.mean(axis=0), train.std(axis=0)
        scaled = torch.from_numpy((train - mean) / std).float()
        torch.manual_seed(SETTINGS["seed"])
        module = HEADS[kind](384, 4, SETTINGS["hidden_dim"])
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        generator = _generator(SETTINGS["seed"], split.name)
        for _ in range(SETTINGS["epochs"]):
            order = torch.randperm(len(split.train), generator=generator)
            data = TensorDataset(scaled[order], features.labels[split.train][order])
            for batch, labels in DataLoader(data, batch_size=8):
                optimizer.zero_grad()
                F.cross_entropy(module(batch), labels).backward()
                optimizer.step()
        expected = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
        # Not each by each: Adam turns the rounding of a gradient of 1e-9 into a step of 1e-5.
        assert (weights(fitted) - expected).norm() < 1e-5 * expected.norm()
        test = torch.from_numpy((features.features[split.test].double().numpy() - mean) / std).float()
        assert torch.allclose(fitted.test_logits, module(test), atol=1e-4)


@pytest.mark.parametrize("kind", HEADS)
def test_the_same_seed_gives_the_same_numbers(kind: str) -> None:
    features = made_up_features()
    splits, _ = make_splits(features, 0.2, 42)
    first, again = fit(kind, features, splits), fit(kind, features, splits)
    other = fit(kind, features, splits, seed=43)
    for one, same, different in zip(first, again, other, strict=True):
        assert torch.equal(one.test_logits, same.test_logits)
        assert not torch.equal(one.test_logits, different.test_logits)


@pytest.mark.parametrize("kind", HEADS)
def test_test_rows_change_no_fitted_number(kind: str) -> None:
    """Neither the scaler nor the head sees them: garbage in their place leaves every weight as it was."""
    features = made_up_features()
    rows = np.arange(len(features))
    split = Split("one", rows[:50], rows[50:])
    (clean,) = fit(kind, features, [split])
    garbage = features.features.clone()
    garbage[50:] = 1e6 * torch.randn(len(rows) - 50, 384)
    labels = features.labels.clone()
    labels[50:] = labels[50:].flip(0)
    (dirty,) = fit(kind, replace(features, features=garbage, labels=labels), [split])
    assert torch.equal(weights(clean), weights(dirty))
    assert np.array_equal(clean.mean, dirty.mean)
    assert np.array_equal(clean.scale, dirty.scale)
    assert clean.train_loss == dirty.train_loss


@pytest.mark.parametrize("kind", HEADS)
def test_the_order_of_test_rows_does_not_matter(kind: str) -> None:
    features = made_up_features()
    rows = np.arange(len(features))
    shuffled = np.random.default_rng(0).permutation(rows[50:])
    (straight,) = fit(kind, features, [Split("one", rows[:50], rows[50:])])
    (permuted,) = fit(kind, features, [Split("one", rows[:50], shuffled)])
    assert torch.equal(weights(straight), weights(permuted))
    assert torch.allclose(straight.test_logits[shuffled - 50], permuted.test_logits, atol=1e-6)


def test_the_scaler_is_of_the_training_rows() -> None:
    features = made_up_features()
    split = uneven_splits(features)[0]
    (fitted,) = fit("linear", features, [split])
    train = features.features[split.train].double()
    assert torch.allclose(torch.from_numpy(fitted.mean), train.mean(dim=0))
    assert torch.allclose(torch.from_numpy(fitted.scale), train.std(dim=0, correction=0))


@pytest.mark.parametrize("kind", HEADS)
def test_heads_learn(kind: str) -> None:
    features = made_up_features(per_fold=20)
    splits, _ = make_splits(features, 0.2, 42)
    for head in fit(kind, features, splits, epochs=20):
        truth = features.labels[head.split.test]
        assert (head.test_logits.argmax(dim=1) == truth).float().mean() > 0.8
        assert head.train_loss[-1] < 0.5 * head.train_loss[0]


def test_a_constant_feature_is_no_division_by_zero() -> None:
    features = made_up_features()
    features.features[:, 3] = 7.0
    splits, _ = make_splits(features, 0.2, 42)
    assert all(torch.isfinite(head.test_logits).all() for head in fit("linear", features, splits))


def test_refusals() -> None:
    good = made_up_features()
    check_fittable(good, "f.pt")
    with pytest.raises(FitError, match=r"f\.pt: all 72 labels are 'class 0'"):
        check_fittable(replace(good, labels=torch.zeros_like(good.labels)), "f.pt")
    spoiled = good.features.clone()
    spoiled[[3, 9], 0] = torch.tensor([torch.nan, torch.inf])
    with pytest.raises(FitError, match=r"2 rows hold NaN or infinite features \(first: clip3\.wav\)"):
        check_fittable(replace(good, features=spoiled), "f.pt")
    few = FeatureSet(torch.randn(3, 4), torch.tensor([0, 1, 2]), list("abcd"), list("xyz"))
    with pytest.raises(FitError, match="3 clips are fewer than its 4 classes"):
        check_fittable(few, "f.pt")
    with pytest.raises(FitError, match="no labels"):
        check_fittable(replace(good, labels=torch.full((72,), -1)), "f.pt")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", HEADS)
def test_gpu_equals_cpu(kind: str) -> None:
    features = made_up_features()
    splits, _ = make_splits(features, 0.2, 42)
    on_gpu = fit_heads(kind, features, splits, device=torch.device("cuda"), **SETTINGS)
    for one, other in zip(fit(kind, features, splits), on_gpu, strict=True):
        assert torch.allclose(weights(one), weights(other), atol=1e-4)


@pytest.mark.parametrize("kind", HEADS)
def test_the_epoch_is_chosen_on_validation_rows(kind: str) -> None:
    """The kept head is the one that a run of just so many epochs ends with, and test rows have no say."""
    features = made_up_features()
    features.labels[50:60] = features.labels[50:60].flip(0)  # so that validation does not only rise
    rows = np.arange(len(features))
    split = Split("one", rows[:50], rows[60:], rows[50:60])
    (chosen,) = fit(kind, features, [split], epochs=8)
    assert len(chosen.valid_accuracy) == 8
    assert chosen.epoch == 1 + chosen.valid_accuracy.index(max(chosen.valid_accuracy))
    (shorter,) = fit(kind, features, [replace(split, valid=rows[:0])], epochs=chosen.epoch)
    assert shorter.epoch == chosen.epoch
    assert torch.allclose(weights(chosen), weights(shorter), atol=1e-6)
    garbage = features.features.clone()
    garbage[60:] = 1e6
    (dirty,) = fit(kind, replace(features, features=garbage), [split], epochs=8)
    assert dirty.epoch == chosen.epoch
    assert torch.equal(weights(dirty), weights(chosen))


def test_heads_with_and_without_validation_share_a_stack() -> None:
    features = made_up_features()
    rows = np.arange(len(features))
    splits = [Split("plain", rows[:40], rows[60:]), Split("validated", rows[:50], rows[60:], rows[50:60])]
    for split, together in zip(splits, fit("linear", features, splits), strict=True):
        (alone,) = fit("linear", features, [split])
        assert torch.allclose(weights(together), weights(alone), atol=1e-6)
        assert together.epoch == alone.epoch
