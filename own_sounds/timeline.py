"""What a head hears in long recordings: probabilities over time, the events that this makes, and figures and pages of both."""

from __future__ import annotations

import base64
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import numpy as np

from common.arrays import Array
from common.datasets import Clip
from common.datasets.audio import read_audio
from common.datasets.rows import BEGIN, BEGIN_PATH, END, FILE
from common.files import ODD_LETTERS, write_atomically, write_csv
from common.page import as_json, environment, loudest, picture_uri, sound_uri, spectrogram
from common.progress import progress_bar
from own_sounds.windows import BACKGROUND

if TYPE_CHECKING:
    from common.heads import TrainedHead

MOST_CLASSES = 12  # in a picture
TOP_HZ = 22_050  # of an event in a table of Raven, which asks for frequencies
TEMPLATE = Path(__file__).resolve().with_name("template")
TILE_S = 60.0
TILE_COLUMNS = 1200
OVERVIEW_COLUMNS = 2000
N_MELS = 96
MARKED_HZ = (500, 1_000, 2_000, 4_000, 8_000, 16_000)
EMBEDDED_S = 1200  # of audio in a page; of more, the files are played from where they are


class Moments(NamedTuple):
    """Probabilities over time."""

    spans: Array  # (M, 2) float64, seconds
    probabilities: Array  # (M, C) float32

    def most_probable(self) -> Array:
        """The places of the classes that are the most probable anywhere, best first."""
        return np.argsort(-self.probabilities.max(axis=0), kind="stable")[:MOST_CLASSES]


@dataclass(frozen=True, eq=False)
class Heard:
    """What a head hears in a clip: in all of it, or in W windows of it."""

    clip: Clip
    name: str  # its path below the folder that all clips are in, or all that tells it from the others
    windows: list[Clip]  # W; the clip itself without ``--window``
    probabilities: Array  # (W, C) float32, in the order of the head's classes
    distances: Array | None  # (W,) float32, from what the head knows; None without ``--none-of-these``
    is_unknown: Array  # (W,) bool: none of the classes, by that distance

    @cached_property
    def moments(self) -> Moments:
        """What is heard when. At every moment the probabilities are the means of the windows that hold it, so that a call which many
        windows hold a part of has its beginning and end; windows that are none of the classes have probabilities of 0."""
        spans = np.array([(window.start_s, window.end_s) for window in self.windows])
        starts, ends = spans.round(6).T  # one window's end may be the next one's start but for rounding
        edges = np.unique([starts, ends])
        sums = np.zeros((len(edges), self.probabilities.shape[1] + 1))  # the last column counts the windows
        known = np.where(self.is_unknown[:, None], 0, self.probabilities)
        rows = np.column_stack([known, np.ones(len(known))])
        np.add.at(sums, np.searchsorted(edges, starts), rows)
        np.subtract.at(sums, np.searchsorted(edges, ends), rows)
        *sums_of_classes, counts = np.cumsum(sums, axis=0)[:-1].T
        is_held = counts > 0.5  # gaps between windows are not
        means = np.stack(sums_of_classes, axis=1)[is_held] / counts[is_held, None]
        return Moments(np.stack([edges[:-1], edges[1:]], axis=1)[is_held], np.clip(means, 0, 1).astype(np.float32))

    def rows(self) -> Iterator[tuple[Clip, list[float], bool]]:
        """Every window, its (C,) probabilities, and whether it is none of the classes."""
        return zip(self.windows, self.probabilities.tolist(), self.is_unknown.tolist(), strict=True)

    @property
    def span(self) -> tuple[float, float]:
        """The start and end of the windows in the recording, in seconds."""
        return self.windows[0].start_s or 0.0, self.windows[-1].end_s or 0.0


class Event(NamedTuple):
    """A time in which a class is heard."""

    start_s: float
    end_s: float
    label: str
    probability: float  # the highest of its moments


