"""Fitting: compiled steps equal plain torch, a head is the same beside any others, and test rows change nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, TensorDataset

from common.arrays import Array
from common.datasets import Prepared
from common.evaluation.splits import make_splits
from common.features import FeatureSet
from common.heads import (
    HEADS,
    FitError,
    FittedHead,
    HeadKind,
    Job,
    Recipe,
    Split,
    fit_chosen,
    fit_heads,
    fit_scaler,
    new_head,
    scalers,
)
from common.heads import jobs as jobs_module
from common.heads.fit import _Fitting
from common.heads.jobs import Batches, generator, new_rows
from common.heads.plain import PlainHead
from common.heads.scalers import SHRINKAGES
from common.heads.steps import CompiledHead
from tests.support.heads import CPU, SIZE, on_one_thread, small_features
from tests.support.samples import made_up_features

PAPER = Recipe(epochs=3, batch_size=8, learning_rate=1e-3, hidden_dim=32)
TUNED = Recipe(
    epochs=3,
    batch_size=16,
    learning_rate=1e-3,
    hidden_dim=32,
    scaler="whiten",
    shrinkage=0.1,
    is_unit_length=True,
    weight_decay=0.5,
    is_cosine=True,
    input_dropout=0.1,
    dropout=0.3,
    label_smoothing=0.2,
)
BY_BLAS = replace(TUNED, batch_size=32)  # batches that are large enough for BLAS
SEED = 42
ROWS = np.arange(72)  # of small_features()

all_kinds = pytest.mark.parametrize("kind", HEADS)
all_recipes = pytest.mark.parametrize("recipe", [PAPER, TUNED, BY_BLAS], ids=["paper", "tuned", "blas"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """What heads are compared with is computed on a single thread; `fit_heads` chooses its number."""
    with on_one_thread():
        yield


@pytest.fixture
def features() -> FeatureSet:
    """72 clips of 4 classes in 3 folds."""
    return small_features()


def fit(
    kind: HeadKind,
    features: FeatureSet,
    splits: Sequence[Split],
    seed: int = SEED,
    recipe: Recipe = PAPER,
    **changes: Any,
) -> list[FittedHead]:
    """One head per split; `changes` are of the recipe."""
    jobs = [Job(split, seed, shrinkage=recipe.shrinkage) for split in splits]
    return fit_heads(kind, features, jobs, replace(recipe, **changes), CPU)


def folds_of(features: FeatureSet) -> list[Split]:
    """The official folds as splits."""
    return make_splits(Prepared(features))[0]


def uneven_splits() -> list[Split]:
    """Training sides of 9, 72 and 50 rows: different numbers of batches, and last batches of 1, 8 and 2."""
    return [Split(name, ROWS[:size], ROWS[size:]) for name, size in (("small", 9), ("whole", 72), ("middle", 50))]


def weights(head: FittedHead) -> torch.Tensor:
    """All of a head's numbers."""
    return torch.cat([parameter.flatten() for parameter in head.module.parameters()])


