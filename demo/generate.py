"""Small generated data sets in the official layouts, for trying the whole pipeline without any download.

Every class is a sound of its own kind, every recording has its own pitch, pace and room noise, so that the
classes can be told apart mostly, not always. The same files to the last byte on every run.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from esc50_feature_fc.esc50 import CLASS_NAMES as ESC50_CLASSES
from urbansound8k_feature_fc.urbansound8k import CLASS_NAMES as URBANSOUND8K_CLASSES

Sound = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def harmonic(frequency: np.ndarray, time: np.ndarray, partials: int, roll_off: float = 1.0) -> np.ndarray:
    """A tone of `partials` harmonics that follows the frequency (Hz) at each moment; none above Nyquist."""
    step = time[1] - time[0]
    phase = 2 * np.pi * np.cumsum(frequency) * step
    tone = np.zeros_like(time)
    for partial in range(1, partials + 1):
        tone += np.where(frequency * partial < 0.45 / step, np.sin(partial * phase), 0) / partial**roll_off
    return tone


def coloured_noise(rng: np.random.Generator, time: np.ndarray, low: float, high: float) -> np.ndarray:
    """Noise of unit power between two frequencies (Hz), with soft edges."""
    spectrum = np.fft.rfft(rng.standard_normal(len(time)))
    frequency = np.fft.rfftfreq(len(time), time[1] - time[0])
    gain = 1 / (1 + (low / np.maximum(frequency, 1)) ** 4) / (1 + (frequency / high) ** 4)
    noise = np.fft.irfft(spectrum * gain, len(time))
    return noise / (noise.std() + 1e-9)


def pulses(time: np.ndarray, moments: np.ndarray, decay_s: float) -> np.ndarray:
    """An envelope that jumps to 1 at each moment (s) and dies away."""
    envelope = np.zeros_like(time)
    for moment in moments:
        since = time - moment
        envelope = np.maximum(envelope, np.where(since >= 0, np.exp(-np.maximum(since, 0) / decay_s), 0))
    return envelope


def every(rng: np.random.Generator, time: np.ndarray, period_s: float, jitter: float = 0.0) -> np.ndarray:
    """Moments a period apart, from a random start."""
    moments = np.arange(rng.uniform(0, min(period_s, time[-1] / 2)), time[-1], period_s)
    return moments + jitter * period_s * rng.standard_normal(len(moments))


def bark(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    envelope = pulses(time, every(rng, time, rng.uniform(0.4, 0.9), 0.1), 0.07)
    return envelope * harmonic(rng.uniform(350, 600) * (0.6 + 0.4 * envelope), time, 8)


def crow_of_a_rooster(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    swing = np.abs(np.sin(np.pi * time * rng.uniform(0.5, 0.8)))
    return swing * harmonic(rng.uniform(500, 700) * (1 + 0.7 * swing), time, 10)


def rain(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    return coloured_noise(rng, time, 800, rng.uniform(6000, 12000))


def waves(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    swell = 0.2 + np.sin(np.pi * time * rng.uniform(0.15, 0.3) + rng.uniform(0, 3)) ** 2
    return swell * coloured_noise(rng, time, 60, rng.uniform(500, 1200))


def fire(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    crackles = np.sort(rng.uniform(0, time[-1], int(rng.uniform(8, 20) * time[-1]) + 1))
    return pulses(time, crackles, 0.004) * coloured_noise(rng, time, 1500, 9000)


def baby(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    cry = np.clip(np.sin(2 * np.pi * time * rng.uniform(0.7, 1.1)), 0, 1) ** 0.5
    vibrato = 1 + 0.03 * np.sin(2 * np.pi * 6 * time)
    return cry * harmonic(rng.uniform(380, 520) * vibrato * (0.85 + 0.15 * cry), time, 6, 0.5)


def sneeze(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    moment = np.array([rng.uniform(0.1, 0.6) * time[-1]])
    return pulses(time, moment, 0.15) * coloured_noise(rng, time, rng.uniform(700, 1200), 5000)


def ticks(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    return pulses(time, every(rng, time, rng.uniform(0.45, 0.55)), 0.006) * harmonic(
        np.full_like(time, rng.uniform(1800, 2600)), time, 2
    )


def rotor(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    return pulses(time, every(rng, time, 1 / rng.uniform(11, 17)), 0.03) * coloured_noise(rng, time, 40, 700)


def saw(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    throttle = 1 + 0.2 * np.sin(2 * np.pi * time * rng.uniform(0.2, 0.5))
    return harmonic(rng.uniform(90, 130) * throttle, time, 30, 0.6)


def fan(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    hum = harmonic(np.full_like(time, rng.uniform(48, 62)), time, 5)
    return 0.5 * hum + coloured_noise(rng, time, 80, rng.uniform(800, 2000))


def horn(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    low = rng.uniform(380, 440)
    return sum(harmonic(np.full_like(time, tone), time, 8, 0.7) for tone in (low, 1.25 * low))


def children(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    voices = np.zeros_like(time)
    for _ in range(4):
        shout = np.clip(np.sin(2 * np.pi * (time * rng.uniform(0.5, 1.5) + rng.uniform())), 0, 1)
        voices += shout * harmonic(rng.uniform(300, 600) * (1 + 0.3 * shout), time, 5)
    return voices


def drill(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    whirr = harmonic(np.full_like(time, rng.uniform(180, 320)), time, 20, 0.3)
    return whirr + coloured_noise(rng, time, 2000, 8000)


def idling(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    return pulses(time, every(rng, time, 1 / rng.uniform(20, 30), 0.05), 0.02) * coloured_noise(rng, time, 30, 250)


def shot(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    moment = np.array([rng.uniform(0.02, 0.3) * time[-1]])
    return pulses(time, moment, rng.uniform(0.05, 0.12)) * coloured_noise(rng, time, 50, 4000)


def hammer(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    return pulses(time, every(rng, time, 1 / rng.uniform(14, 22)), 0.012) * coloured_noise(rng, time, 400, 6000)


def wail(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    sweep = np.sin(2 * np.pi * (time * rng.uniform(0.3, 0.6) + rng.uniform()))
    return harmonic(rng.uniform(850, 1050) * (1 + 0.35 * sweep), time, 3)


def music(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    key = rng.uniform(180, 260)
    scale = key * 2 ** (np.array([0, 2, 4, 7, 9, 12]) / 12)
    beat_s = rng.uniform(0.25, 0.4)
    notes = scale[rng.integers(0, len(scale), int(time[-1] / beat_s) + 2)]
    moments = np.arange(0, time[-1], beat_s)
    melody = notes[(time / beat_s).astype(int)]
    return pulses(time, moments, 0.25) * harmonic(melody, time, 6) + 0.3 * harmonic(
        np.full_like(time, key / 2), time, 4
    )


# The ten classes of the ESC-10 subset, by their place in ESC-50.
ESC50_SOUNDS: dict[str, Sound] = {
    "dog": bark,
    "rooster": crow_of_a_rooster,
    "rain": rain,
    "sea_waves": waves,
    "crackling_fire": fire,
    "crying_baby": baby,
    "sneezing": sneeze,
    "clock_tick": ticks,
    "helicopter": rotor,
    "chainsaw": saw,
}
URBANSOUND8K_SOUNDS: dict[str, Sound] = {
    "air_conditioner": fan,
    "car_horn": horn,
    "children_playing": children,
    "dog_bark": bark,
    "drilling": drill,
    "engine_idling": idling,
    "gun_shot": shot,
    "jackhammer": hammer,
    "siren": wail,
    "street_music": music,
}
# As in UrbanSound8K, whose files keep the format that their uploader chose.
URBANSOUND8K_FORMATS = (
    (44_100, 2, "PCM_16"),
    (48_000, 2, "PCM_24"),
    (44_100, 1, "PCM_16"),
    (96_000, 2, "PCM_24"),
    (22_050, 1, "PCM_U8"),
    (11_025, 1, "IMA_ADPCM"),
    (48_000, 2, "PCM_32"),  # no float: libsndfile writes the time of day into float WAVs
)


def recording(sound: Sound, rng: np.random.Generator, seconds: float, rate: int, snr_db: tuple[float, float]):
    """(samples,) float64 in [-1, 1]: the sound in room noise, at a random level."""
    time = np.arange(round(seconds * rate)) / rate
    signal = sound(rng, time)
    signal = signal / (signal.std() + 1e-9)
    room = coloured_noise(rng, time, rng.uniform(20, 100), rng.uniform(1000, 6000))
    mixture = signal + room * 10 ** (-rng.uniform(*snr_db) / 20)
    return mixture / np.abs(mixture).max() * rng.uniform(0.1, 0.9)


def generate_esc50(root: Path, recordings: int = 3) -> None:
    """Write ESC-50's layout: 5 folds, `recordings` of each of the ten ESC-10 classes in every fold."""
    rows = []
    for fold in range(1, 6):
        for name, sound in ESC50_SOUNDS.items():
            target = ESC50_CLASSES.index(name)
            for take in range(recordings):
                rng = np.random.default_rng([50, fold, target, take])
                source = 100_000 + (fold * 50 + target) * 10 + take
                row = (f"{fold}-{source}-A-{target}.wav", fold, target, name, "True", source, "A")
                rows.append(row)
                waveform = recording(sound, rng, 5.0, 44_100, (-12, 6))
                _write(root / "audio" / row[0], waveform, 44_100, "PCM_16")
    header = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    _write_csv(root / "meta" / "esc50.csv", header, sorted(rows))