def find_events(heard: Heard, head: TrainedHead, thresholds: Sequence[float]) -> list[Event]:
    """Adjacent moments in which a class, other than BACKGROUND, is at least as probable as its threshold; by time.

    Of a head of one class a clip, that must be the most probable class; with several labels, events may overlap.
    """
    spans, probabilities = heard.moments
    is_heard = probabilities >= np.asarray(thresholds)
    if head.scaling is None:
        is_heard &= probabilities.argmax(axis=1)[:, None] == np.arange(len(head.class_names))
    is_after_gap = spans[1:, 0] > spans[:-1, 1]
    events = []
    for place, name in enumerate(head.class_names):
        (moments,) = np.nonzero(is_heard[:, place] & (name != BACKGROUND))
        breaks = np.flatnonzero((np.diff(moments) > 1) | is_after_gap[moments[1:] - 1]) + 1
        for run in np.split(moments, breaks) if len(moments) else ():
            highest = float(probabilities[run, place].max())
            events.append(Event(float(spans[run[0], 0]), float(spans[run[-1], 1]), name, highest))
    return sorted(events)


def file_names(heard: Sequence[Heard]) -> list[str]:
    """What files about the clips are called, without suffix: as the clips, below the same folders."""
    forms = [
        (Path(one.name).with_suffix("").as_posix(), one.name, f"{one.name}_{one.clip.start_s}-{one.clip.end_s}")
        for one in heard
    ]
    counts = Counter(name for names in forms for name in names)
    return [next(name for name in names if counts[name] == 1 or name == names[-1]) for names in forms]


def write_events(heard: Sequence[Heard], events: Sequence[Sequence[Event]], folder: Path) -> list[Path]:
    """Write the events of every clip: events.csv, which `probe.py` reads; raven/NAME.Table.1.selections.txt and
    audacity/NAME.txt, in the formats of these programs. Returns the first and the two folders."""
    table: list[list[object]] = [["path", "start", "end", "label", "probability"]]
    for one, name, found in zip(heard, file_names(heard), events, strict=True):
        path = one.clip.path.absolute()
        table += [[path, *event] for event in found]
        raven = [["Selection", "View", "Channel", BEGIN, END, "Low Freq (Hz)", "High Freq (Hz)", BEGIN_PATH, FILE]]
        raven[0] += ["Annotation", "Confidence"]
        audacity = []
        for number, event in enumerate(found, start=1):
            times = [f"{event.start_s:.6f}", f"{event.end_s:.6f}"]
            place = [str(number), "Spectrogram 1", "1", *times, "0.0", f"{TOP_HZ:.1f}", str(path), path.name]
            raven.append([*place, event.label, f"{event.probability:.4f}"])
            audacity.append([*times, event.label])
        for lines, file in ((raven, f"raven/{name}.Table.1.selections.txt"), (audacity, f"audacity/{name}.txt")):
            text = "".join("\t".join(cells) + "\n" for cells in lines)
            write_atomically(folder / file, text.encode(errors=ODD_LETTERS))
    write_csv(folder / "events.csv", table)
    return [folder / "events.csv", folder / "raven", folder / "audacity"]


