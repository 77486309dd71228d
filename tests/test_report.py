"""The report in a real browser: what is shown is what was recorded, and a reader can use it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.report_page import render
from analysis.studies import STUDIES, Run, read_runs
from common.cli import classify_main
from common.features import FeatureSet

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
OPENS_IN_S = 3.0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """One real run of ESC-50's classification, on made-up features; clips have awkward names."""
    folder = tmp_path_factory.mktemp("results")
    rng = np.random.default_rng(0)
    names = ["8975", "</script><b>cat</b>", "103"]  # as of speakers: names, not numbers
    labels = torch.arange(60) % 3
    features = torch.from_numpy(rng.standard_normal((60, 384)).astype(np.float32)) + 0.1 * labels[:, None]
    clip_ids = [f"audio/clip <{row}> #1%.wav" for row in range(60)]
    meta = {"dataset": "esc50", "checkpoint": "random:0", "release": "untrained"}
    FeatureSet(features, labels, names, clip_ids, folds=torch.arange(60) // 3 % 5 + 1, meta=meta).save(
        folder / "features.pt"
    )
    task = STUDIES["esc50"].task
    argv = [
        "--features",
        str(folder / "features.pt"),
        "--output-dir",
        str(folder),
        "--epochs",
        "3",
        "--protocol",
        "both",
    ]
    classify_main(task, [*argv, "--device", "cpu"])
    return read_runs(folder)


def made_map(one: Run) -> dict:
    count = len(one.features)
    points = np.random.default_rng(1).standard_normal((count, 2)).astype(np.float32)
    return {"rows": np.arange(count), "points": points, "caption": f"A map of {count} clips."}


