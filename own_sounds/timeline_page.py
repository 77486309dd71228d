"""A page of recordings to look at and listen to: spectrogram, probabilities of the classes, and events over time."""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from common.arrays import Array
from common.datasets.audio import read_audio
from common.files import write_atomically
from common.page import as_json, environment, loudest, picture_uri, sound_uri, spectrogram
from common.progress import progress_bar
from own_sounds.timeline import Event, Heard

TEMPLATE = Path(__file__).resolve().with_name("template")
TILE_S = 60.0
TILE_COLUMNS = 1200
OVERVIEW_COLUMNS = 2000
N_MELS = 96
MARKED_HZ = (500, 1_000, 2_000, 4_000, 8_000, 16_000)
EMBEDDED_S = 1200  # of audio in a page; of more, the files are played from where they are


def write_page(
    heard: Sequence[Heard],
    events: Sequence[Sequence[Event]],
    class_names: Sequence[str],
    sample_rate: int,
    path: Path,
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
