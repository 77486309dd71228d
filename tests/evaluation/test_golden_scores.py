"""The scores of the published features, to the digits that the README prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.cli import classify_main
from common.evaluation.record import RunRecord
from common.text_table import percent
from esc50_feature_fc.esc50 import TASK
from tests.support.samples import SHARED, needs_shared

FEATURES = SHARED / "reference_features" / "esc50_features_audiosep.pt"
# Rounding depends on the kind of CPU, and training in batches of 8 amplifies it: with the paper recipe the three-layer head
# scored 39.9, 39.5 and 39.0 on three CPUs; the linear head scored the same.
TOLERANCE = {"linear": 0.0005, "three_layer": 0.0095}


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "linear", "three_layer"), [("paper", 45.6, 39.9), ("tuned", 64.7, 67.4)], ids=["paper", "tuned"]
)
def test_scores_of_the_published_features(recipe: str, linear: float, three_layer: float, tmp_path: Path) -> None:
    classify_main(
        TASK, ["--features", str(FEATURES), "--output-dir", str(tmp_path), "--seeds", "5", "--recipe", recipe]
    )
    heads = RunRecord.load(tmp_path / "result.json").protocols["official"].heads
    assert heads["linear"].score == pytest.approx(linear / 100, abs=TOLERANCE["linear"])
    assert heads["three_layer"].score == pytest.approx(three_layer / 100, abs=TOLERANCE["three_layer"])
    assert percent(heads["linear"].score) == f"{linear}"
