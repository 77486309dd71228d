"""Protocols, recipes, scalers, probes and controls: what is compared is comparable, and what leaks says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.datasets import DivisionKind, Prepared
from common.evaluation.protocol import ProtocolRun, run_protocol
from common.evaluation.record import RunRecord
from common.evaluation.splits import make_splits, random_split, with_validation
from common.evaluation.text import remarks
from common.heads import HEADS, TUNED, Recipe, fit_recipe_scaler, fit_scaler, recipe_for
from tests.support.heads import CPU, classify, fit_config, grouped_features, noise_like, run, saved, small_features


@pytest.fixture(scope="module")
def official() -> ProtocolRun:
    """The official protocol on clips in pairs, with one seed."""
    return run(grouped_features())


def test_folds_choose_on_whole_groups_of_their_training_clips() -> None:
    features = grouped_features(per_fold=12)
    groups = np.array(features.groups)
    splits = make_splits(Prepared(features))[0]
    assert len(splits) == 5
    for split in splits:
        validated, words = with_validation(features, split, 42)
        assert words == "20% of the training clips, whole groups"
        train, valid, test = (set(groups[rows]) for rows in (validated.train, validated.valid, validated.test))
        assert not train & valid
        assert not train & test
        assert not valid & test
        assert sorted([*validated.train, *validated.valid]) == split.train.tolist()
        assert len(validated.valid) == pytest.approx(0.2 * len(split.train), rel=0.3)
        assert set(features.labels[validated.train].tolist()) == set(range(4))


def test_without_groups_a_fold_validates_and_without_folds_clips_do() -> None:
    features = small_features(folds=5)
    assert features.folds is not None
    split = make_splits(Prepared(features))[0][4]
    validated, words = with_validation(features, split, 42)
    assert words == "one of the training folds"
    assert set(features.folds[validated.valid].tolist()) == {1}  # after the last comes the first
    features = replace(features, folds=None)
    validated, words = with_validation(features, random_split(features, 0.2, 42), 42)
    assert words == "20% of the training clips"
    assert len(validated.valid)
    assert not set(validated.valid) & (set(validated.train) | set(validated.test))


def test_if_nothing_can_be_held_out_the_last_epoch_is_kept() -> None:
    features = small_features(per_fold=1, folds=2)
    split = make_splits(Prepared(features))[0][0]
    validated, words = with_validation(features, split, 42)
    assert words == "nothing: the last epoch is kept"
    assert len(validated.valid) == 0
    record = run(features).record
    assert {fit.epoch for fit in record.heads["linear"].splits} == {4}
    assert not record.refit
    assert not record.chooses_epoch


def test_the_random_protocol_says_that_it_leaks() -> None:
    features = grouped_features(per_fold=12)
    honest, random = run(features).record, run(features, "random").record
    assert honest.kind is DivisionKind.OFFICIAL
    assert honest.related_test_clips == 0
    assert random.kind is DivisionKind.RANDOM
    assert random.related_test_clips is not None
    assert random.related_test_clips > 0.5
    assert random.division == "random 20% test split, stratified, seed 42"
    # Nearly the same clip is on the other side, so the score is too high.
    assert random.heads["linear"].score > honest.heads["linear"].score


@pytest.mark.parametrize("is_official", [True, False])
def test_a_tasks_own_division_is_named_and_official_only_if_it_says_so(is_official: bool) -> None:
    prepared = Prepared(grouped_features(), "by whole chapters", is_official)
    divided, random = (run_protocol(name, prepared, fit_config(), CPU).record for name in ("official", "random"))
    kind = DivisionKind.OFFICIAL if is_official else DivisionKind.OWN_FOLDS
    assert (divided.division, divided.kind) == ("by whole chapters", kind)
    assert random.kind is DivisionKind.RANDOM
    assert random.division == "random 20% test split, stratified, seed 42"


def test_seeds_draw_random_splits_anew_and_keep_official_ones() -> None:
    features = grouped_features()
    runs = {name: run(features, name, seeds=3) for name in ("official", "random")}
    for (name, n_splits), n_tests in zip((("official", 5), ("random", 1)), (5, 3), strict=True):
        assert len(runs[name].record.heads["linear"].splits) == 3 * n_splits
        tests = [tuple(outcome.rows) for outcome in runs[name].outcomes["linear"]]
        assert len(set(tests)) == n_tests
    alone = run(features, seeds=1, random_seed=43).record.heads["linear"].splits
    together = runs["official"].record.heads["linear"].splits
    assert len(alone) == 5
    for fit, same in zip(alone, together[5:10], strict=True):
        assert fit.scores["accuracy"] == same.scores["accuracy"]
        assert fit.train_loss == pytest.approx(same.train_loss, rel=1e-5)


def test_the_best_test_epoch_is_written_down_and_is_no_headline(official: ProtocolRun) -> None:
    fits = official.record.heads["three_layer"].splits
    assert len(fits) == 5
    for fit in fits:
        curve = fit.test_accuracy_over_epochs
        assert len(curve) == 4
        assert fit.best_test_accuracy_over_epochs == max(curve)
        assert fit.epoch is not None
        assert fit.scores["accuracy"] == pytest.approx(curve[fit.epoch - 1], abs=1e-6)


def test_controls_and_probes_are_scored_beside_the_heads() -> None:
    features = grouped_features(per_fold=12)
    others = {"noise": noise_like(features, seed=1, size=7)}
    record = run(features, others=others, probes=True, controls=True).record
    assert set(record.probes) == {"logistic_regression", "nearest_neighbours", "nearest_centroid"}
    assert set(record.controls) == {"noise"}
    assert set(record.controls["noise"]) == set(record.shuffled_labels) == set(HEADS)
    # What says nothing of the class scores like chance, a fourth; what says something, better.
    for scored in [*record.controls["noise"].values(), *record.shuffled_labels.values()]:
        assert scored.score < 0.4
    assert record.probes["logistic_regression"].score > 0.45
    # Only logistic regression is fitted in steps.
    assert all(fit.converged for fit in record.probes["logistic_regression"].splits)
    assert all(fit.converged is None for fit in record.probes["nearest_centroid"].splits)
    # What was noted while fitting shuffled labels is not recorded.
    assert all(fit.epoch is None for fit in record.shuffled_labels["linear"].splits)
    assert all(fit.epoch is not None for fit in record.controls["noise"]["linear"].splits)
    # The heads are compared with other features' heads, not with those of other labels.
    assert set(record.control_comparisons) == {"noise"}
    for kind, scored in record.heads.items():
        compared = record.control_comparisons["noise"][kind]
        assert compared.difference == pytest.approx(scored.score - record.controls["noise"][kind].score)
        assert compared.p_value is not None and compared.holm_p_value is not None
        assert compared.p_value <= compared.holm_p_value <= 2 * compared.p_value
    assert sum("Minus noise" in line for line in remarks(record)) == 2


def test_fewer_labels_are_of_every_class() -> None:
    points = run(grouped_features(per_fold=12), shots=(1, 1000), draws=2).record.few_shots
    assert [(point.head, point.shots) for point in points] == [
        (head, shots) for shots in (1, 1000) for head in ("linear", "three_layer")
    ]
    # 192 training and validation clips of 4 classes.
    assert [point.n_train for point in points] == [4, 4, 192, 192]
    assert points[2].mean > points[0].mean


def test_scalers_by_hand() -> None:
    rng = np.random.default_rng(0)
    train = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)) * 10 + 3
    standard = fit_scaler("standard", train)(train)
    assert np.allclose(standard.mean(axis=0), 0, atol=1e-5)
    assert np.allclose(standard.std(axis=0), 1, atol=1e-5)
    whitened = fit_scaler("whiten", train, 1e-6)(train)
    assert np.allclose(np.cov(whitened.T, bias=True), np.eye(6), atol=5e-3)
    # Drawn all the way to the identity, whitening is standardising, turned.
    turned = fit_scaler("whiten", train, 1.0)(train)
    assert np.allclose(turned @ turned.T, standard @ standard.T, atol=1e-3)
    assert np.allclose(fit_scaler("none", train)(train), train, atol=1e-5)
    lengths = np.linalg.norm(fit_scaler("whiten", train, 0.1, is_unit_length=True)(train), axis=1)
    assert np.allclose(lengths, np.sqrt(6), atol=1e-5)
    constant = np.hstack([train, np.full((500, 1), 7.0)])
    assert np.isfinite(fit_scaler("whiten", constant, 0.01)(constant)).all()


def test_flags_replace_values_of_a_recipe() -> None:
    paper = recipe_for("linear", fit_config(hidden_dim=256, epochs=100))
    assert paper == Recipe(epochs=100, batch_size=8, learning_rate=1e-3, hidden_dim=256)
    tuned = fit_config(recipe="tuned", epochs=None, batch_size=None, learning_rate=None, hidden_dim=None)
    for kind, expected in TUNED.items():
        assert recipe_for(kind, tuned) == expected
        changed = recipe_for(kind, tuned.model_copy(update={"epochs": 7, "scaler": "standard"}))
        assert (changed.epochs, changed.scaler, changed.is_unit_length) == (7, "standard", False)
    assert recipe_for("linear", fit_config(scaler="whiten", whiten_eps=0.5)).shrinkage == 0.5


def test_the_tuned_shrinkage_falls_with_the_number_of_clips() -> None:
    recipe = TUNED["linear"]
    for count, chosen, expected in ((1600, None, 0.024), (20, None, 1.0), (1600, 0.5, 0.5)):
        train = np.random.default_rng(0).standard_normal((count, 384))
        scaler = fit_recipe_scaler(recipe, train, shrinkage=chosen)
        same = fit_scaler("whiten", train, expected, is_unit_length=True)
        np.testing.assert_allclose(scaler(train), same(train), atol=1e-5)


def test_one_command_runs_every_protocol(no_figures: None, tmp_path: Path) -> None:
    """What is printed, and what every file holds."""
    features = grouped_features(folds=3)
    features = replace(features, meta={"checkpoint": "random:0"})
    shuffled = np.random.default_rng(0).permutation(len(features))
    other = replace(noise_like(features, seed=2).subset(shuffled), meta={"checkpoint": "none"})
    results = tmp_path / "results"
    flags = ("--features", saved(features, tmp_path / "features.pt"), "--output-dir", results)
    options = ("--protocol", "both", "--seeds", 2, "--epochs", 2, "--probes", "--markdown", "--scaler", "whiten")
    control = ("--control-features", saved(other, tmp_path / "untrained.pt"), "--shots", 1, "--draws", 2)
    result = classify(*flags, *options, *control)
    assert result.returncode == 0, result.stderr
    for words in (
        "WARNING: this split does not keep recordings, patients or speakers apart",
        "Not a score: with the epoch chosen by the test clips",
        "Strength of whitening chosen on validation clips",
        "untrained, linear",
        "nearest-centroid",
    ):
        assert words in result.words
    printed = [line for line in result.stdout.splitlines() if not line.startswith("->")]
    assert max(map(len, printed)) <= 100
    record = RunRecord.load(results / "result.json")
    assert set(record.protocols) == {"official", "random"}
    assert {"python", "torch", "scikit-learn"} <= set(record.versions)
    assert sorted(path.name for path in results.iterdir()) == sorted(["result.json", "result.md", *record.files])
    table = pd.read_csv(results / "result.csv")
    linear = table[(table["head"] == "linear") & (table.protocol == "official")]
    assert len(linear) == 2 * 3
    assert linear.accuracy.mean() == pytest.approx(record.protocols["official"].heads["linear"].score)
    assert "| linear |" in (results / "result.md").read_text()
    again = classify(*flags, *options, *control)
    assert "Nothing to do" in again.stdout
    other_run = classify(*flags, "--seeds", 3, "--epochs", 2)
    assert other_run.returncode == 2
    assert "holds the results of another run" in other_run.stderr
    assert "recipe_linear" not in other_run.stderr  # which follows from the flags


def test_without_an_official_division_both_protocols_are_one(no_figures: None, tmp_path: Path) -> None:
    features = saved(replace(grouped_features(), folds=None), tmp_path / "features.pt")
    result = classify("--features", features, "--output-dir", tmp_path / "results", "--protocol", "both", "--epochs", 2)
    assert "has no official division" in result.stdout
    assert "WARNING: this split does not keep recordings, patients or speakers apart" in result.words
    assert set(RunRecord.load(tmp_path / "results" / "result.json").protocols) == {"official"}


def test_control_features_of_other_clips_are_refused(tmp_path: Path) -> None:
    features = grouped_features()
    fewer = saved(features.subset(np.arange(50)), tmp_path / "fewer.pt")
    flags = ("--features", saved(features, tmp_path / "features.pt"), "--output-dir", tmp_path / "results")
    result = classify(*flags, "--control-features", fewer)
    assert result.returncode == 2
    assert "lacks 70 of the clips" in result.stderr


def test_other_controls_are_another_run(no_figures: None, tmp_path: Path) -> None:
    features = grouped_features()
    first = saved(noise_like(features, seed=1), tmp_path / "a" / "f.pt")
    second = saved(noise_like(features, seed=2), tmp_path / "b" / "f.pt")
    flags = ("--features", saved(features, tmp_path / "features.pt"), "--output-dir", tmp_path / "results")
    options = ("--epochs", 2, "--control-features", first, second)
    result = classify(*flags, *options)
    assert result.returncode == 0, result.stderr
    # Files of the same name are distinguished by their folders.
    assert "f, linear" in result.stdout
    assert "b/f, linear" in result.stdout
    saved(noise_like(features, seed=3), second)
    changed = classify(*flags, *options)
    assert changed.returncode == 2
    assert "control_sha256 was" in changed.stderr


def test_nothing_of_an_earlier_run_stays(no_figures: None, tmp_path: Path) -> None:
    results = tmp_path / "results"
    flags = ("--features", saved(grouped_features(), tmp_path / "f.pt"), "--output-dir", results, "--epochs", 2)
    assert classify(*flags, "--protocol", "both", "--markdown", "--shots", 1, "--draws", 2).returncode == 0
    assert (results / "random_predictions.csv").exists()
    assert (results / "random_few_shots.png").exists()
    (results / "notes.txt").write_text("mine")
    assert classify(*flags, "--overwrite").returncode == 0
    record = RunRecord.load(results / "result.json")
    assert {path.name for path in results.iterdir()} == {"result.json", "notes.txt", *record.files}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--whiten-eps", 0.5), "--whiten-eps is the strength of whitening; add --scaler whiten"),
        (("--seed", 2**32 - 1, "--seeds", 2), "--seeds 2 starting at seed 4294967295 exceeds 4294967295"),
        (("--shots", 0), "--shots: Input should be greater than or equal to 1"),
        (("--protocol", "fair"), "--protocol: Input should be 'official', 'random' or 'both'"),
    ],
)
def test_contradictory_flags_end_with_status_2(flags: tuple[object, ...], words: str, tmp_path: Path) -> None:
    features = saved(grouped_features(), tmp_path / "f.pt")
    result = classify("--features", features, "--output-dir", tmp_path / "results", *flags)
    assert result.returncode == 2
    assert words in result.stderr
    assert not (tmp_path / "results").exists()
