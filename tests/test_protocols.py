"""Protocols, recipes, scalers, probes and controls: what is compared is comparable, and what leaks says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import made_up_features
from test_cli import CLASSIFY, Result, call

from common.config import COMMON_CONFIG, load_config
from common.evaluation.protocols import ProtocolRun, run_protocol
from common.evaluation.splits import make_splits, random_split, with_validation
from common.evaluation.uncertainty import hits_interval, paired_p_value
from common.features import FeatureSet
from common.heads.recipes import TUNED, Recipe, recipe_for, shrinkage_for
from common.heads.scalers import fit_scaler


def classified(*flags: object) -> Result:
    """What the classification script of ESC-50 does with these flags."""
    return call(CLASSIFY, *flags)


def grouped_features(folds: int | None = 5, per_fold: int = 12) -> FeatureSet:
    """Clips in pairs that are nearly the same; a pair is a group and stands in one fold."""
    features = made_up_features(folds=folds or 5, per_fold=per_fold, size=24)
    twins = torch.arange(len(features)) // 2 * 2
    features.features = features.features[twins] + 0.05 * features.features
    features.groups = [f"source{twin}" for twin in twins.tolist()]
    if folds is None:
        features.folds = None
    return features


def config(**changes) -> dict:
    values = load_config(COMMON_CONFIG, flags={"epochs": 4, "device": "cpu", "hidden_dim": 16})
    return {**values, **changes}


def run(features: FeatureSet, name: str = "official", others: dict | None = None, **changes) -> ProtocolRun:
    return run_protocol(name, features, config(**changes), "", None, others or {}, {})


def test_folds_choose_on_whole_groups_of_their_training_clips() -> None:
    features = grouped_features()
    groups = np.array(features.groups)
    for split in make_splits(features, 0.2, 42)[0]:
        validated, words = with_validation(features, split, 42)
        assert words == "20% of the training clips, whole groups"
        sides = [set(groups[rows]) for rows in (validated.train, validated.valid, validated.test)]
        assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
        assert sorted([*validated.train, *validated.valid]) == split.train.tolist()
        assert len(validated.valid) == pytest.approx(0.2 * len(split.train), rel=0.3)
        assert set(features.labels[validated.train].tolist()) == set(range(4))


def test_without_groups_a_fold_validates_and_without_folds_clips_do() -> None:
    features = made_up_features(folds=5)
    split = make_splits(features, 0.2, 42)[0][4]
    validated, words = with_validation(features, split, 42)
    assert words == "one of the training folds"
    assert set(features.folds[validated.valid].tolist()) == {1}  # after the last comes the first
    features.folds = None
    validated, words = with_validation(features, random_split(features, 0.2, 42), 42)
    assert words == "20% of the training clips"
    assert not set(validated.valid) & (set(validated.train) | set(validated.test))


def test_where_nothing_can_be_spared_the_last_epoch_is_kept() -> None:
    features = made_up_features(per_fold=1, folds=2)
    split = make_splits(features, 0.2, 42)[0][0]
    validated, words = with_validation(features, split, 42)
    assert words == "nothing: the last epoch is kept"
    assert len(validated.valid) == 0
    record = run(features).record
    assert {row["epoch"] for row in record["heads"]["linear"]["splits"]} == {4}
    assert not record["refit"]


def test_the_random_protocol_says_that_it_leaks() -> None:
    features = grouped_features()
    official, random = run(features).record, run(features, "random").record
    assert official["is_official"]
    assert official["related_test_clips"] == 0
    assert not random["is_official"]
    assert random["related_test_clips"] > 0.5
    assert random["protocol"] == "random 20% test split, stratified, seed 42"
    # Nearly the same clip on the other side: the score flatters.
    scores = [record["heads"]["linear"]["mean"]["accuracy"] for record in (official, random)]
    assert scores[1] > scores[0]


def test_seeds_draw_random_splits_anew_and_keep_official_ones() -> None:
    features = grouped_features()
    for name, n_splits in (("official", 5), ("random", 1)):
        protocol = run(features, name, seeds=3)
        rows = protocol.record["heads"]["linear"]["splits"]
        assert len(rows) == 3 * n_splits
        tests = [tuple(outcome.rows) for outcome in protocol.outcomes["linear"]]
        assert len(set(tests)) == (5 if name == "official" else 3)
    alone = run(features, seeds=1, random_seed=43).record["heads"]["linear"]["splits"]
    together = run(features, seeds=2).record["heads"]["linear"]["splits"]
    for one, other in zip(alone, together[5:], strict=True):
        assert one["accuracy"] == other["accuracy"]
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)


def test_the_best_test_epoch_is_written_down_and_is_no_headline() -> None:
    features = grouped_features()
    for row in run(features).record["heads"]["three_layer"]["splits"]:
        curve = row["test_accuracy_over_epochs"]
        assert len(curve) == 4
        assert row["best_test_accuracy_over_epochs"] == max(curve)
        assert row["accuracy"] == pytest.approx(curve[row["epoch"] - 1], abs=1e-6)


def test_controls_and_probes_stand_beside() -> None:
    features = grouped_features()
    noise = replace(features, features=torch.randn(len(features), 7))
    record = run(features, others={"noise": noise}, probes=True, controls=True).record
    accuracy = {name: scored["mean"]["accuracy"] for name, scored in {**record["controls"], **record["probes"]}.items()}
    assert set(record["probes"]) == {"logistic_regression", "nearest_neighbours", "nearest_centroid"}
    assert set(record["controls"]) == {
        f"{control}, {kind}" for control in ("noise", "shuffled_labels") for kind in ("linear", "three_layer")
    }
    # What carries nothing of the class scores like chance, a fourth; what carries it, better.
    for control in record["controls"]:
        assert accuracy[control] < 0.4
    assert accuracy["logistic_regression"] > 0.45


def test_fewer_labels_are_of_every_class() -> None:
    points = run(grouped_features(), label_fractions=[0.1, 1.0]).record["label_efficiency"]
    assert [(point["head"], point["fraction"]) for point in points] == [
        (head, fraction) for fraction in (0.1, 1.0) for head in ("linear", "three_layer")
    ]
    # 192 training and validation clips of 4 classes: a tenth of each class on either side.
    assert points[0]["n_train"] == pytest.approx(19, abs=4)
    assert points[2]["n_train"] == 192
    assert points[2]["mean"]["accuracy"] > points[0]["mean"]["accuracy"]


def test_scalers() -> None:
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
    with pytest.raises(ValueError, match="no such scaler"):
        fit_scaler("whiten", train)


def test_recipes_and_what_replaces_their_values() -> None:
    paper = recipe_for("linear", config(hidden_dim=256, epochs=100))
    assert paper == Recipe(epochs=100, batch_size=8, learning_rate=1e-3, hidden_dim=256)
    none = dict.fromkeys(("epochs", "batch_size", "learning_rate", "hidden_dim"))
    for kind in TUNED:
        assert recipe_for(kind, config(recipe="tuned", **none)) == TUNED[kind]
        own = recipe_for(kind, config(recipe="tuned", **{**none, "epochs": 7}, scaler="standard"))
        assert (own.epochs, own.scaler, own.is_unit_length) == (7, "standard", False)
    assert recipe_for("linear", config(scaler="whiten", whiten_eps=0.5)).shrinkage == 0.5


def test_the_tuned_shrinkage_falls_with_the_number_of_clips() -> None:
    recipe = TUNED["linear"]
    assert shrinkage_for(recipe, None, 1600, 384) == pytest.approx(0.024)
    assert shrinkage_for(recipe, None, 20, 384) == 1.0
    assert shrinkage_for(recipe, 0.5, 1600, 384) == 0.5
    assert shrinkage_for(Recipe(1, 8, 1e-3), None, 1600, 384) is None


def test_intervals_draw_groups_not_clips() -> None:
    rng = np.random.default_rng(0)
    hits = np.repeat((rng.uniform(size=100) < 0.6).astype(float), 10)  # ten clips of a group fare alike
    splits = np.zeros(1000, dtype=int)
    by_group = hits_interval(hits, np.repeat(np.arange(100), 10), splits)
    by_clip = hits_interval(hits, np.arange(1000), splits)
    width = 2 * 1.96 * np.sqrt(0.6 * 0.4 / 100)
    assert by_group[1] - by_group[0] == pytest.approx(width, rel=0.15)
    assert by_clip[1] - by_clip[0] == pytest.approx(width / np.sqrt(10), rel=0.15)
    assert hits_interval(hits, np.zeros(1000), splits) is None
    # The mean of folds of different sizes, as the score itself.
    uneven = hits_interval(np.r_[np.ones(900), np.zeros(100)], np.arange(1000), np.r_[np.zeros(900), np.ones(100)])
    assert uneven == (0.5, 0.5)
    # Of parts of different sizes, as the balanced accuracy.
    parts = np.r_[np.zeros(900), np.ones(100)]
    balanced = hits_interval(np.r_[np.ones(900), np.zeros(100)], np.arange(1000), splits, parts)
    assert balanced == (0.5, 0.5)
    labels = np.arange(1000) % 4
    low, high = hits_interval(hits, np.arange(1000), splits, labels)
    expected = np.mean([hits[labels == label].mean() for label in range(4)])
    assert low < expected < high and high - low == pytest.approx(by_clip[1] - by_clip[0], rel=0.1)


def test_p_values_hold_under_the_null() -> None:
    rng = np.random.default_rng(0)
    p_values = [paired_p_value(rng.integers(-1, 2, 60).astype(float), np.arange(60) // 2) for _ in range(60)]
    assert 0.3 < np.mean(p_values) < 0.75
    assert np.mean(np.array(p_values) < 0.05) < 0.15
    assert paired_p_value(np.ones(60), np.arange(60)) < 0.001
    assert paired_p_value(np.ones(60), np.zeros(60)) is None


def test_the_whole_command(tmp_path: Path) -> None:
    features = grouped_features()
    features.meta = {"dataset": "esc50", "checkpoint": "random:0"}
    features.save(tmp_path / "features.pt")
    other = replace(features, features=torch.randn(len(features), 24), meta={"dataset": "esc50", "checkpoint": "none"})
    shuffled = np.random.default_rng(0).permutation(len(features))
    other.rows(shuffled).save(tmp_path / "untrained.pt")
    flags = ("--features", tmp_path / "features.pt", "--output-dir", tmp_path / "results", "--feature-dim", 24)
    options = ("--protocol", "both", "--seeds", 2, "--epochs", 3, "--probes", "--markdown", "--scaler", "whiten")
    control = ("--control-features", tmp_path / "untrained.pt", "--label-fractions", 0.5)
    result = classified(*flags, *options, *control)
    assert result.returncode == 0, result.stderr
    for words in (
        "WARNING: this split separates no recordings",
        "Not a score: with the epoch chosen by the test clips",
        "Strength of whitening chosen on validation clips",
        "untrained, linear",
        "nearest-centroid",
    ):
        assert words in " ".join(result.stdout.split())
    table = [line for line in result.stdout.splitlines() if not line.startswith("->")]
    assert max(map(len, table)) <= 100
    record = json.loads((tmp_path / "results" / "result.json").read_text())
    assert set(record["protocols"]) == {"official", "random"}
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == sorted(
        ["result.json", "result.md", *record["files"]]
    )
    table = pd.read_csv(tmp_path / "results" / "result.csv")
    linear = table[(table["head"] == "linear") & (table.protocol == "official")]
    assert len(linear) == 10
    assert linear.accuracy.mean() == pytest.approx(
        record["protocols"]["official"]["heads"]["linear"]["mean"]["accuracy"]
    )
    assert "| linear |" in (tmp_path / "results" / "result.md").read_text()
    again = classified(*flags, *options, *control)
    assert "Nothing to do" in again.stdout
    other_run = classified(*flags, "--seeds", 3, "--epochs", 3)
    assert other_run.returncode == 2
    assert "holds the results of another run" in other_run.stderr


def test_without_an_official_division_both_are_one(tmp_path: Path) -> None:
    features = grouped_features(folds=None)
    features.meta = {"dataset": "esc50"}
    features.save(tmp_path / "features.pt")
    flags = ("--features", tmp_path / "features.pt", "--output-dir", tmp_path / "results", "--feature-dim", 24)
    result = classified(*flags, "--protocol", "both", "--epochs", 2)
    assert "has no official division" in result.stdout
    assert "WARNING: this split separates no recordings" in result.stdout
    assert set(json.loads((tmp_path / "results" / "result.json").read_text())["protocols"]) == {"official"}


def test_control_features_of_other_clips(tmp_path: Path) -> None:
    features = grouped_features()
    features.meta = {"dataset": "esc50"}
    features.save(tmp_path / "features.pt")
    features.rows(np.arange(100)).save(tmp_path / "fewer.pt")
    flags = ("--features", tmp_path / "features.pt", "--output-dir", tmp_path / "results", "--feature-dim", 24)
    result = classified(*flags, "--control-features", tmp_path / "fewer.pt")
    assert result.returncode == 2
    assert "lacks 140 of the clips" in result.stderr


def saved(features: FeatureSet, path: Path) -> Path:
    features.meta = {"dataset": "esc50"}
    path.parent.mkdir(exist_ok=True)
    features.save(path)
    return path


def test_other_controls_are_another_run(tmp_path: Path) -> None:
    features = grouped_features()
    noise = [replace(features, features=torch.randn(len(features), 24)) for _ in range(3)]
    one, other = saved(noise[0], tmp_path / "a" / "f.pt"), saved(noise[1], tmp_path / "b" / "f.pt")
    flags = ("--features", saved(features, tmp_path / "features.pt"), "--output-dir", tmp_path / "results")
    options = ("--feature-dim", 24, "--epochs", 2, "--control-features", one, other)
    result = classified(*flags, *options)
    assert result.returncode == 0, result.stderr
    # Two files of one name are told apart by their folders.
    assert "f, linear" in result.stdout
    assert "b/f, linear" in result.stdout
    saved(noise[2], other)
    changed = classified(*flags, *options)
    assert changed.returncode == 2
    assert "control_sha256 was" in changed.stderr


def test_nothing_of_an_earlier_run_stays(tmp_path: Path) -> None:
    flags = ("--features", saved(grouped_features(), tmp_path / "f.pt"), "--output-dir", tmp_path / "results")
    flags = (*flags, "--feature-dim", 24, "--epochs", 2)
    assert classified(*flags, "--protocol", "both", "--markdown", "--label-fractions", 0.5).returncode == 0
    assert (tmp_path / "results" / "random_predictions.csv").exists()
    (tmp_path / "results" / "notes.txt").write_text("mine")
    assert classified(*flags, "--overwrite").returncode == 0
    record = json.loads((tmp_path / "results" / "result.json").read_text())
    left = {path.name for path in (tmp_path / "results").iterdir()}
    assert left == {"result.json", "notes.txt", *record["files"]}


def test_a_fold_that_can_spare_nothing_stands_beside_others(tmp_path: Path) -> None:
    features = made_up_features(per_fold=6, folds=2)
    keep = np.flatnonzero((features.labels != 3) | (features.folds != 1))
    features = features.rows(
        np.sort(np.append(keep, np.flatnonzero((features.labels == 3) & (features.folds == 1))[:1]))
    )
    flags = ("--features", saved(features, tmp_path / "f.pt"), "--output-dir", tmp_path / "results")
    result = classified(*flags, "--epochs", 2)
    assert result.returncode == 0, result.stderr
    assert "20% of the training clips (1 of 2 fits), or nothing: the last epoch is kept (1 of 2 fits)" in " ".join(
        result.stdout.split()
    )


def test_ones_own_configuration_goes_over_the_tuned_recipe(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("recipe: tuned\nepochs: 3\n")
    flags = ("--features", saved(grouped_features(), tmp_path / "f.pt"), "--output-dir", tmp_path / "results")
    assert classified(*flags, "--feature-dim", 24, "--config", tmp_path / "own.yaml").returncode == 0
    settings = json.loads((tmp_path / "results" / "result.json").read_text())["config"]
    assert settings["recipe_linear"]["epochs"] == 3
    assert settings["recipe_linear"]["batch_size"] == TUNED["linear"].batch_size


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--whiten-eps", 0.5), "--whiten-eps is the strength of whitening; add --scaler whiten"),
        (("--seed", 2**32 - 1, "--seeds", 2), "end beyond 4294967295"),
        (("--label-fractions", 2), "label_fraction must be a number from 1e-06 to 1"),
        (("--protocol", "fair"), "protocol must be one of official, random, both"),
    ],
)
def test_flags_that_make_no_sense(flags: tuple, words: str, tmp_path: Path) -> None:
    features = saved(grouped_features(), tmp_path / "f.pt")
    result = classified("--features", features, "--output-dir", tmp_path / "results", "--feature-dim", 24, *flags)
    assert result.returncode == 2
    assert words in result.stderr
    assert not (tmp_path / "results").exists()
