"""Similar sounds: exact, from any files of embeddings, with tables that probe.py takes and a page to label by ear."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.features import FeatureSet
from common.heads import fit_scaler
from own_sounds.embed import embed_main
from own_sounds.find import find_main
from own_sounds.search import clip_of, nearest, varied
from own_sounds.sounds import Source
from tests.support.own_sounds import tone
from tests.support.scripts import call, refused


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve tones of three pitches, 1 s each; and their embeddings, of the files and of windows of half a second."""
    root = tmp_path_factory.mktemp("sounds")
    for number in range(12):
        tone(root / "tones" / f"{number}.wav", 300 * 3 ** (number % 3), number, seconds=1)
    for name, flags in (("whole", ()), ("halves", ("--window", "0.5"))):
        embed_main([str(root / "tones"), "-o", str(root / f"{name}.pt"), "--encoder", "logmel", *flags])
    return root


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_what_is_found_is_exact() -> None:
    """The rows and cosines of a product with all rows, in blocks or not, with equal rows in their order."""
    values = np.random.default_rng(0).standard_normal((20_000, 8)).astype(np.float32)
    values[15_000] = values[3]
    scaler = fit_scaler("standard", values)
    rows, cosines = nearest(values[3], values, scaler, 5)
    units = scaler(values)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    expected = units @ units[3]
    assert rows.tolist() == np.argsort(-expected, kind="stable")[:5].tolist() and rows[:2].tolist() == [3, 15_000]
    np.testing.assert_allclose(cosines, expected[rows], atol=1e-6)


def test_a_varied_choice_is_one_of_each_cluster() -> None:
    centres = 10 * np.eye(4, 8, dtype=np.float32)
    values = np.repeat(centres, 30, axis=0) + np.random.default_rng(0).standard_normal((120, 8)).astype(np.float32)
    chosen = varied(values, fit_scaler("none", values), 4)
    assert sorted(row // 30 for row in chosen) == [0, 1, 2, 3]
    assert len(varied(values[:3], fit_scaler("none", values), 10)) == 3


def test_clips_like_a_sound_become_a_table_for_probe(sounds: Path, tmp_path: Path) -> None:
    """From files and from a segment; what is in the table already keeps its label."""
    table, query = tmp_path / "labels.csv", sounds / "tones" / "4.wav"  # the second pitch
    done = call(
        find_main,
        query,
        sounds / "whole.pt",
        "--audio",
        sounds / "tones",
        "-k",
        4,
        "--csv",
        tmp_path / "f.csv",
        "--label",
        "mid",
        "--table",
        table,
    )
    assert done.returncode == 0, done.stderr
    found = rows_of(tmp_path / "f.csv")
    assert Path(found[0]["path"]) == query and float(found[0]["similarity"]) == pytest.approx(1, abs=1e-5)
    assert {int(Path(row["path"]).stem) % 3 for row in found} == {1}
    other = call(
        find_main,
        f"{sounds / 'tones' / '3.wav'}#0.0-0.5",
        sounds / "halves.pt",
        "--audio",
        sounds / "tones",
        "-k",
        8,
        "--label",
        "low",
        "--table",
        table,
    )
    assert other.returncode == 0, other.stderr
    again = call(
        find_main, query, sounds / "whole.pt", "--audio", sounds / "tones", "-k", 4, "--label", "x", "--table", table
    )
    assert "0 clips of 'x' added" in again.stdout and "4 were in it before, and keep their labels" in again.stdout
    clips = Source(table).read().clips
    assert [clip.labels for clip in clips] == [("mid",)] * 4 + [("low",)] * 8
    assert {int(clip.path.stem) % 3 for clip in clips[4:]} == {0} and all(clip.end_s for clip in clips[4:])


def test_several_files_are_searched_as_one_if_their_encoder_is_the_same(sounds: Path, tmp_path: Path) -> None:
    both = (sounds / "whole.pt", sounds / "halves.pt", "--audio", sounds / "tones", "--csv", tmp_path / "f.csv")
    assert call(find_main, sounds / "tones" / "4.wav", *both, "-k", 12).returncode == 0
    found = rows_of(tmp_path / "f.csv")
    assert {row["end"] for row in found} == {"", "0.5", "1.0"}
    features = FeatureSet.load(sounds / "halves.pt")
    features.meta["encoder"] = "another"
    features.save(tmp_path / "other.pt")
    message = refused(
        call(find_main, "--diverse", 3, sounds / "whole.pt", tmp_path / "other.pt", "--audio", sounds / "tones")
    )
    assert "were made with different settings (encoder: another and log-mel statistics)" in message


def test_where_the_sounds_are_must_be_known(sounds: Path, tmp_path: Path) -> None:
    shutil.copy(sounds / "whole.pt", tmp_path)
    assert "say where the sounds are: --audio FOLDER" in refused(call(find_main, "--diverse", 3, tmp_path / "whole.pt"))
    assert "give a sound and then files of embeddings" in refused(call(find_main, tmp_path / "whole.pt"))
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    flags = ("--audio", sounds / "tones", "--label", "x", "--table", tmp_path / "t.csv")
    assert "does not have the columns path, label, start, end, group" in refused(
        call(find_main, "--diverse", 3, tmp_path / "whole.pt", *flags)
    )


def test_an_id_means_a_file_or_a_segment_of_one(tmp_path: Path) -> None:
    (tmp_path / "odd.wav#1.0-2.0").touch()
    assert clip_of("odd.wav#1.0-2.0", tmp_path).start_s is None
    clip = clip_of("day.wav#2.5-None", tmp_path)
    assert (clip.path, clip.start_s, clip.end_s) == (tmp_path / "day.wav", 2.5, None)


def test_the_page_plays_clips_and_saves_their_labels(sounds: Path, tmp_path: Path) -> None:
    from tests.support.browser import BROWSER, opened, wait_until

    if BROWSER is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    page = tmp_path / "page.html"
    assert (
        call(find_main, "--diverse", 3, sounds / "whole.pt", "--audio", sounds / "tones", "--html", page).returncode
        == 0
    )
    with opened(page) as browser:
        browser.click("figure:nth-of-type(2) img")
        wait_until(browser, "document.querySelectorAll('audio')[1].currentTime > 0")
        browser.fill("figure:nth-of-type(1) input", 'a "b", c')
        browser.fill("figure:nth-of-type(3) input", "d")
        assert browser.text_content("#count") == "2 of 3 clips have labels"
        with browser.expect_download() as download:
            browser.click("#save")
        download.value.save_as(tmp_path / "labels.csv")
    assert [clip.labels for clip in Source(tmp_path / "labels.csv").read().clips] == [('a "b", c',), ("d",)]
