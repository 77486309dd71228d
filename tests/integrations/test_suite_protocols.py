"""The emulated protocols of other suites: their clips and folds are theirs, and what leaks scores higher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis import suite_protocols
from common.datasets import Prepared
from common.features import FeatureSet
from integrations.suite_protocols import divisions, logistic_regression, protocol_rows, with_few_clips
from tests.support.heads import SIZE, fit_config, saved, small_features


def related() -> FeatureSet:
    """Pairs of nearly equal clips within a fold, of classes that are otherwise indistinguishable."""
    features = small_features(folds=5, per_fold=8)
    rng = np.random.default_rng(0)
    values = np.repeat(rng.standard_normal((len(features) // 2, SIZE)), 2, axis=0)
    values += 0.01 * rng.standard_normal(values.shape)
    labels = torch.from_numpy(np.repeat(rng.permutation(np.arange(len(features) // 2) % 4), 2))
    folds = torch.from_numpy(np.repeat(np.arange(len(features) // 2) % 5 + 1, 2))
    return replace(features, features=torch.from_numpy(values).float(), labels=labels, folds=folds)


def test_mtebs_training_clips_are_eight_of_each_class() -> None:
    features, rows = small_features(folds=5, per_fold=8), np.arange(160)
    (first, test), (second, _) = with_few_clips(features, [(rows[:120], rows[120:])] * 2)
    assert features.labels[first].bincount().tolist() == [8] * 4 and len(set(first.tolist())) == 32
    assert max(first) < 120 and test.tolist() == rows[120:].tolist()
    assert set(first.tolist()) != set(second.tolist())  # shuffled once more for the next fold


def test_random_folds_leak_what_is_related() -> None:
    features = related()
    official, mixed = divisions(features)
    for folds in (official, mixed):
        assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(features)))
    assert all(len(features.folds[test].unique()) == 1 for _, test in official)
    honest = logistic_regression(features, official, is_scaled=True)
    leaking = logistic_regression(features, mixed, is_scaled=True)
    assert leaking > honest + 0.1


def test_the_table_has_every_protocol() -> None:
    config = fit_config(epochs=2)
    rows = protocol_rows(Prepared(related()), config, 1)
    assert [suite for suite, _, _ in rows] == ["this project"] * 2 + [""] * 3 + ["MTEB", "", "X-ARES", ""]
    assert all(0 <= accuracy <= 1 for _, _, accuracy in rows)
    assert rows[-2][2] >= rows[-1][2]  # the best epoch is no worse than the last


def test_the_command_writes_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(replace(related(), class_names=["dog", "rooster", "pig", "cow"]), tmp_path / "features.pt")
    flags = ["--features", str(path), "--epochs", "2", "--seeds", "1", "--markdown"]
    monkeypatch.setattr("sys.argv", ["suite_protocols.py", "esc50", *flags])
    suite_protocols.main()
    assert "| MTEB | random folds, not standardised, 8 clips a class |" in capsys.readouterr().out
