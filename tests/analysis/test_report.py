"""The report in a real browser: what is shown is what was recorded, and a reader can use it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from analysis.maps import FeatureMap
from analysis.report_page.clips import draw_sounds
from analysis.report_page.page import ReportedRun, render
from analysis.scores import Run, read_runs
from analysis.studies import STUDIES
from common.cli import classify_main
from common.features import FeatureSet
from tests.support.browser import BROWSER, wait_until
from tests.support.heads import draw_nothing

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
LARGE = 30_000  # clips


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A real run of ESC-50's classification, on made-up features; clips have awkward names."""
    folder = tmp_path_factory.mktemp("results")
    names = ["8975", "</script><b>cat</b>", "103"]  # as of speakers: names, not numbers
    labels = torch.arange(60) % 3
    values = np.random.default_rng(0).standard_normal((60, 16)).astype(np.float32)
    FeatureSet(
        torch.from_numpy(values) + 0.1 * labels[:, None],
        labels,
        names,
        [f"audio/clip <{row}> #1%.wav" for row in range(60)],
        folds=torch.arange(60) // 3 % 5 + 1,
        meta={"dataset": "esc50", "kind": "untrained", "checkpoint": "random:0", "release": "untrained"},
    ).save(folder / "features.pt")
    where = ["--features", str(folder / "features.pt"), "--output-dir", str(folder), "--feature-dim", "16"]
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        classify_main(STUDIES["esc50"].task, [*where, "--epochs", "3", "--protocol", "both", "--device", "cpu"])
    (one,) = read_runs(folder)
    return one


def made_map(one: Run) -> FeatureMap:
    """Dots at random places."""
    count = len(one.features)
    points = np.random.default_rng(1).standard_normal((count, 2)).astype(np.float32)
    return FeatureMap(np.arange(count), points, f"A map of {count} clips.")


def write_report(one: Run, folder: Path, audio: Path | None = None, times: int = 1) -> Path:
    """A report of one run, or of the same one several times."""
    path = folder / "report.html"
    reported = [ReportedRun(one, made_map(one), audio or folder / "nowhere", None) for _ in range(times)]
    spectrograms = draw_sounds([one], {"esc50": audio}, 20) if audio else None
    path.write_text(render(reported, folder, None, spectrograms))
    return path


def write_clips(one: Run, folder: Path) -> None:
    """Half a second of noise as every clip of a run."""
    (folder / "audio").mkdir(parents=True)
    for clip in one.features.clip_ids:
        soundfile.write(folder / clip, 0.1 * np.random.default_rng(0).standard_normal(8000), 16_000)


