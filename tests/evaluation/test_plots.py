"""Figures: in every format, the same bytes for the same results, and drawn again without fitting."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from common.evaluation import plots
from common.evaluation.plots import plot_confusion
from tests.support.heads import classify, draw_nothing, saved, small_features

STARTS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


@pytest.mark.parametrize("kind", STARTS)
def test_the_same_results_give_the_same_file(kind: str, tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.{kind}"
        plot_confusion(np.eye(3, dtype=int) * 5, ["a", "b_c", "d"], "made up", path)
        written.append(path.read_bytes())
    assert written[0] == written[1] and written[0].startswith(STARTS[kind])


def test_another_format_is_drawn_without_fitting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)
    features = saved(small_features(), tmp_path / "features.pt")
    flags = ("--features", features, "--output-dir", tmp_path / "out", "--epochs", 2, "--device", "cpu")
    classify(*flags)
    before = (tmp_path / "out" / "predictions.pt").stat().st_mtime_ns
    again = classify(*flags, "--figure-format", "svg")
    assert "Nothing to do" in again.words and "figures drawn as svg" in again.words
    assert (tmp_path / "out" / "predictions.pt").stat().st_mtime_ns == before
    drawn = sorted(path.stem for path in (tmp_path / "out").glob("*.svg"))
    assert drawn and drawn == sorted(path.stem for path in (tmp_path / "out").glob("*.png"))
    assert "figures drawn" not in classify(*flags, "--figure-format", "svg").words
    classify(*flags, "--plain")
    plain = [path.stem.removesuffix("_plain") for path in (tmp_path / "out").glob("*_plain.png")]
    assert sorted(plain) == drawn
    # A new fit replaces all of them.
    classify(*flags, "--overwrite", "--seed", 1)
    assert not [*(tmp_path / "out").glob("*.svg"), *(tmp_path / "out").glob("*_plain.*")]


def test_what_a_matrix_leaves_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    for count, words in ((5, "in brackets: predictions"), (30, "shares of 10 % or more"), (80, "too many for numbers")):
        plot_confusion(np.eye(count, dtype=int), [f"c{n}" for n in range(count)], "made up", tmp_path / "c.png")
        assert words in drawn[-1].axes[0].get_xlabel()


@pytest.mark.parametrize("name", ["Ba$$in", "$x$ and $", "猫", "a_b^c{d}", "\\frac"])
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_names_are_shown_as_they_are(
    name: str, kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder, capsys: pytest.CaptureFixture[str]
) -> None:
    plots._note_missing_letters.cache_clear()
    path = tmp_path / f"{name[:2].strip(chr(92))}.{kind}"
    for _ in range(2):
        plot_confusion(np.eye(2, dtype=int), [name, "other"], name, path)
    if kind == "svg":
        assert name.replace("_", " ") in html.unescape(path.read_text(encoding="utf-8"))
    assert not recwarn.list
    assert capsys.readouterr().out.count("no font here") == ("猫" in name and len(plots._fonts()) == 1)