@all_recipes
@all_kinds
def test_compiled_steps_equal_plain_torch(
    kind: HeadKind, recipe: Recipe, features: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with dropout: both are given the same random numbers."""
    splits = uneven_splits()
    compiled = fit(kind, features, splits, recipe=recipe)
    monkeypatch.setattr(
        "common.heads.fit.CompiledHead", lambda module, recipe, n_steps: PlainHead(module, recipe, n_steps, CPU)
    )
    for head, expected in zip(compiled, fit(kind, features, splits, recipe=recipe), strict=True):
        assert (weights(head) - weights(expected)).norm() < 1e-5 * weights(expected).norm()
        assert head.curves.train_loss == pytest.approx(expected.curves.train_loss, rel=1e-5)
        assert head.epoch == expected.epoch


@all_kinds
def test_paper_steps_equal_a_data_loader_and_adam(kind: HeadKind, features: FeatureSet) -> None:
    """DataLoader, module, cross-entropy and torch.optim.Adam, on the same order of clips."""
    for split in uneven_splits():
        (fitted,) = fit(kind, features, [split])
        train = features.features[split.train].double().numpy()
        mean, std = train.mean(axis=0), train.std(axis=0)
        scaled = torch.from_numpy((train - mean) / std).float()
        torch.manual_seed(SEED)
        module = new_head(kind, SIZE, 4, PAPER.hidden_dim)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        orders = generator(SEED, split.name)
        for _ in range(PAPER.epochs):
            order = torch.randperm(len(split.train), generator=orders)
            data = TensorDataset(scaled[order], features.labels[split.train][order])
            for batch, labels in DataLoader(data, batch_size=8):
                optimizer.zero_grad()
                F.cross_entropy(module(batch), labels).backward()
                optimizer.step()
        expected = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
        # Not weight by weight: Adam turns the rounding of a gradient of 1e-9 into a step of 1e-5.
        assert (weights(fitted) - expected).norm() < 1e-5 * expected.norm()
        test = torch.from_numpy((features.features[split.test].double().numpy() - mean) / std).float()
        assert torch.allclose(fitted.test_logits, module(test), atol=1e-4)


@all_kinds
def test_the_same_seed_gives_the_same_numbers(kind: HeadKind, features: FeatureSet) -> None:
    splits = folds_of(features)
    first, again = fit(kind, features, splits), fit(kind, features, splits)
    other = fit(kind, features, splits, seed=43)
    for head, same, different in zip(first, again, other, strict=True):
        assert torch.equal(head.test_logits, same.test_logits)
        assert not torch.equal(head.test_logits, different.test_logits)


def with_garbage(features: FeatureSet, rows: Array, scale: float) -> FeatureSet:
    """Large noise in place of some rows' features, and other labels."""
    values, labels = features.features.clone(), features.labels.clone()
    values[rows] = scale * torch.from_numpy(np.random.default_rng(0).standard_normal((len(rows), SIZE))).float()
    labels[rows] = labels[rows].roll(5)
    assert not torch.equal(labels, features.labels)
    return replace(features, features=values, labels=labels)


@all_recipes
@all_kinds
def test_test_rows_change_no_fitted_number(kind: HeadKind, recipe: Recipe, features: FeatureSet) -> None:
    """Neither the scaler nor the head sees them: garbage in their place leaves every weight as it was."""
    split = Split("one", ROWS[:50], ROWS[50:])
    (clean,) = fit(kind, features, [split], recipe=recipe)
    (dirty,) = fit(kind, with_garbage(features, ROWS[50:], 1e6), [split], recipe=recipe)
    assert torch.equal(weights(clean), weights(dirty))
    assert np.array_equal(clean.scaler.mean, dirty.scaler.mean)
    assert np.array_equal(clean.scaler.scale, dirty.scaler.scale)
    assert clean.curves.train_loss == dirty.curves.train_loss
    assert not torch.equal(clean.test_logits, dirty.test_logits)


@all_kinds
def test_the_order_of_test_rows_does_not_matter(kind: HeadKind, features: FeatureSet) -> None:
    shuffled = np.random.default_rng(0).permutation(ROWS[50:])
    (straight,) = fit(kind, features, [Split("one", ROWS[:50], ROWS[50:])])
    (permuted,) = fit(kind, features, [Split("one", ROWS[:50], shuffled)])
    assert torch.equal(weights(straight), weights(permuted))
    assert torch.allclose(straight.test_logits[shuffled - 50], permuted.test_logits, atol=1e-6)


@all_kinds
def test_heads_learn(kind: HeadKind) -> None:
    features = made_up_features(per_fold=20, size=384)
    split = folds_of(features)[0]
    (head,) = fit(kind, features, [split], epochs=20)
    assert (head.test_logits.argmax(dim=1) == features.labels[split.test]).float().mean() > 0.8
    assert head.curves.train_loss[-1] < 0.5 * head.curves.train_loss[0]


def test_a_constant_feature_is_no_division_by_zero(features: FeatureSet) -> None:
    features.features[:, 3] = 7.0
    heads = fit("linear", features, folds_of(features))
    assert len(heads) == 3
    assert all(torch.isfinite(head.test_logits).all() for head in heads)


@pytest.mark.gpu
@all_recipes
@all_kinds
def test_gpu_equals_cpu(kind: HeadKind, recipe: Recipe, features: FeatureSet) -> None:
    splits = uneven_splits()
    jobs = [Job(split, SEED, shrinkage=recipe.shrinkage) for split in splits]
    on_gpu = fit_heads(kind, features, jobs, replace(recipe, epochs=4), torch.device("cuda"))
    for head, same in zip(fit(kind, features, splits, recipe=recipe, epochs=4), on_gpu, strict=True):
        assert torch.allclose(weights(head), weights(same), atol=1e-4)


@all_kinds
def test_the_epoch_is_chosen_on_validation_rows(kind: HeadKind, features: FeatureSet) -> None:
    """The kept head equals the last of a fit with as many epochs, and test rows decide nothing."""
    features.labels[50:60] = features.labels[50:60].flip(0)  # so that validation does not only rise
    split = Split("one", ROWS[:50], ROWS[60:], ROWS[50:60])
    (chosen,) = fit(kind, features, [split], epochs=8)
    accuracy = chosen.curves.valid
    assert len(accuracy) == 8
    assert chosen.epoch == 1 + accuracy.index(max(accuracy))
    assert chosen.valid_score == max(accuracy)
    (shorter,) = fit(kind, features, [replace(split, valid=ROWS[:0])], epochs=chosen.epoch)
    assert shorter.epoch == chosen.epoch
    assert torch.allclose(weights(chosen), weights(shorter), atol=1e-6)
    garbage = features.features.clone()
    garbage[60:] = 1e6
    (dirty,) = fit(kind, replace(features, features=garbage), [split], epochs=8)
    assert dirty.epoch == chosen.epoch
    assert torch.equal(weights(dirty), weights(chosen))


@all_kinds
def test_tuned_steps_equal_torch_with_its_own_schedule(kind: HeadKind, features: FeatureSet) -> None:
    """Decay on weights alone, the cosine, smoothed labels: as torch does them (without dropout, which is random)."""
    recipe = replace(TUNED, input_dropout=0.0, dropout=0.0)
    split = uneven_splits()[1]
    (fitted,) = fit(kind, features, [split], recipe=recipe)
    raw = features.features.numpy()
    scaler = fit_scaler("whiten", raw[split.train], 0.1, is_unit_length=True)
    scaled = torch.from_numpy(scaler(raw))
    torch.manual_seed(SEED)
    module = new_head(kind, SIZE, 4, recipe.hidden_dim)
    groups = [
        {"params": [p for p in module.parameters() if p.ndim == 2], "weight_decay": 0.5},
        {"params": [p for p in module.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.epochs * 5)  # 72 rows in 5 batches
    orders = generator(SEED, split.name)
    for _ in range(recipe.epochs):
        order = torch.from_numpy(split.train)[torch.randperm(len(split.train), generator=orders)]
        for rows in order.split(recipe.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(module(scaled[rows]), features.labels[rows], label_smoothing=0.2).backward()
            optimizer.step()
            schedule.step()
    expected = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    assert (weights(fitted) - expected).norm() < 1e-5 * expected.norm()


VALIDATED = Split("one", ROWS[:40], ROWS[56:], ROWS[40:56])
JOB = Job(VALIDATED, SEED)


@all_kinds
def test_after_the_choice_the_head_is_fitted_on_validation_rows_too(kind: HeadKind, features: FeatureSet) -> None:
    recipe = replace(PAPER, epochs=6)
    (chosen,) = fit_chosen(kind, features, [JOB], recipe, CPU)
    assert chosen.final.epoch == chosen.choosing.epoch
    assert chosen.final.job.split.train.tolist() == list(range(56))
    assert chosen.choosing.job.split.train.tolist() == list(range(40))
    whole = replace(VALIDATED, train=ROWS[:56], valid=ROWS[:0])
    # Constant steps: as many epochs as were chosen, no more, give the same head.
    (alone,) = fit(kind, features, [whole], epochs=chosen.choosing.epoch)
    assert torch.allclose(weights(chosen.final), weights(alone), atol=1e-6)
    assert np.allclose(chosen.final.scaler.mean, features.features[:56].double().mean(dim=0))
    (kept,) = fit_chosen(kind, features, [JOB], recipe, CPU, refit=False)
    assert kept.choosing is kept.final
    assert torch.equal(weights(kept.final), weights(chosen.choosing))


@all_kinds
def test_nothing_is_chosen_by_test_rows(kind: HeadKind, features: FeatureSet) -> None:
    """Epoch, strength of whitening and every weight stay as they are, whatever is in the test rows."""
    dirty_features = with_garbage(features, ROWS[56:], 1e3)
    for recipe in (replace(TUNED, shrinkage=None, epochs=4), replace(PAPER, scaler="whiten", epochs=4)):
        (clean,) = fit_chosen(kind, features, [JOB], recipe, CPU)
        (dirty,) = fit_chosen(kind, dirty_features, [JOB], recipe, CPU)
        assert clean.final.job.shrinkage in SHRINKAGES
        assert (dirty.final.epoch, dirty.final.job.shrinkage) == (clean.final.epoch, clean.final.job.shrinkage)
        assert torch.equal(weights(dirty.final), weights(clean.final))
    # The last recipe chooses the epoch of the highest validation accuracy.
    assert clean.choosing.valid_score == max(clean.choosing.curves.valid)


def test_the_strength_of_whitening_is_that_of_the_best_validation_accuracy(features: FeatureSet) -> None:
    recipe = replace(PAPER, scaler="whiten", epochs=4)
    (chosen,) = fit_chosen("linear", features, [JOB], recipe, CPU)
    tried = {}
    for shrinkage in SHRINKAGES:
        (head,) = fit_heads("linear", features, [replace(JOB, shrinkage=shrinkage)], recipe, CPU)
        tried[shrinkage] = max(head.curves.valid)
    assert len(set(tried.values())) > 1  # the choice matters
    assert chosen.choosing.valid_score == max(tried.values())
    # The first of equals.
    assert chosen.choosing.job.shrinkage == max(tried, key=tried.__getitem__)


@all_recipes
@all_kinds
@pytest.mark.parametrize("width", [SIZE - 5, SIZE])
def test_cores_and_other_seeds_change_no_bit(
    kind: HeadKind, recipe: Recipe, width: int, features: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command, features and seed give the same predictions on any number of cores, beside any other seeds."""
    features = replace(features, features=features.features[:, :width])
    splits = uneven_splits()
    alone = [fit_heads(kind, features, [Job(split, SEED, None, 0.1)], recipe, CPU)[0] for split in splits]
    threads = torch.get_num_threads()
    for cores in (1, 2, 16):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        torch.set_num_threads(cores)
        with threadpool_limits(cores):
            jobs = [Job(split, seed, None, 0.1) for seed in (7, SEED, 9) for split in splits]
            fitted = fit_heads(kind, features, jobs, recipe, CPU)
        torch.set_num_threads(threads)
        for head, same in zip(alone, fitted[len(splits) : 2 * len(splits)], strict=True):
            assert torch.equal(head.test_logits, same.test_logits)
            assert torch.equal(weights(head), weights(same))


def test_a_head_that_diverges_is_an_error(features: FeatureSet) -> None:
    huge = replace(features, features=1e37 * features.features)
    with pytest.raises(FitError, match=r"linear head diverged \(fold 1, seed 42\): lower --learning-rate"):
        fit("linear", huge, folds_of(features), scaler="none", learning_rate=1e3)


def test_the_scaler_is_of_the_training_rows(features: FeatureSet) -> None:
    split = uneven_splits()[0]
    (fitted,) = fit("linear", features, [split])
    train = features.features[split.train].double()
    assert torch.allclose(torch.from_numpy(fitted.scaler.mean), train.mean(dim=0))
    assert torch.allclose(torch.from_numpy(fitted.scaler.scale), train.std(dim=0, correction=0))


@pytest.mark.parametrize("batch", [8, 64], ids=["fused", "blas"])
@all_kinds
def test_compiled_steps_are_those_of_float64(kind: HeadKind, batch: int) -> None:
    """At the real size, over the first steps, for which no ReLU turns on a rounding."""
    size, n_classes, n_steps = 384, 50, 10
    rng = np.random.default_rng(4)
    values = torch.from_numpy(rng.standard_normal((batch * n_steps, size)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, n_classes, batch * n_steps))
    torch.manual_seed(SEED)
    module = new_head(kind, size, n_classes, 256)
    compiled = CompiledHead(module, PAPER, n_steps)
    order = torch.arange(batch * n_steps).view(-1, batch)
    shares = torch.full((n_steps, batch), 1 / batch)
    rows = new_rows(len(values), size)
    rows[:, :size] = values
    total = compiled.epoch(torch.from_numpy(rows), Batches(order, labels[order], shares, torch.zeros(n_steps, 0)))
    module = module.double()
    optimizer = torch.optim.Adam(module.parameters(), lr=PAPER.learning_rate)
    expected_total = 0.0
    for rows in order:
        optimizer.zero_grad()
        loss = F.cross_entropy(module(values[rows].double()), labels[rows])
        loss.backward()
        optimizer.step()
        expected_total += batch * loss.item()
    assert total == pytest.approx(expected_total, rel=1e-6)
    for name, value in compiled.state().items():
        expected = module.state_dict()[name]
        assert (value - expected).norm() < 3e-6 * expected.norm()
    assert torch.allclose(compiled.logits(values), module(values.double()).float(), atol=1e-4)


def test_ctrl_c_ends_the_other_threads(features: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: _Fitting) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_Fitting, "epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit("linear", features, folds_of(features), epochs=10**6)


def test_different_seeds_give_different_heads(features: FeatureSet) -> None:
    (split, *_) = folds_of(features)
    first, second = fit_heads("linear", features, [Job(split, 1), Job(split, 2)], PAPER, CPU)
    assert not torch.equal(weights(first), weights(second))


@pytest.mark.parametrize("kind", ["standard", "whiten"])
def test_many_rows_are_scaled_in_blocks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of millions of clips are, to rounding."""
    raw = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    rows = np.arange(0, 50, 2)
    whole = scalers.fit_scaler(kind, raw[rows], 0.1)
    monkeypatch.setattr(scalers, "MOST_AT_ONCE", 10)
    monkeypatch.setattr(scalers, "BLOCK", 4)
    blocks = scalers.fit_scaler(kind, raw, 0.1, rows=rows)
    assert np.allclose(np.abs(blocks(raw)), np.abs(whole(raw)), rtol=1e-5, atol=1e-6)


def test_rows_in_a_temporary_file_give_the_same_head(monkeypatch: pytest.MonkeyPatch) -> None:
    features = small_features()
    rows = np.arange(len(features))
    job = Job(Split("all", rows[::2], rows[1::2]), seed=SEED)
    recipe = replace(PAPER, epochs=2)
    (in_memory,) = fit_heads("linear", features, [job], recipe, CPU)
    monkeypatch.setattr(jobs_module, "MOST_IN_MEMORY", 0)
    (mapped,) = fit_heads("linear", features, [job], recipe, CPU)
    assert torch.equal(mapped.test_logits, in_memory.test_logits)
