"""Several labels a clip: average precision against scikit-learn, its intervals and tests, thresholds, few shots."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from common.arrays import Array
from common.average_precision import average_precisions, without_each_group
from common.datasets import Prepared
from common.evaluation.calibration import HeldOut, Scale, Unseen, calibrate, measure_label_sets, thresholds_of
from common.evaluation.outcomes import Outcome
from common.evaluation.protocol import plan_fits
from common.evaluation.rankings import Rankings, ranking_scores
from common.evaluation.record import HeadRecord, RankedClasses
from common.evaluation.scores import compare_heads, judge, score_head
from common.evaluation.splits import SplitError, group_folds, make_splits, random_split, with_shots
from common.evaluation.text import remarks
from common.features import FeatureSet
from common.heads import FitError, Job, Split, check_fittable
from tests.support.heads import run, several_labels, small_features


def drawn(seed: int, clips: int = 60, classes: int = 4, levels: int = 12) -> tuple[Array, Array, Array]:
    """Labels, scores with many ties, and groups."""
    rng = np.random.default_rng(seed)
    labels = rng.random((clips, classes)) < 0.25
    scores = (labels + rng.normal(0, 1, labels.shape) * 2).round(0 if levels < 20 else 6)
    return labels, scores.astype(np.float32), rng.integers(0, 7, clips)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([12, 10**6]))
def test_average_precisions_are_those_of_scikit_learn(seed: int, levels: int) -> None:
    labels, scores, groups = drawn(seed, levels=levels)
    labels[:, 3] = False
    expected = [average_precision_score(labels[:, place], scores[:, place]) for place in range(3)]
    assert average_precisions(labels, scores) == pytest.approx([*expected, np.nan], abs=1e-12, nan_ok=True)
    for group, left in enumerate(without_each_group(labels, scores, groups, 7)):
        others = groups != group
        assert left == pytest.approx(average_precisions(labels[others], scores[others]), abs=1e-12, nan_ok=True)


def test_scores_are_those_of_scikit_learn() -> None:
    labels, ranks, _ = drawn(1, clips=200, levels=10**6)
    scored = ranking_scores(labels, ranks)
    for name, average in (("macro_map", "macro"), ("micro_map", "micro")):
        assert scored[name] == pytest.approx(average_precision_score(labels, ranks, average=average), abs=1e-12)
    assert scored["macro_auc"] == pytest.approx(roc_auc_score(labels, ranks))
    assert scored["d_prime"] > 0
    # lwlrap by hand: the mean over all labels of the precision at their rank within the clip.
    precisions = [
        (ranks[clip][labels[clip]] >= ranks[clip, label]).sum() / (ranks[clip] >= ranks[clip, label]).sum()
        for clip, label in zip(*np.nonzero(labels), strict=True)
    ]
    assert scored["lwlrap"] == pytest.approx(np.mean(precisions))


def test_a_class_that_is_not_tested_is_left_out() -> None:
    labels, ranks, _ = drawn(2, levels=10**6)
    without = labels.copy()
    without[:, 0] = False
    kept = ranking_scores(labels[:, 1:], ranks[:, 1:])
    assert ranking_scores(without, ranks)["macro_map"] == pytest.approx(kept["macro_map"])
    assert ranking_scores(without, ranks)["macro_auc"] == pytest.approx(kept["macro_auc"])


def outcomes_of(features: FeatureSet, noise: float, seed: int = 0, fits: int = 2) -> list[Outcome]:
    """A head that knows the labels but for noise, tested on every `fits`-th row in turn."""
    rng, labels = np.random.default_rng(seed), features.labels.numpy()
    logits = (labels + noise * rng.standard_normal(labels.shape)).astype(np.float32)
    rows = [np.arange(place, len(labels), fits) for place in range(fits)]
    return [
        Outcome(42, f"fold {place + 1}", 10, part, logits[part] > 0.5, logits[part]) for place, part in enumerate(rows)
    ]


@pytest.fixture
def features() -> FeatureSet:
    """72 clips in 12 groups, 4 classes, one to three labels a clip, and a clip without any."""
    return several_labels(small_features())


def test_the_order_of_test_rows_changes_no_score(features: FeatureSet) -> None:
    outcomes = outcomes_of(features, 0.8)
    order = np.random.default_rng(3).permutation(len(outcomes[0].rows))
    logits = outcomes[0].logits
    assert logits is not None
    moved = replace(outcomes[0], rows=outcomes[0].rows[order], predictions=logits[order] > 0.5, logits=logits[order])
    scored, again = score_head(outcomes, features), score_head([moved, outcomes[1]], features)
    assert again.mean == pytest.approx(scored.mean) and again.interval == pytest.approx(scored.interval)


def test_a_head_is_scored_by_its_rankings(features: FeatureSet) -> None:
    scored = score_head(outcomes_of(features, 0.8), features)
    assert (scored.metric, scored.score) == ("macro_map", scored.mean["macro_map"])
    assert scored.interval is not None and scored.interval[0] < scored.score < scored.interval[1]
    assert isinstance(scored.per_class, RankedClasses)
    assert scored.per_class.clips == features.labels.sum(dim=0).tolist()
    assert np.mean(scored.per_class.average_precision) == pytest.approx(scored.score)
    assert HeadRecord.model_validate_json(scored.model_dump_json()) == scored
    perfect = score_head(outcomes_of(features, 0.0), features)
    assert (
        perfect.score == 1 and perfect.interval is not None and perfect.interval[0] < 0.9 and perfect.interval[1] == 1
    )
    assert np.isnan(perfect.mean["d_prime"])  # infinite
    few = replace(features, groups=["a" if row < 40 else "b" for row in range(len(features))])
    assert score_head(outcomes_of(few, 0.8), few).interval is None


def test_heads_are_compared_by_groups(features: FeatureSet) -> None:
    better, worse = outcomes_of(features, 0.4, 1), outcomes_of(features, 2.0, 2)
    compared, reverse = compare_heads(worse, better, features), compare_heads(better, worse, features)
    assert compared.difference == pytest.approx(-reverse.difference) and compared.difference > 0
    assert compared.units == "groups" and compared.n_units == 12
    assert (
        compared.p_value is not None and compared.p_value == pytest.approx(reverse.p_value) and compared.p_value < 0.05
    )
    same = compare_heads(better, better, features)
    assert (same.difference, same.p_value) == (0, 1) and same.interval is not None and same.interval[0] < 0


def test_a_fold_of_a_single_group_still_gives_an_interval(features: FeatureSet) -> None:
    by_fold = replace(features, groups=[f"group {row % 6}" for row in range(len(features))])
    outcomes = outcomes_of(by_fold, 0.8, fits=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interval = score_head(outcomes, by_fold).interval
        compared = compare_heads(outcomes, outcomes_of(by_fold, 1.5, seed=1, fits=6), by_fold)
    scores = [judge([outcome], by_fold).score for outcome in outcomes]
    assert interval is not None and interval[0] < np.mean(scores) < interval[1]
    assert compared.p_value is not None and compared.interval is not None


def test_a_single_mistake_keeps_the_interval_near_the_score() -> None:
    labels = np.arange(200) % 4 == 0
    ranks = np.stack([labels, labels], axis=1).astype(np.float32)
    ranks[0, 0] = -1  # a positive below all others: without its group the score is 1
    groups = np.arange(200) // 4
    interval = Rankings(np.stack([labels, labels], axis=1), ranks, np.zeros(200, int), groups, "groups").interval()
    assert interval is not None and interval[0] > 0.9 and interval[1] > 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("n_groups", "size"), [(5, 40), (20, 10), (50, 6)])
def test_intervals_cover_the_expected_score_and_tests_keep_their_level(n_groups: int, size: int) -> None:
    rng, runs = np.random.default_rng(0), 300

    def one_run() -> tuple[Rankings, Rankings]:
        groups = np.repeat(np.arange(n_groups), rng.poisson(size, n_groups) + 1)
        prevalence = 1 / (1 + np.exp(1.4 + rng.normal(0, 1, (n_groups, 10))))
        labels = rng.random((len(groups), 10)) < prevalence[groups]
        common = 1.5 * labels + rng.normal(0, 0.5, (n_groups, 10))[groups] + rng.normal(0, 1, labels.shape)
        fits = np.zeros(len(groups), int)
        heads = [Rankings(labels, common + rng.normal(0, 0.7, labels.shape), fits, groups, "groups") for _ in range(2)]
        return heads[0], heads[1]

    pairs = [one_run() for _ in range(runs)]
    expected = np.mean([rankings.score for pair in pairs for rankings in pair])
    intervals = [interval for first, _ in pairs if (interval := first.interval()) is not None]
    covered = np.mean([low <= expected <= high for low, high in intervals])
    p_values = [p_value for first, second in pairs if (p_value := first.minus(second).p_value) is not None]
    assert len(intervals) > 0.9 * runs and 0.92 < covered < 0.995
    assert np.mean(np.array(p_values) < 0.05) < 0.08


def unseen(seed: int, slope: float = 1.0, clips: int = 3000) -> Unseen:
    """Labels drawn from the probabilities of logits, which are then stretched and shifted by class."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, (clips, 3))
    labels = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    return Unseen((logits * slope + [0, 1, 2]).astype(np.float32), labels)


