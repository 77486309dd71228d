"""Retrieval and clusters without a head: by hand, with a clip's own group left out, and at chance for noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis import neighbours
from analysis.neighbours import Neighbours, _retrieve, neighbours_of
from analysis.scores import read_runs
from common.arrays import Array
from common.features import FeatureSet
from tests.support.heads import classify, grouped_features, noise_like, saved, small_features

pytestmark = pytest.mark.usefixtures("no_figures")


def test_precisions_by_hand() -> None:
    angles = np.radians([0, 1, 3, 10, 60])
    values = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels, groups = np.array([0, 1, 0, 0, 1]), np.arange(5)
    (scores,) = _retrieve(values, labels, groups, np.array([0]))
    # By distance: 1 (of another class), 2, 3 (both count), 4. R is 2: precisions 0 and 1/2 at the two places.
    assert scores == pytest.approx((0, 2 / 4, (0 + 1 / 2) / 2, 2 / 4))
    # Without its group, 2 is left out: 1, 3, 4, of which one counts.
    (scores,) = _retrieve(values, labels, np.array([0, 1, 0, 3, 4]), np.array([0]))
    assert scores == pytest.approx((0, 1 / 3, 0, 1 / 3))
    # Nothing counts, since all of its class are of its group.
    (scores,) = _retrieve(values, labels, np.array([0, 1, 0, 0, 4]), np.array([0]))
    assert np.isnan(scores).all()
    # Several labels a clip: one in common is enough.
    several = np.array([[1, 1], [0, 1], [0, 0], [1, 0], [0, 0]], bool)
    (scores,) = _retrieve(values, several, groups, np.array([0]))
    assert scores[0] == 1 and scores[3] == 2 / 4


def scores_of(features: FeatureSet, tmp_path: Path) -> Neighbours:
    path = saved(features, tmp_path / "esc50_features_audiosep.pt")
    classify("--features", path, "--output-dir", tmp_path / "out", "--epochs", "1", "--overwrite")
    (run,) = read_runs(tmp_path / "out")
    return neighbours_of(run)


def test_twins_count_only_if_their_group_is_unknown(tmp_path: Path) -> None:
    features = grouped_features()
    known = scores_of(features, tmp_path / "known")
    unknown = scores_of(replace(features, groups=None), tmp_path / "unknown")
    assert unknown.p1 > known.p1 + 0.2
    assert known.p1_low < known.p1 < known.p1_high


def test_noise_is_at_chance_and_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    features = small_features(per_fold=20)
    real, noise = (scores_of(made, tmp_path / name) for name, made in (("a", features), ("b", noise_like(features, 1))))
    assert real.p1 > 0.4 > noise.p1 and abs(noise.p10 - noise.chance) < 0.05 and abs(noise.ari) < 0.05
    values, labels = features.features.numpy(), features.labels.numpy()
    order = np.random.default_rng(0).permutation(len(values))

    def means(rows: Array) -> Array:
        scores = [*_retrieve(values[rows], labels[rows], rows, np.arange(len(rows)))]
        averages: Array = np.mean(scores, axis=0)
        return averages

    assert means(order) == pytest.approx(means(np.arange(len(values))), abs=1e-6)


def test_the_command_writes_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores_of(small_features(), tmp_path)
    monkeypatch.setattr("sys.argv", ["neighbours.py", "--results", str(tmp_path)])
    neighbours.main()
    assert "mAP@R" in capsys.readouterr().out
    header, row = (tmp_path / "neighbours.csv").read_text(encoding="utf-8").splitlines()
    assert header.startswith("task,encoder,clips,queries") and row.startswith("esc50,")
    assert "Neighbours of a clip's own group" in (tmp_path / "neighbours.md").read_text(encoding="utf-8")
