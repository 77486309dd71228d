"""Web pages that need no network: their templates, and sounds and spectrograms as addresses that hold them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import jinja2
import numpy as np
import soundfile

from common.arrays import Array
from common.datasets.audio import resample

TEMPLATE = Path(__file__).resolve().parent
MPEG_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
BLOCK = 1 << 16  # samples given to the encoder of MP3 at a time
N_FFT = 1024
RANGE_DB = 70  # between the darkest and the brightest colour


def environment(folder: Path) -> jinja2.Environment:
    """Templates in a folder, and those that all pages share."""
    loader = jinja2.FileSystemLoader([folder, TEMPLATE])
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)


def as_json(data: object) -> str:
    """Data for a script element, which no name in it can end; ValueError for NaN."""
    return json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def sound_uri(waveform: Array, sample_rate: int) -> str:
    """A (samples,) waveform as MP3, which every browser plays."""
    rate = min(MPEG_RATES, key=lambda rate: abs(rate - sample_rate))
    samples = np.clip(resample(waveform, sample_rate, rate), -1, 1)
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, 1, format="MP3", subtype="MPEG_LAYER_III") as file:
        for start in range(0, len(samples), BLOCK):
            file.write(samples[start : start + BLOCK])
    return data_uri("audio/mpeg", buffer.getvalue())


def spectrogram(waveform: Array, sample_rate: int, columns: int, n_mels: int) -> Array:
    """The mel spectrogram of a (samples,) waveform, (n_mels, columns) float32 in dB re full scale, low frequencies last."""
    from common.compiled import import_compiled

    librosa = import_compiled("librosa")
    hop = max(1, -(-len(waveform) // columns))
    padded = np.pad(waveform, (0, max(0, hop * (columns - 1) + N_FFT - len(waveform))))
    power = librosa.feature.melspectrogram(
        y=padded, sr=sample_rate, n_fft=N_FFT, hop_length=hop, n_mels=n_mels, center=False
    )
    decibels: Array = librosa.power_to_db(power, ref=N_FFT, top_db=None)[::-1, :columns]
    return decibels


def loudest(decibels: Array) -> float:
    """The level shown as the brightest colour: that of all but the loudest thousandth."""
    return float(np.quantile(decibels, 0.999))


def picture_uri(decibels: Array, brightest: float | None = None) -> str:
    """A spectrogram (mels, columns) in dB as JPEG; the brightest level is that of `loudest` unless it is shared with others."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    brightest = loudest(decibels) if brightest is None else brightest
    imsave(buffer, decibels, brightest - RANGE_DB, brightest, cmap="magma", format="jpeg", pil_kwargs={"quality": 80})
    return data_uri("image/jpeg", buffer.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """An address that holds content of a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
