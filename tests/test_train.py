"""Fitting: the stack equals plain torch and each head alone; nothing of the test rows is seen."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import made_up_features
from torch.utils.data import DataLoader, TensorDataset

from common.evaluation.splits import Split, make_splits
from common.features import FeatureSet
from common.heads import HEADS
from common.heads.batched_fit import FitError, FittedHead, Job, ScaledFeatures, Stack, can_be_captured, generator
from common.heads.cuda_graph import CapturedSteps
from common.heads.recipes import Recipe
from common.heads.scalers import SHRINKAGES, fit_scaler
from common.heads.training import check_fittable, fit_chosen, fit_heads

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
CPU = torch.device("cpu")
SEED = 42


def fit(
    kind: str, features: FeatureSet, splits: list[Split], seed: int = SEED, recipe: Recipe = PAPER, **changes
) -> list[FittedHead]:
    jobs = [Job(split, seed, shrinkage=recipe.shrinkage) for split in splits]
    return fit_heads(kind, features, jobs, replace(recipe, **changes), CPU)


def uneven_splits(features: FeatureSet) -> list[Split]:
    """Training sides of 72, 50 and 9 rows: different numbers of batches, and last batches of 8, 2 and 1."""
    rows = np.arange(len(features))
    return [Split(name, rows[:size], rows[size:]) for name, size in (("small", 9), ("whole", 72), ("middle", 50))]


def one_stack(kind: str, recipe: Recipe) -> Stack:
    """Of three heads."""
    features = made_up_features()
    split = Split("one", np.arange(50), np.arange(50, 72))
    jobs = [Job(split, seed, shrinkage=recipe.shrinkage) for seed in range(3)]
    return Stack(kind, features, jobs, recipe, CPU, ScaledFeatures(features, [jobs], recipe, CPU))


def weights(head: FittedHead) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in head.module.parameters()])


@pytest.mark.parametrize("recipe", [PAPER, TUNED], ids=["paper", "tuned"])
@pytest.mark.parametrize("kind", HEADS)
def test_a_stack_learns_what_each_head_learns_alone(kind: str, recipe: Recipe, monkeypatch) -> None:
    features = made_up_features()
    splits = uneven_splits(features)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # one stack for all
    for split, together in zip(splits, fit(kind, features, splits, recipe=recipe), strict=True):
        (alone,) = fit(kind, features, [split], recipe=recipe)
        assert together.job.split is split
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
        torch.manual_seed(SEED)
        module = HEADS[kind](384, 4, PAPER.hidden_dim)
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


@pytest.mark.parametrize("recipe", [PAPER, TUNED], ids=["paper", "tuned"])
@pytest.mark.parametrize("kind", HEADS)
def test_test_rows_change_no_fitted_number(kind: str, recipe: Recipe) -> None:
    """Neither the scaler nor the head sees them: garbage in their place leaves every weight as it was."""
    features = made_up_features()
    rows = np.arange(len(features))
    split = Split("one", rows[:50], rows[50:])
    (clean,) = fit(kind, features, [split], recipe=recipe)
    garbage = features.features.clone()
    garbage[50:] = 1e6 * torch.randn(len(rows) - 50, 384)
    labels = features.labels.clone()
    labels[50:] = labels[50:].flip(0)
    (dirty,) = fit(kind, replace(features, features=garbage, labels=labels), [split], recipe=recipe)
    assert torch.equal(weights(clean), weights(dirty))
    assert np.array_equal(clean.scaler.mean, dirty.scaler.mean)
    assert np.array_equal(clean.scaler.scale, dirty.scaler.scale)
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
    assert torch.allclose(torch.from_numpy(fitted.scaler.mean), train.mean(dim=0))
    assert torch.allclose(torch.from_numpy(fitted.scaler.scale), train.std(dim=0, correction=0))


@pytest.mark.parametrize("kind", HEADS)
def test_heads_learn(kind: str) -> None:
    features = made_up_features(per_fold=20)
    splits, _ = make_splits(features, 0.2, 42)
    for head in fit(kind, features, splits, epochs=20):
        truth = features.labels[head.job.split.test]
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


@pytest.mark.parametrize("can_capture", [True, False])
@pytest.mark.parametrize("kind", HEADS)
def test_replayed_steps_equal_steps(kind: str, can_capture: bool, monkeypatch) -> None:
    """As on a GPU, but that a step that is replayed is taken again instead of read from a graph."""
    features = made_up_features()
    expected = fit(kind, features, uneven_splits(features))
    taken = []

    class Replayed(CapturedSteps):
        def _capture(self, step):
            if not can_capture:
                raise RuntimeError("operation not permitted\nmore about it")
            return SimpleNamespace(replay=lambda: (taken.append(1), self._take(step)))

    initial = Stack.__init__

    def captured(self, *arguments):
        initial(self, *arguments)
        self.captured = Replayed()

    monkeypatch.setattr(Stack, "__init__", captured)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # one stack for all, as on a GPU
    with (
        contextlib.nullcontext() if can_capture else pytest.warns(UserWarning, match="more slowly: operation not perm")
    ):
        fitted = fit(kind, features, uneven_splits(features))
    for one, other in zip(fitted, expected, strict=True):
        assert torch.equal(weights(one), weights(other))
        assert one.train_loss == other.train_loss
    assert bool(taken) == can_capture


def test_only_steps_without_new_numbers_of_the_host_are_captured() -> None:
    constant = replace(TUNED, is_cosine=False, dropout=0.0, input_dropout=0.0)
    assert can_be_captured(PAPER) and can_be_captured(constant)
    for changing in ({"is_cosine": True}, {"dropout": 0.1}, {"input_dropout": 0.1}):
        assert not can_be_captured(replace(constant, **changing))


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", [PAPER, replace(TUNED, is_cosine=False, dropout=0.0, input_dropout=0.0)])
@pytest.mark.parametrize("kind", HEADS)
def test_gpu_equals_cpu(kind: str, recipe: Recipe) -> None:
    features = made_up_features()
    splits = uneven_splits(features)
    jobs = [Job(split, SEED, shrinkage=recipe.shrinkage) for split in splits]
    on_gpu = fit_heads(kind, features, jobs, replace(recipe, epochs=4), torch.device("cuda"))
    for one, other in zip(fit(kind, features, splits, recipe=recipe, epochs=4), on_gpu, strict=True):
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


@pytest.mark.parametrize("kind", HEADS)
def test_the_tuned_steps_equal_plain_torch(kind: str) -> None:
    """Decay on weights alone, the cosine, smoothed labels: as torch does them (without dropout, which is random)."""
    features = made_up_features()
    recipe = replace(TUNED, input_dropout=0.0, dropout=0.0)
    split = uneven_splits(features)[1]
    (fitted,) = fit(kind, features, [split], recipe=recipe)
    raw = features.features.numpy()
    scaler = fit_scaler("whiten", raw[split.train], 0.1, is_unit_length=True)
    scaled = torch.from_numpy(scaler(raw))
    torch.manual_seed(SEED)
    module = HEADS[kind](384, 4, recipe.hidden_dim)
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


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    stack = one_stack("three_layer", TUNED)
    x = torch.ones(3, 16, 385)
    x[..., :-1] = 2.0
    factors = stack._drop(x, 0.3)
    assert (x[..., -1] == 1).all()  # what the bias is multiplied by
    assert torch.equal(x[..., :-1], 2 * factors)
    assert (factors == 0).float().mean() == pytest.approx(0.3, abs=0.02)
    assert torch.allclose(factors[factors != 0], torch.tensor(1 / 0.7))


@pytest.mark.parametrize("recipe", [PAPER, replace(TUNED, input_dropout=0.0)], ids=["paper", "dropout"])
def test_gradients_equal_autograd(recipe: Recipe, monkeypatch) -> None:
    """Of one batch, a part of which does not count, with whatever dropout drew."""
    stack = one_stack("three_layer", recipe)
    drawn, drop = [], Stack._drop

    def noting(self, x, probability):
        drawn.append(drop(self, x, probability))
        return drawn[-1]

    monkeypatch.setattr(Stack, "_drop", noting)
    monkeypatch.setattr(stack.optimizer, "step", lambda active: None)
    rows = torch.arange(3 * recipe.batch_size).view(3, -1)
    own = torch.ones(rows.shape, dtype=torch.bool)
    own[1, 5:] = False
    layers = [layer.clone().requires_grad_() for layer in stack.layers]
    with torch.no_grad():
        stack._step(rows, stack.labels[rows], own / own.sum(dim=1, keepdim=True), own)
    for head in range(3):
        x = stack.scaled[rows[head], :-1]
        for number, layer in enumerate(layers):
            if number:
                x = x.relu()
                x = x if drawn[number] is None else x * drawn[number][head]
            x = x @ layer[head, :-1] + layer[head, -1]
        counted = own[head]
        labels = stack.labels[rows[head]][counted]
        F.cross_entropy(x[counted], labels, label_smoothing=recipe.label_smoothing).backward()
    for gradient, layer in zip(stack.gradients, layers, strict=True):
        torch.testing.assert_close(gradient, layer.grad, rtol=1e-4, atol=1e-6)


def validated(features: FeatureSet) -> Split:
    rows = np.arange(len(features))
    return Split("one", rows[:40], rows[56:], rows[40:56])


@pytest.mark.parametrize("kind", HEADS)
def test_after_the_choice_the_head_is_fitted_on_validation_rows_too(kind: str) -> None:
    features = made_up_features()
    split = validated(features)
    ((choosing, scored),) = fit_chosen(kind, features, [Job(split, SEED)], replace(PAPER, epochs=6), CPU)
    assert scored.epoch == choosing.epoch
    assert scored.job.split.train.tolist() == list(range(56))
    whole = replace(split, train=np.arange(56), valid=np.arange(0))
    # Constant steps: as many epochs as were chosen, no more, give the same head.
    (alone,) = fit(kind, features, [whole], epochs=choosing.epoch)
    assert torch.allclose(weights(scored), weights(alone), atol=1e-6)
    assert np.allclose(scored.scaler.mean, features.features[:56].double().mean(dim=0))
    ((first, same),) = fit_chosen(kind, features, [Job(split, SEED)], replace(PAPER, epochs=6), CPU, refit=False)
    assert first is same
    assert torch.equal(weights(first), weights(choosing))


@pytest.mark.parametrize("kind", HEADS)
def test_a_schedule_ends_where_it_ends(kind: str) -> None:
    """With a cosine the last epoch is kept, and validation rows train at once."""
    features = made_up_features()
    split = validated(features)
    ((first, scored),) = fit_chosen(kind, features, [Job(split, SEED)], TUNED, CPU)
    assert first is scored
    assert scored.epoch == TUNED.epochs
    assert scored.job.split.train.tolist() == list(range(56))
    ((_, held),) = fit_chosen(kind, features, [Job(split, SEED)], TUNED, CPU, refit=False)
    assert held.job.split.train.tolist() == list(range(40))
    assert held.epoch == TUNED.epochs


@pytest.mark.parametrize("kind", HEADS)
def test_nothing_is_chosen_by_test_rows(kind: str) -> None:
    """Epoch, strength of whitening and every weight stay as they are, whatever stands in the test rows."""
    features = made_up_features()
    split, recipe = validated(features), replace(TUNED, shrinkage=None, epochs=4)
    ((_, scored),) = fit_chosen(kind, features, [Job(split, SEED)], recipe, CPU)
    assert scored.job.shrinkage in SHRINKAGES
    garbage, labels = features.features.clone(), features.labels.clone()
    garbage[56:] = 1e3 * torch.randn(16, 384)
    labels[56:] = labels[56:].roll(5)
    dirty_features = replace(features, features=garbage, labels=labels)
    ((_, dirty),) = fit_chosen(kind, dirty_features, [Job(split, SEED)], recipe, CPU)
    assert (dirty.epoch, dirty.job.shrinkage) == (scored.epoch, scored.job.shrinkage)
    assert torch.equal(weights(dirty), weights(scored))
    paper = replace(PAPER, scaler="whiten", epochs=4)
    ((choosing, _),) = fit_chosen(kind, features, [Job(split, SEED)], paper, CPU)
    assert choosing.valid_accuracy[choosing.epoch - 1] == max(choosing.valid_accuracy)


def test_the_strength_of_whitening_is_that_of_the_best_validation_accuracy() -> None:
    features = made_up_features()
    split, recipe = validated(features), replace(PAPER, scaler="whiten", epochs=4)
    ((choosing, _),) = fit_chosen("linear", features, [Job(split, SEED)], recipe, CPU)
    tried = {
        shrinkage: max(
            fit_heads("linear", features, [Job(split, SEED, shrinkage=shrinkage)], recipe, CPU)[0].valid_accuracy
        )
        for shrinkage in SHRINKAGES
    }
    assert max(choosing.valid_accuracy) == max(tried.values())
    assert tried[choosing.job.shrinkage] == max(tried.values())


def test_seeds_differ_and_large_sets_are_fitted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    features = made_up_features()
    splits, _ = make_splits(features, 0.2, 42)
    jobs = [Job(split, seed) for seed in (1, 2) for split in splits]
    together = fit_heads("linear", features, jobs, PAPER, CPU)
    assert not torch.equal(weights(together[0]), weights(together[3]))
    monkeypatch.setattr("common.heads.training.SCALED_BYTES", 1)  # room for one scaled copy at a time
    for whole, part in zip(together, fit_heads("linear", features, jobs, PAPER, CPU), strict=True):
        assert whole.job is part.job
        assert torch.allclose(weights(whole), weights(part), atol=1e-6)


def test_ctrl_c_ends_all_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    features = made_up_features()
    splits, _ = make_splits(features, 0.2, 42)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("common.heads.training.Stack.epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit("linear", features, splits, epochs=10**6)


def test_threads_do_not_disturb_each_others_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers draw from torch's one global generator: many small stacks on two threads must still start alike."""
    features = made_up_features()
    splits, _ = make_splits(features, 0.2, 42)
    jobs = [Job(splits[0], seed) for seed in range(60)]
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("common.heads.training.CACHED_BYTES", 1)  # a stack for every job
    first, again = (fit_heads("three_layer", features, jobs, replace(PAPER, epochs=1), CPU) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(weights(one), weights(other))


def test_a_head_that_diverges_is_no_score() -> None:
    features = made_up_features()
    features.features *= 1e37
    splits, _ = make_splits(features, 0.2, 42)
    with pytest.raises(FitError, match=r"linear head diverged \(fold 1, seed 42\): lower --learning-rate"):
        fit("linear", features, splits, scaler="none", learning_rate=1e3)


def test_without_validation_rows_whitening_is_moderate() -> None:
    features = made_up_features()
    splits, _ = make_splits(features, 0.2, 42)
    recipe = replace(PAPER, scaler="whiten", epochs=1)
    ((_, scored), *_) = fit_chosen("linear", features, [Job(split, SEED) for split in splits], recipe, CPU)
    assert scored.job.shrinkage == 0.1