def write_report(runs: list[Run], folder: Path, audio: Path | None = None) -> Path:
    path = folder / "report.html"
    roots = [audio or folder / "nowhere"] * len(runs)
    path.write_text(render(runs, [made_map(one) for one in runs], roots, {}, None, folder))
    return path


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser, path: Path, **options):
    """The page, once it is ready, and what it complained of; any request but for the file itself is a complaint."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}, **options).new_page()
    complaints: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else complaints.append(request.url),
    )
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    return page, complaints


def see_everything(page) -> None:
    for chart in page.query_selector_all(".chart"):
        chart.scroll_into_view_if_needed()
        page.wait_for_function(
            "id => document.getElementById(id).querySelector('.main-svg')", arg=chart.get_attribute("id")
        )


@needs_browser
def test_it_opens_without_a_complaint_and_shows_what_was_recorded(browser, runs, tmp_path) -> None:
    page, complaints = opened(browser, write_report(runs, tmp_path))
    see_everything(page)
    assert complaints == []
    record = json.loads((runs[0].folder / "result.json").read_text())
    for place, name in enumerate(("official", "random")):
        shown = page.evaluate(
            "place => [...document.querySelectorAll('#run0 > .table')[place].querySelectorAll('tbody tr')]"
            ".map(row => [...row.children].map(cell => cell.textContent))",
            place,
        )
        means = {row[0]: row[1] for row in shown}
        for head, scored in record["protocols"][name]["heads"].items():
            assert means[head.replace("_", "-")] == f"{100 * scored['mean']['accuracy']:.1f}"
    drawn = page.evaluate("document.getElementById('run0-confusion').data[0].z")
    axes = page.evaluate(
        "[...document.querySelectorAll('#run0-confusion, #run0-classes')].map(chart => chart._fullLayout.yaxis.type)"
    )
    assert axes == ["category", "category"]
    best = max(record["protocols"]["official"]["heads"].values(), key=lambda head: head["mean"]["accuracy"])
    confusion = np.array(best["confusion"])
    np.testing.assert_allclose(drawn, 100 * confusion / confusion.sum(axis=1, keepdims=True))
    assert "</script><b>cat</b>" in page.inner_text("#run0-filter")


@needs_browser
def test_hover_filter_and_click(browser, runs, tmp_path) -> None:
    page, _ = opened(browser, write_report(runs, tmp_path))
    page.locator("#run0-map").scroll_into_view_if_needed()
    page.wait_for_selector("#run0-map .points path")
    page.hover("#run0-map .nsewdrag", position=place_of(page, 7))
    page.wait_for_selector("#run0-map .hoverlayer text")
    hover = page.text_content("#run0-map .hoverlayer")
    said = runs[0].predictions()["linear"]
    clip = runs[0].features.clip_ids[7]
    assert clip in hover
    assert f"class: {runs[0].features.class_names[7 % 3]}" in hover
    assert set(said) == set(runs[0].features.clip_ids)

    page.select_option("#run0-filter", "2")
    page.wait_for_function("document.querySelectorAll('#run0-map .points path').length === 20")
    assert page.inner_text("#run0-count").startswith("20 clips")
    page.select_option("#run0-filter", "")
    page.wait_for_function("document.querySelectorAll('#run0-map .points path').length === 60")
    right = [said[clip] == runs[0].features.class_names[row % 3] for row, clip in enumerate(runs[0].features.clip_ids)]
    best = runs[0].record["protocols"]["official"]["heads"]
    if best["linear"]["mean"]["accuracy"] > best["three_layer"]["mean"]["accuracy"]:
        assert page.inner_text("#run0-count") == f"60 clips, {sum(right)} of 60 tested ones right"

    position = place_of(page, 7)
    page.hover("#run0-map .nsewdrag", position=position)
    page.click("#run0-map .nsewdrag", position=position)
    page.wait_for_function("document.getElementById('run0-player').textContent.includes('cannot be played')")
    assert clip in page.inner_text("#run0-player")


def place_of(page, row: int) -> dict[str, float]:
    """Where a clip's dot is, within the map's area."""
    return page.evaluate(
        "row => { const map = document.getElementById('run0-map'); const { xaxis, yaxis } = map._fullLayout;"
        "return { x: xaxis.l2p(map.data[0].x[row]), y: yaxis.l2p(map.data[0].y[row]) }; }",
        row,
    )


@needs_browser
def test_a_click_plays_the_clip_from_the_folder_beside_it(browser, runs, tmp_path) -> None:
    import soundfile

    audio = tmp_path / "ESC 50"
    (audio / "audio").mkdir(parents=True)
    clip = runs[0].features.clip_ids[7]
    soundfile.write(audio / clip, 0.1 * np.random.default_rng(0).standard_normal(8000), 16_000)
    page, complaints = opened(browser, write_report(runs, tmp_path, audio))
    page.locator("#run0-map").scroll_into_view_if_needed()
    page.wait_for_selector("#run0-map .points path")
    position = place_of(page, 7)
    page.hover("#run0-map .nsewdrag", position=position)
    page.click("#run0-map .nsewdrag", position=position)
    page.wait_for_function("document.querySelector('#run0-player audio')?.duration === 0.5")
    assert complaints == []


@needs_browser
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_it_is_accessible_and_fits_the_screen(browser, runs, tmp_path, theme, width) -> None:
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="axe-core-python is not installed")
    page, _ = opened(browser, write_report(runs, tmp_path), color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 850})
    see_everything(page)
    found = axe.Axe().run(page)["violations"]
    assert [(each["id"], each["nodes"][0]["html"][:120]) for each in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@needs_browser
def test_it_prints(browser, runs, tmp_path) -> None:
    page, _ = opened(browser, write_report(runs, tmp_path))
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('.chart')].every(chart => chart.querySelector('.main-svg'))")
    assert not page.is_visible(".controls")
    assert page.pdf()[:4] == b"%PDF"


@needs_browser
@pytest.mark.parametrize("count", [2_000, 30_000])
def test_a_large_page_opens_in_time(browser, runs, tmp_path, count) -> None:
    one = runs[0]
    rows = np.arange(count) % len(one.features)
    many = FeatureSet(
        one.features.features[rows],
        one.features.labels[rows],
        one.features.class_names,
        [f"audio/clip {row}.wav" for row in range(count)],
    )
    large = Run(one.study, one.folder, one.record)
    large.__dict__["features"] = many  # what the cached property would read from the file
    path = write_report([large], tmp_path)
    opened(browser, path)  # the browser's own start is not the page's
    started = time.monotonic()
    page, complaints = opened(browser, path)
    page.wait_for_function("document.getElementById('chart-summary').querySelector('.main-svg')")
    taken = time.monotonic() - started
    page.locator("#run0-map").scroll_into_view_if_needed()
    page.wait_for_function(f"document.getElementById('run0-count').textContent.startsWith('{count:,} clips')")
    assert [text for text in complaints if "GPU stall" not in text and "WebGL" not in text] == []
    assert taken < OPENS_IN_S