def generate_urbansound8k(root: Path, recordings: int = 3) -> None:
    """Write UrbanSound8K's layout: 10 folds, `recordings` a class in every fold, of many formats and lengths."""
    rows = []
    for fold in range(1, 11):
        for class_id, name in enumerate(URBANSOUND8K_CLASSES):
            for take in range(recordings):
                rng = np.random.default_rng([8000, fold, class_id, take])
                source = 200_000 + (fold * 10 + class_id) * 10 + take
                seconds = round(rng.uniform(0.3, 2.5), 2)
                salience = int(rng.integers(1, 3))
                rate, channels, subtype = URBANSOUND8K_FORMATS[rng.integers(len(URBANSOUND8K_FORMATS))]
                filename = f"{source}-{class_id}-0-0.wav"
                rows.append((filename, source, 0.0, seconds, salience, fold, class_id, name))
                snr_db = (0, 12) if salience == 1 else (-14, 0)
                waveform = recording(URBANSOUND8K_SOUNDS[name], rng, seconds, rate, snr_db)
                samples = np.stack([waveform * gain for gain in rng.uniform(0.7, 1, channels)], axis=1)
                _write(root / "audio" / f"fold{fold}" / filename, samples, rate, subtype)
    header = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
    _write_csv(root / "metadata" / "UrbanSound8K.csv", header, rows)


def _write(path: Path, samples: np.ndarray, rate: int, subtype: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)


def _write_csv(path: Path, header: tuple[str, ...], rows: list[tuple]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
