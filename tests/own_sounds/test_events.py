"""Events in long recordings: from the probabilities of windows, in files that other programs read, and back."""

from __future__ import annotations

import csv
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from common.arrays import Array
from common.datasets import Clip
from common.datasets.audio import read_audio
from common.heads import TrainedHead
from own_sounds.predict import predict_main
from own_sounds.probe import probe_main
from own_sounds.sounds import Source
from own_sounds.timeline import Event, Heard, find_events, write_events, write_page
from own_sounds.windows import BACKGROUND, Windows, with_background
from tests.support.heads import draw_nothing
from tests.support.own_sounds import FAST, probe, tone
from tests.support.scripts import call, refused

NAMES = ["a", BACKGROUND, "b"]


def heard(probabilities: Array, window_s: float = 1.0, hop_s: float = 1.0) -> Heard:
    windows = [
        Clip(Path("night.wav"), start_s=place * hop_s, end_s=place * hop_s + window_s)
        for place in range(len(probabilities))
    ]
    return Heard(Clip(Path("night.wav")), "night.wav", windows, probabilities, None, np.zeros(len(probabilities), bool))


class Head:
    """The part of a head that events need."""

    class_names = NAMES
    scaling = None


def events_of(one: Heard, thresholds: tuple[float, ...] = (0.5, 0.5, 0.5)) -> list[Event]:
    return find_events(one, Head(), thresholds)  # type: ignore[arg-type]


def rows(*classes: str, probability: float = 0.8) -> Array:
    """Windows that are surely of these classes."""
    values = np.full((len(classes), len(NAMES)), (1 - probability) / 2, np.float32)
    values[np.arange(len(classes)), [NAMES.index(name) for name in classes]] = probability
    return values


def test_adjacent_windows_of_a_class_are_one_event() -> None:
    one = heard(rows("a", "a", BACKGROUND, "a", "b", "b"))
    spans = [(event.start_s, event.end_s, event.label) for event in events_of(one)]
    assert spans == [(0, 2, "a"), (3, 4, "a"), (4, 6, "b")]
    assert events_of(one, (0.9, 0.5, 0.5))[0].label == "b"  # every class has a threshold
    unknown = replace(one, is_unknown=np.array([False, True, False, False, False, False]))
    assert events_of(unknown)[0] == Event(0.0, 1.0, "a", pytest.approx(0.8))
    gap = heard(rows("a", "a"), hop_s=3.0)
    assert len(events_of(gap)) == 2  # what lies between the windows was not heard


def test_overlapping_windows_share_their_moments() -> None:
    """A moment has the mean of the windows that hold it: a call that two of three windows hold is heard where both do."""
    one = heard(rows(BACKGROUND, "a", "a", BACKGROUND), hop_s=0.5)  # of 1 s, from 0, 0.5, 1 and 1.5 s on
    spans, probabilities = one.moments
    np.testing.assert_allclose(spans, [(place / 2, (place + 1) / 2) for place in range(5)])
    np.testing.assert_allclose(probabilities[:, 0], [0.1, 0.45, 0.8, 0.45, 0.1], atol=1e-6)
    assert [(event.start_s, event.end_s) for event in events_of(one)] == [(1.0, 1.5)]
    assert [(event.start_s, event.end_s) for event in events_of(one, (0.4, 0.5, 0.5))] == [(0.5, 2.0)]


def test_windows_that_touch_leave_no_gap(tmp_path: Path) -> None:
    """0.7 + 0.1 is a little less than 0.8."""
    path = tone(tmp_path / "day.wav", 500, seconds=2)
    windows = Windows(0.1, 0.1).of_clip(Clip(path))
    one = Heard(Clip(path), "day.wav", windows, rows(*["a"] * len(windows)), None, np.zeros(len(windows), bool))
    assert [(event.start_s, event.end_s) for event in events_of(one)] == [(0.0, 2.0)]


def test_events_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    """By probe.py from all three formats; recordings of one name in two folders stay apart."""
    events = [[Event(0.5, 1.25, "a", 0.9), Event(2.0, 3.0, "b", 0.7)], [Event(1.0, 2.5, "a", 0.6)]]
    both = []
    for site in ("site A", "site B"):
        path = tone(tmp_path / site / "night.wav", 500, seconds=4)
        both.append(replace(heard(rows("a")), clip=Clip(path), name=f"{site}/night.wav"))
    write_events(both, events, tmp_path / "out")
    expected = {
        (one.clip.path, event.start_s, event.end_s, (event.label,))
        for one, found in zip(both, events, strict=True)
        for event in found
    }

    def read(place: Path) -> set[tuple[Path, float | None, float | None, tuple[str, ...]]]:
        return {(clip.path, clip.start_s, clip.end_s, clip.labels) for clip in Source(place).read().clips}

    assert read(tmp_path / "out" / "events.csv") == expected
    assert read(tmp_path / "out" / "raven") == expected
    for site in ("site A", "site B"):  # Audacity's labels lie beside the recording
        (tmp_path / site / "night.txt").write_bytes((tmp_path / "out" / "audacity" / site / "night.txt").read_bytes())
    assert read(tmp_path / "site A") | read(tmp_path / "site B") == expected