def test_probabilities_are_calibrated_by_class() -> None:
    record = calibrate(HeldOut([unseen(seed, 3.0) for seed in range(2)]), Scale())
    assert record.temperature is None
    assert record.error_before > 0.1 > 0.02 > record.error_after
    assert len(record.class_errors) == 3 and max(record.class_errors) < 0.05


def test_thresholds_give_a_label_to_as_many_and_are_never_chosen_on_what_they_are_measured_on() -> None:
    folds = [unseen(seed, clips=300) for seed in range(2)]
    thresholds = thresholds_of(folds[0])
    assert ((folds[0].logits >= thresholds).sum(axis=0) == folds[0].labels.sum(axis=0)).all()
    nowhere = replace(folds[0], labels=np.zeros_like(folds[0].labels))
    assert np.isinf(thresholds_of(nowhere)).all()
    before = measure_label_sets(HeldOut(folds), Scale())
    swapped = replace(folds[0], labels=folds[0].labels[::-1])
    after = measure_label_sets(HeldOut([swapped, folds[1]]), Scale())
    assert before.fitted_on == "the other folds"
    # The second fold's labels decide what is predicted in the first, whose labels decide what is in the second.
    wrong = folds[1].logits >= thresholds_of(swapped)
    right = folds[0].logits >= thresholds_of(folds[1])
    assert np.array(after.confusion).trace() == (swapped.labels & right).sum() + (folds[1].labels & wrong).sum()