def plot_timeline(heard: Heard, class_names: Sequence[str], path: Path) -> None:
    """Draw the probability of a clip's most probable classes as a colour; windows that are unknown are hatched."""
    from matplotlib.figure import Figure

    from common.evaluation.plots import save_figure

    spans, probabilities = heard.moments
    shown = heard.moments.most_probable()
    figure = Figure(figsize=(10, 1.4 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    edges = [*spans[:, 0], spans[-1, 1]]
    values = probabilities[:, shown].T
    image = axes.pcolormesh(edges, np.arange(len(shown) + 1), values, vmin=0, vmax=1, cmap="viridis")
    for left, right in spans[~probabilities.any(axis=1)]:
        axes.axvspan(left, right, facecolor="none", edgecolor="white", hatch="//", linewidth=0)
    names = [class_names[label].replace("_", " ") for label in shown]
    axes.set_yticks(np.arange(len(shown)) + 0.5, names, fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    left_out = f", the {len(shown)} most probable of {len(class_names)} classes" * (len(shown) < len(class_names))
    hatched = "" if heard.distances is None else "; hatched: none of these"
    axes.set_title(f"{heard.name}: probability{left_out}{hatched}", fontsize=10)
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)
    save_figure(figure, path)


def write_page(
    heard: Sequence[Heard], events: Sequence[Sequence[Event]], class_names: Sequence[str], sample_rate: int, path: Path
) -> None:
    """Write the page of all recordings; sounds are read at the encoder's `sample_rate`. OutputError: it cannot be written."""
    total_s = sum(end_s - start_s for start_s, end_s in (one.span for one in heard))
    data = []
    with progress_bar(total=round(total_s), desc="drawing", unit="s") as bar:
        for one, found in zip(heard, events, strict=True):
            spans, probabilities = one.moments
            shown = sorted(one.moments.most_probable().tolist())
            values = np.round(255 * probabilities[:, shown]).astype(np.uint8)  # moment by moment
            data.append({
                "name": one.name,
                "classes": [class_names[place] for place in shown],
                "spans": spans.round(4).ravel().tolist(),
                "values": base64.b64encode(values.tobytes()).decode(),
                "hertz": _marks(sample_rate),
                "events": [event._asdict() for event in found],
                **_pictures(one, sample_rate, bar.update),
                **_sound(one, sample_rate, total_s <= EMBEDDED_S, path.parent),
            })  # fmt: skip
    page = environment(TEMPLATE).get_template("timeline.html").render(heard=heard, events=events, data=as_json(data))
    write_atomically(path, page.encode())


def _marks(sample_rate: int) -> list[tuple[str, float]]:
    """Frequencies to name beside a spectrogram, and where they are, from its top, as shares of its height."""
    import librosa

    highest = librosa.hz_to_mel(sample_rate / 2)
    marks = {f"{hertz / 1000:g} kHz": float(1 - librosa.hz_to_mel(hertz) / highest) for hertz in MARKED_HZ}
    return [(name, share) for name, share in marks.items() if share > 0.02]


def _pictures(heard: Heard, sample_rate: int, update: Callable[[float], object]) -> dict[str, object]:
    """The spectrogram as tiles of TILE_S seconds, and one picture of all."""
    edges_s = [*np.arange(*heard.span, TILE_S).tolist(), heard.span[1]]
    tiles: list[Array] = []
    for start_s, stop_s in itertools.pairwise(edges_s):
        waveform = read_audio(heard.clip.path, sample_rate, start_s, stop_s)
        columns = max(1, round(TILE_COLUMNS * (stop_s - start_s) / TILE_S))
        tiles.append(spectrogram(waveform, sample_rate, columns, N_MELS).astype(np.float16))
        update(round(stop_s - start_s))
    everything = np.concatenate(tiles, axis=1)
    edges = np.linspace(0, everything.shape[1], min(OVERVIEW_COLUMNS, everything.shape[1]) + 1).astype(int)
    overview = np.maximum.reduceat(everything, edges[:-1], axis=1).astype(np.float32)
    brightest = loudest(overview)
    uris = [picture_uri(tile.astype(np.float32), brightest) for tile in tiles]
    return {"tiles": uris, "tile_s": TILE_S, "overview": picture_uri(overview, brightest)}


def _sound(heard: Heard, sample_rate: int, is_embedded: bool, folder: Path) -> dict[str, object]:
    """The address of the sound, and the second of the recording at which it starts."""
    if is_embedded:
        waveform = read_audio(heard.clip.path, sample_rate, *heard.span)
        return {"sound": sound_uri(waveform, sample_rate), "sound_s": heard.span[0]}
    return {"sound": quote(Path(os.path.relpath(heard.clip.path, folder)).as_posix()), "sound_s": 0.0}