def test_other_programs_read_the_events(tmp_path: Path) -> None:
    crowsetta = pytest.importorskip("crowsetta", reason="crowsetta is not installed")
    one = replace(heard(rows("a")), clip=Clip(tone(tmp_path / "night.wav", 500, seconds=4)))
    write_events([one], [[Event(0.5, 1.25, "a", 0.9), Event(2.0, 3.0, "b", 0.7)]], tmp_path)
    raven = crowsetta.formats.bbox.Raven.from_file(tmp_path / "raven" / "night.Table.1.selections.txt").to_annot()
    boxes = [(box.onset, box.offset, box.label) for box in raven.bboxes]
    audacity = crowsetta.formats.seq.AudSeq.from_file(tmp_path / "audacity" / "night.txt").to_annot()
    segments = [(part.onset_s, part.offset_s, part.label) for part in audacity.seq.segments]
    assert boxes == segments == [(0.5, 1.25, "a"), (2.0, 3.0, "b")]


def test_background_lies_between_the_events(tmp_path: Path) -> None:
    path = tone(tmp_path / "night.wav", 500, seconds=10)
    events = [
        Clip(path, ("a",), group="g", start_s=2.0, end_s=3.0),
        Clip(path, ("b",), group="g", start_s=5.5, end_s=6.5),
    ]
    clips, (remark,) = with_background(events, 4)
    added = clips[2:]
    assert len(added) == 4 and "4 clips of 1 s" in remark and with_background(events, 4)[0] == clips
    assert {(clip.labels, clip.group) for clip in added} == {((BACKGROUND,), "g")}
    spans = sorted((clip.start_s or 0, clip.end_s or 0) for clip in [*events, *added])
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans)) and spans[-1][1] <= 10
    everything, (remark,) = with_background(events, 50)
    assert len(everything) == 2 + 7 and "43 more found no room" in remark  # 2 before, 2 between, 3 after
    unchanged, (advice,) = with_background(events, 0)
    assert unchanged == events and "--background N" in advice


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six recordings of 12 s of noise with three calls of two kinds each, and their labels of Raven."""
    root = tmp_path_factory.mktemp("recordings")
    for number in range(6):
        rng = np.random.default_rng(number)
        sound, lines = 0.01 * rng.standard_normal(12 * 16_000), ["Begin Time (s)\tEnd Time (s)\tSpecies"]
        for place, kind in enumerate(("high", "low", "high" if number % 2 else "low")):
            call_s = 1 + 4 * place + rng.integers(0, 3)
            tone(root / "call.wav", 3000 if kind == "high" else 400, seed=number, seconds=1)
            start = round(call_s * 16_000)
            sound[start : start + 16_000] += read_audio(root / "call.wav", 16_000)
            lines.append(f"{call_s}\t{call_s + 1}\t{kind}")
        soundfile.write(root / f"{number}.wav", sound, 16_000)
        (root / f"{number}.Table.1.selections.txt").write_text("\n".join(lines) + "\n")
    (root / "call.wav").unlink()
    return root


def test_a_detector_hears_calls_and_nothing_between_them(recordings: Path, tmp_path: Path) -> None:
    """From labels of Raven to events of Raven; without a background, all that is between is called something."""
    found = {}
    for background in (0, 6):
        out = tmp_path / f"out{background}"
        with pytest.MonkeyPatch.context() as patch:
            draw_nothing(patch)
            probe(recordings, "--label-column", "Species", "--output-dir", out, "--background", background, epochs=40)
        head = out / f"own_{recordings.name.lower()}_linear_classifier.pt"
        done = call(
            predict_main,
            head,
            recordings,
            "--window",
            1,
            "--events",
            out / "events",
            "--csv",
            out / "w.csv",
        )
        assert done.returncode == 0, done.stderr
        with (out / "events" / "events.csv").open() as file:
            found[background] = [
                (row["path"], float(row["start"]), float(row["end"]), row["label"]) for row in csv.DictReader(file)
            ]
        assert TrainedHead.load(head).thresholds is not None
    truth = [
        (str(clip.path), clip.start_s or 0.0, clip.end_s or 0.0, clip.class_name)
        for clip in Source(recordings, columns=(("label", "Species"),)).read().clips
    ]

    def overlap(first: tuple[str, float, float, str], second: tuple[str, float, float, str]) -> float:
        if (first[0], first[3]) != (second[0], second[3]):
            return 0
        common = min(first[2], second[2]) - max(first[1], second[1])
        return common / (max(first[2], second[2]) - min(first[1], second[1]))

    right = sum(any(overlap(event, call) >= 0.5 for call in truth) for event in found[6])
    assert right >= 0.9 * len(found[6]) and right >= 0.9 * len(truth)
    seconds = {background: sum(end - start for _, start, end, _ in events) for background, events in found.items()}
    assert seconds[6] < 22 < 60 < seconds[0]  # of 72 s, 18 with calls


def test_what_cannot_be_is_refused_before_the_work(recordings: Path, tmp_path: Path) -> None:
    assert "--events shows what is heard over time; add --window S" in refused(
        call(predict_main, tmp_path / "head.pt", recordings, "--events", tmp_path / "e")
    )
    assert "--threshold is that of events; add --events FOLDER or --html FILE" in refused(
        call(predict_main, tmp_path / "head.pt", recordings, "--window", 1, "--threshold", 0.5)
    )
    assert "give a folder" in refused(
        call(predict_main, tmp_path / "head.pt", recordings, "--window", 1, "--events", tmp_path / "events.csv")
    )
    (tmp_path / "file").touch()
    assert "cannot be written" in refused(
        call(predict_main, tmp_path / "head.pt", recordings, "--window", 1, "--events", tmp_path / "file")
    )
    table = tmp_path / "whole.csv"
    table.write_text(f"path,label\n{recordings}/0.wav,a\n{recordings}/1.wav,b\n")
    assert "--background 3: it takes a number above 0, and clips that are events with start and end" in refused(
        call(probe_main, table, "--background", 3, *FAST)
    )


def test_windows_without_overlap_are_as_they_were_cut(tmp_path: Path) -> None:
    path = tone(tmp_path / "day.wav", 500, seconds=2.5)
    windows = Windows(1.0, 1.0).of_clip(Clip(path))
    one = Heard(Clip(path), "day.wav", windows, rows("a", "a", "a"), None, np.zeros(3, bool))
    np.testing.assert_allclose(one.moments.spans, [(0, 1), (1, 2), (2, 2.5)])


def test_the_page_shows_and_plays_a_recording(tmp_path: Path) -> None:
    """Clicks, keys and zoom, at a desk and on a phone, light and dark; a name cannot end the page's script."""
    from tests.support.browser import BROWSER, opened, wait_until

    if BROWSER is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    path = tone(tmp_path / "night.wav", 500, seconds=150)
    windows = Windows(1.0, 0.5).of_clip(Clip(path))
    probabilities = rows(*["a" if 40 < place < 60 else BACKGROUND for place in range(len(windows))])
    one = Heard(Clip(path), "</script>.wav", windows, probabilities, None, np.zeros(len(windows), bool))
    write_page([one], [events_of(one)], NAMES, 16_000, tmp_path / "page.html")
    state = (
        "(() => { const map = document.querySelector('canvas'); const pixels = map.getContext('2d').getImageData(0, 0, "
        "map.width, map.height).data; return pixels.filter((value, place) => place % 4 === 3 && value).length; })()"
    )
    with opened(tmp_path / "page.html") as page:
        wait_until(page, f"{state} > 100000")  # the spectrogram is there
        assert page.text_content("h1") == "</script>.wav"
        page.click(".events button")
        wait_until(page, "document.querySelector('.clock').textContent > '00:20.9'")  # it plays from the event on
        page.focus("canvas")
        page.keyboard.press("Space")
        wait_until(page, "document.querySelector('.play').textContent === 'Play'")
        before = page.text_content(".clock")
        page.keyboard.press("ArrowRight")
        assert page.text_content(".clock") != before
        page.keyboard.press("n")
        page.keyboard.press("+")
        page.keyboard.press("0")
        page.click("canvas", position={"x": 400, "y": 50})
        wait_until(page, "document.querySelector('.play').textContent === 'Pause'")
    with opened(tmp_path / "page.html", width=390, color_scheme="dark") as page:
        wait_until(page, f"{state} > 10000")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