@pytest.mark.parametrize("is_several", [False, True])
def test_few_shots_are_of_every_class_and_of_the_training_side(is_several: bool) -> None:
    features = small_features()
    features = several_labels(features) if is_several else features
    job = Job(Split("one", np.arange(48), np.arange(60, 72), np.arange(48, 60)), 42)
    few = with_shots(features, job, 3, draw=0).split
    assert np.isin(few.train, job.split.learnable).all() and len(set(few.train)) == len(few.train)
    assert np.array_equal(few.test, job.split.test) and not len(few.valid)
    labels = features.labels.numpy()[few.train]
    counts = labels.sum(axis=0) if is_several else np.bincount(labels)
    assert (counts >= 3).all() if is_several else (counts == 3).all()
    assert not np.array_equal(few.train, with_shots(features, job, 3, draw=1).split.train)
    assert np.array_equal(few.train, with_shots(features, job, 3, draw=0).split.train)
    everything = with_shots(features, job, 1000, draw=0).split.train
    assert np.array_equal(everything, job.split.learnable[labels_of(features)[job.split.learnable]])


def labels_of(features: FeatureSet) -> Array:
    """Whether a row has a label."""
    labels = features.labels.numpy()
    has: Array = labels.any(axis=1) if features.is_multilabel else np.ones(len(labels), bool)
    return has


def test_splits_hold_every_class_in_training_and_keep_groups_whole(features: FeatureSet) -> None:
    split = random_split(features, 0.25, 1)
    labels = features.labels.numpy()
    assert labels[split.train].any(axis=0).all() and labels[split.test].any(axis=0).all()
    groups = np.array(features.groups)
    folds = group_folds(labels, groups, 3, 42)
    assert all(len(set(folds[groups == group])) == 1 for group in set(groups)) and set(folds) == {0, 1, 2}
    only = features.labels.clone()
    only[:, 0] = torch.arange(len(only)) < 2  # of a single group
    with pytest.raises(SplitError, match="the training side of fold 1 has no clip of class"):
        plan_fits("official", Prepared(replace(features, labels=only)), 0.2, [42])


@pytest.mark.parametrize("count", [0, 1, 72])
def test_a_label_that_cannot_be_learned_is_refused(features: FeatureSet, count: int) -> None:
    labels = features.labels.clone()
    labels[:, 1] = torch.arange(len(labels)) < count
    with pytest.raises(FitError, match=f"{count} of 72 clips have the label"):
        check_fittable(replace(features, labels=labels), "a.pt")


def test_the_whole_protocol_with_several_labels(features: FeatureSet) -> None:
    ran = run(features, probes=True, controls=True, shots=(1, 2), draws=3, epochs=20)
    record = ran.record
    linear = record.heads["linear"]
    assert linear.score > record.majority_class.score + 0.15
    assert record.probes["logistic_regression"].score > record.majority_class.score + 0.15
    assert record.shuffled_labels["linear"].score < linear.score - 0.04
    assert [(point.shots, len(point.draws)) for point in record.few_shots if point.head == "linear"] == [(1, 3), (2, 3)]
    assert linear.label_sets is not None and linear.label_sets.macro_f1 > 0.3
    labels = features.labels.numpy()
    expected = [
        average_precision_score(labels[part.rows], part.logits, average="macro") for part in ran.outcomes["linear"]
    ]
    assert linear.score == pytest.approx(np.mean(expected), abs=1e-9)
    head = ran.heads["linear"]
    assert head.thresholds == linear.label_sets.thresholds


def test_a_side_without_any_label_is_refused(features: FeatureSet) -> None:
    sides = ["test" if row % 4 == 0 else "train" for row in range(len(features))]
    labels = features.labels.clone()
    labels[::4] = False
    split = replace(features, labels=labels, folds=None, splits=sides)
    with pytest.raises(SplitError, match="no clip of the test side of the given train and test split has a label"):
        make_splits(Prepared(split, is_official=False))
    folds = torch.tensor([row % 4 for row in range(len(features))])
    with pytest.raises(SplitError, match="no clip of the test side of fold 0 has a label"):
        make_splits(Prepared(replace(split, splits=None, folds=folds), is_official=False))


def test_classes_are_short_of_shots_by_their_training_clips(features: FeatureSet) -> None:
    clips = int(features.labels.sum(dim=0).min())
    record = run(features, shots=(clips,), draws=1, epochs=2).record
    assert record.few_shots[0].short_classes > 0  # some of its clips are tested
    assert any("to train on; all are taken" in line for line in remarks(record))