@pytest.fixture(scope="module")
def path(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of that run, for tests that look at it."""
    return write_report(run, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A report in the browser, once it is ready.

    Attributes:
        page: playwright's.
        complaints: of the console; any request but for the file itself is one too.
    """

    def __init__(self, context: Any, path: Path) -> None:
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", self._note_message)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._note_request)
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready=yes]")

    def _note_message(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _note_request(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.complaints.append(request.url)

    def hover(self, row: int) -> None:
        """Move the mouse to a clip's dot."""
        self.page.hover("#run0-map", position=self._place_of(row))

    def click(self, row: int) -> None:
        """Click a clip's dot."""
        self.page.click("#run0-map", position=self._place_of(row))

    def colours(self) -> int:
        """How many pixels of the map have a colour."""
        count: int = self.page.evaluate(
            "() => { const map = document.getElementById('run0-map'); const pixels = map.getContext('2d')"
            ".getImageData(0, 0, map.width, map.height).data; return pixels.filter((value, place) => place % 4 === 3 && value).length; }"
        )
        return count

    def _place_of(self, row: int) -> dict[str, float]:
        """Where a clip's dot is, within the map's area."""
        place: dict[str, float] = self.page.evaluate(
            "row => { const map = document.getElementById('run0-map'); const clips = JSON.parse(data.textContent).runs[0];"
            "return { x: 8 + clips.x[row] * (map.clientWidth - 16), y: 8 + clips.y[row] * (map.clientHeight - 16) }; }",
            row,
        )
        return place


@pytest.fixture
def open_report(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Opens reports, each as a new user would; they are closed after the test."""
    contexts = []

    def open_it(path: Path, width: int = 1280, **options: Any) -> Opened:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        return Opened(contexts[-1], path)

    yield open_it
    for context in contexts:
        context.close()


Open = Callable[..., Opened]


@needs_browser
def test_the_report_opens_without_errors_and_shows_what_was_recorded(open_report: Open, run: Run, path: Path) -> None:
    report = open_report(path)
    page = report.page
    assert report.complaints == []
    record = json.loads((run.folder / "result.json").read_text())
    for place, name in enumerate(("official", "random")):
        shown = page.evaluate(
            "place => [...document.querySelectorAll('#run0 > details > .table')[place].querySelectorAll('tbody tr')]"
            ".map(row => [...row.children].map(cell => cell.textContent))",
            place,
        )
        means = {row[0]: row[1] for row in shown}
        for head, scored in record["protocols"][name]["heads"].items():
            assert means[head.replace("_", "-")] == f"{100 * scored['mean']['accuracy']:.1f}"
    wait_until(page, "[...document.images].every(image => image.complete && image.naturalWidth > 100 && image.alt)")
    # The classes, and two training curves of the better head.
    assert page.evaluate("document.images.length") == 3
    classes = page.evaluate(
        "[...document.querySelectorAll('#run0 details details tbody tr')].map(row => [...row.children].map(cell => cell.textContent))"
    )
    best = max(record["protocols"]["official"]["heads"].values(), key=lambda head: head["mean"]["accuracy"])
    scores = dict(zip(run.features.class_names, best["per_class"]["f1"], strict=True))
    assert {row[0]: row[1] for row in classes} == {name: f"{100 * score:.1f}" for name, score in scores.items()}
    assert "</script><b>cat</b>" in page.inner_text("#run0-filter")
    assert page.evaluate("document.querySelectorAll('b').length") == 0  # a name is never markup


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_first_screen_answers_the_report_s_question(open_report: Open, run: Run, path: Path, width: int) -> None:
    page = open_report(path, width).page
    assert page.inner_text("h1") == "How good are these frozen features?"
    assert "No answer yet" in page.inner_text(".answer")  # of an untrained encoder
    best, other = page.evaluate(
        "[...document.querySelectorAll('table.bars tbody tr')].map(row => [...row.children].map(cell => cell.innerText))"
    )
    protocol = run.record.protocols["official"]
    assert page.inner_text("table.bars caption strong") == "ESC-50 (60 of 2,000 clips)"
    assert best[2].startswith(f"{100 * protocol.heads[protocol.best_head].score:.1f}") and best[3] == "highest score"
    assert other[3] in ("not significantly worse", "significantly worse")
    for part in ("table.bars", "nav"):
        box = page.evaluate(f"document.querySelector('{part}').getBoundingClientRect().toJSON()")
        assert box["bottom"] < 900 and box["right"] <= width  # the first screen, also on a phone


@needs_browser
def test_a_click_on_a_heading_sorts_the_table(open_report: Open, path: Path) -> None:
    page = open_report(path).page
    table = "#summary table.sorts"
    column = page.evaluate(
        f"[...document.querySelectorAll('{table} th')].findIndex(each => each.textContent === 'linear')"
    )

    def values() -> list[float]:
        cells = f"[...document.querySelectorAll('{table} tbody tr')].map(row => row.cells[{column}].textContent)"
        return [float(each) for each in page.evaluate(cells)]

    button = page.locator(f"{table} thead button").nth(column)
    button.click()
    assert values() == sorted(values(), reverse=True) and len(values()) == 2
    button.press("Enter")
    assert values() == sorted(values())
    assert page.get_attribute(f"{table} th:nth-child({column + 1})", "aria-sort") == "ascending"


@needs_browser
def test_the_map_shows_filters_and_plays_clips(open_report: Open, run: Run, path: Path) -> None:
    report = open_report(path)
    page, features = report.page, run.features
    report.hover(7)
    hover = page.inner_text("#run0-maps .tip")
    best = run.record.protocols["official"].best_head
    table = run.predictions()
    said = dict(zip(table["clip_id"], table[best], strict=True))
    clip = features.clip_ids[7]
    assert clip in hover
    assert f"class: {features.class_names[7 % 3]}" in hover
    assert set(said) == set(features.clip_ids)

    everything = report.colours()
    page.select_option("#run0-filter", "2")
    assert page.inner_text("#run0-count").startswith("20 clips")
    assert 0 < report.colours() < everything
    page.select_option("#run0-filter", "")
    assert report.colours() == everything
    page.select_option("#run0-colour", "right")
    assert page.inner_text("#run0-legend-right").split("\n") == ["right", "wrong", "never tested"]
    assert not page.is_visible("#run0-legend-class")
    right = sum(said[clip] == features.class_names[row % 3] for row, clip in enumerate(features.clip_ids))
    assert right == round(60 * run.record.protocols["official"].heads[best].score)
    assert page.inner_text("#run0-count") == f"60 clips, {right} of 60 tested ones right"

    report.click(7)
    wait_until(page, "document.getElementById('run0-player').textContent.includes('cannot be played')")
    assert clip in page.inner_text("#run0-player")


@needs_browser
def test_a_click_plays_the_clip_from_the_folder_beside_it_and_shows_its_spectrogram(
    open_report: Open, run: Run, tmp_path: Path
) -> None:
    audio = tmp_path / "ESC 50"
    write_clips(run, audio)
    report = open_report(write_report(run, tmp_path, audio))
    page, picture = report.page, "document.querySelector('#run0-player img')"
    drawn = page.evaluate("Object.keys(content.spectrograms.esc50)")
    assert len(drawn) == 20
    for clip in (drawn[0], next(clip for clip in run.features.clip_ids if clip not in drawn)):
        report.click(run.features.clip_ids.index(clip))
        wait_until(page, "document.querySelector('#run0-player audio')?.duration === 0.5")
        assert page.evaluate(f"{picture} !== null") == (clip in drawn)
    report.click(run.features.clip_ids.index(drawn[0]))
    wait_until(page, f"{picture}.naturalWidth === 240 && {picture}.alt === 'Spectrogram of ' + {json.dumps(drawn[0])}")
    assert report.complaints == []


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_cell_of_the_confusion_matrix_says_what_it_counts_and_plays_it(
    open_report: Open, run: Run, tmp_path: Path, width: int
) -> None:
    write_clips(run, tmp_path)
    report = open_report(write_report(run, tmp_path, tmp_path), width)
    page, protocol, names = report.page, run.first_protocol, run.features.class_names
    counts = protocol.heads[protocol.best_head].confusion
    assert counts is not None
    predictions = run.predictions("official")
    side, margin = page.evaluate(
        "(() => { const canvas = document.getElementById('run0-matrix'); const margin = Math.min(150, 0.3 * canvas.parentElement"
        ".clientWidth); return [(canvas.clientWidth - margin) / 3, margin]; })()"
    )
    for truth, said in ((0, 1), (2, 2)):
        place = {"x": margin + (said + 0.5) * side, "y": margin + (truth + 0.5) * side}
        page.hover("#run0-matrix", position=place)
        percent = f"{100 * counts[truth][said] / sum(counts[truth]):.1f} %"
        assert f"{counts[truth][said]} of 20 clips, {percent}" in page.inner_text(".matrix .tip")
        page.click("#run0-matrix", position=place)
        is_there = (predictions["class_name"] == names[truth]) & (predictions[protocol.best_head] == names[said])
        assert is_there.sum() == counts[truth][said]
        heard = page.inner_text("#run0-heard")
        assert f"(1 of {counts[truth][said]})" in heard and heard.partition(": ")[0] in set(
            predictions[is_there]["clip_id"]
        )
    assert report.complaints == []


@needs_browser
def test_two_maps_stand_side_by_side_and_mark_the_same_clip(open_report: Open, run: Run, tmp_path: Path) -> None:
    page = open_report(write_report(run, tmp_path, times=2)).page
    assert page.locator("#run0-maps .map").count() == 1
    for _ in range(2):  # also once it was taken away
        page.select_option("#run0-beside", "1")
        first, second = (page.locator("#run0-maps .map").nth(place).bounding_box() for place in (0, 1))
        assert second["x"] > first["x"] + 300 and second["y"] == first["y"]
        page.evaluate("document.querySelector('#run0-maps').scrollIntoView()")
        place = page.evaluate(
            "(() => { const map = document.getElementById('run0-map'); const clips = content.runs[0];"
            "return { x: 8 + clips.x[7] * (map.clientWidth - 16), y: 8 + clips.y[7] * (map.clientHeight - 16) }; })()"
        )
        page.hover("#run0-map", position=place)
        rings = page.locator("#run0-maps .ring:visible")
        assert rings.count() == 2
        assert all(
            abs(float(ring.evaluate("ring => parseFloat(ring.style.left)")) - place["x"]) < 1 for ring in rings.all()
        )
        page.select_option("#run0-beside", "")
        assert page.locator("#run0-maps .map").count() == 1


@needs_browser
def test_confused_clips_are_heard_one_after_another(open_report: Open, run: Run, tmp_path: Path) -> None:
    write_clips(run, tmp_path)
    report = open_report(write_report(run, tmp_path, tmp_path))
    predictions = run.predictions("official")
    head = run.first_protocol.best_head
    row = report.page.locator(".pairs tbody tr", has=report.page.locator("button:enabled")).first
    truth, said = (cell.inner_text() for cell in row.locator("th, td").all()[:2])
    confused = predictions[(predictions["class_name"] == truth) & (predictions[head] == said)]["clip_id"]
    heard = set()
    for number in range(1, len(confused) + 1):
        row.locator("button").click()
        text = report.page.inner_text("#run0-heard")
        assert f"{truth}, taken for {said} ({number} of {len(confused)})" in text
        heard.add(text.partition(f": {truth}")[0])
    assert heard == set(confused) and report.complaints == []


@needs_browser
@pytest.mark.parametrize(("theme", "width"), [pytest.param("light", 1280, marks=pytest.mark.slow), ("dark", 390)])
def test_the_report_is_accessible_and_fits_the_screen(open_report: Open, path: Path, theme: str, width: int) -> None:
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="axe-core-python is not installed")
    report = open_report(path, width, color_scheme=theme)
    found = axe.Axe().run(report.page)["violations"]
    assert [(each["id"], each["nodes"][0]["html"][:120]) for each in found] == []
    assert report.page.evaluate("document.documentElement.scrollWidth") <= width


@needs_browser
def test_a_printed_report_has_no_controls(open_report: Open, path: Path) -> None:
    page = open_report(path).page
    page.emulate_media(media="print")
    assert page.is_visible("img") and not page.is_visible(".controls")
    assert page.pdf()[:4] == b"%PDF"


@needs_browser
def test_a_large_map_is_drawn_as_pixels(open_report: Open, run: Run, tmp_path: Path, no_figures: None) -> None:
    """The page's elements do not grow with the number of clips."""
    rows = np.arange(LARGE) % len(run.features)
    large = Run(run.study, run.folder, run.record)
    large.__dict__["features"] = FeatureSet(  # what the cached property would read from the file
        run.features.features[rows],
        run.features.labels[rows],
        run.features.class_names,
        [f"audio/clip {row}.wav" for row in range(LARGE)],
    )
    report = open_report(write_report(large, tmp_path))
    assert report.page.inner_text("#run0-count") == f"{LARGE:,} clips"
    assert report.page.evaluate("document.querySelectorAll('*').length") < 1000
    assert report.complaints == []
