"""Synthetic sounds, a kind per class of the demo; pitch, pace and noise differ between recordings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from common.arrays import Array

Sound = Callable[[np.random.Generator, Array], Array]


def harmonic(frequency: Array | float, time: Array, partials: int, roll_off: float = 1.0) -> Array:
    """A tone of `partials` harmonics of a frequency (Hz), fixed or of every moment; none above Nyquist."""
    step = time[1] - time[0]
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(frequency, time.shape)) * step
    tone = np.zeros_like(time)
    for partial in range(1, partials + 1):
        tone += np.where(frequency * partial < 0.45 / step, np.sin(partial * phase), 0) / partial**roll_off
    return tone


def coloured_noise(rng: np.random.Generator, time: Array, low: float, high: float) -> Array:
    """Noise of unit power between two frequencies (Hz), with soft edges."""
    spectrum = np.fft.rfft(rng.standard_normal(len(time)))
    frequency = np.fft.rfftfreq(len(time), time[1] - time[0])
    gain = 1 / (1 + (low / np.maximum(frequency, 1)) ** 4) / (1 + (frequency / high) ** 4)
    noise = np.fft.irfft(spectrum * gain, len(time))
    return noise / (noise.std() + 1e-9)


def pulses(time: Array, moments: Array, decay_s: float) -> Array:
    """An envelope that jumps to 1 at every moment (s) and decays."""
    envelope = np.zeros_like(time)
    for moment in moments:
        after = time >= moment
        envelope[after] = np.maximum(envelope[after], np.exp((moment - time[after]) / decay_s))
    return envelope


def beats(rng: np.random.Generator, time: Array, period_s: float, decay_s: float, jitter: float = 0.0) -> Array:
    """An envelope of beats a period apart, from a random start."""
    moments = np.arange(rng.uniform(0, min(period_s, time[-1] / 2)), time[-1], period_s)
    return pulses(time, moments + jitter * period_s * rng.standard_normal(len(moments)), decay_s)


def bark(rng: np.random.Generator, time: Array) -> Array:
    envelope = beats(rng, time, rng.uniform(0.4, 0.9), 0.07, 0.1)
    return envelope * harmonic(rng.uniform(350, 600) * (0.6 + 0.4 * envelope), time, 8)


def crow(rng: np.random.Generator, time: Array) -> Array:
    swing = np.abs(np.sin(np.pi * time * rng.uniform(0.5, 0.8)))
    return swing * harmonic(rng.uniform(500, 700) * (1 + 0.7 * swing), time, 10)


def baby(rng: np.random.Generator, time: Array) -> Array:
    cry = np.clip(np.sin(2 * np.pi * time * rng.uniform(0.7, 1.1)), 0, 1) ** 0.5
    vibrato = 1 + 0.03 * np.sin(2 * np.pi * 6 * time)
    return cry * harmonic(rng.uniform(380, 520) * vibrato * (0.85 + 0.15 * cry), time, 6, 0.5)


def fire(rng: np.random.Generator, time: Array) -> Array:
    crackles = rng.uniform(0, time[-1], int(rng.uniform(8, 20) * time[-1]) + 1)
    return pulses(time, crackles, 0.004) * coloured_noise(rng, time, 1500, 9000)


def horn(rng: np.random.Generator, time: Array) -> Array:
    low = rng.uniform(380, 440)
    return harmonic(low, time, 8, 0.7) + harmonic(1.25 * low, time, 8, 0.7)


def shout(rng: np.random.Generator, time: Array) -> Array:
    swell = np.clip(np.sin(2 * np.pi * (time * rng.uniform(0.5, 1.5) + rng.uniform())), 0, 1)
    return swell * harmonic(rng.uniform(300, 600) * (1 + 0.3 * swell), time, 5)


def music(rng: np.random.Generator, time: Array) -> Array:
    key = rng.uniform(180, 260)
    scale = key * 2 ** (np.array([0, 2, 4, 7, 9, 12]) / 12)
    beat_s = rng.uniform(0.25, 0.4)
    notes = scale[rng.integers(0, len(scale), int(time[-1] / beat_s) + 2)]
    melody = harmonic(notes[(time / beat_s).astype(int)], time, 6)
    return pulses(time, np.arange(0, time[-1], beat_s), 0.25) * melody + 0.3 * harmonic(key / 2, time, 4)


def siren(rng: np.random.Generator, time: Array) -> Array:
    sweep = np.sin(2 * np.pi * (time * rng.uniform(0.3, 0.6) + rng.uniform()))
    return harmonic(rng.uniform(850, 1050) * (1 + 0.35 * sweep), time, 3)


# The classes of ESC-10 and UrbanSound8K by their official names.
SOUNDS: dict[str, Sound] = {
    "dog": bark,
    "rooster": crow,
    "rain": lambda rng, time: coloured_noise(rng, time, 800, rng.uniform(6000, 12000)),
    "sea_waves": lambda rng, time: (
        (0.2 + np.sin(np.pi * time * rng.uniform(0.15, 0.3) + rng.uniform(0, 3)) ** 2)
        * coloured_noise(rng, time, 60, rng.uniform(500, 1200))
    ),
    "crackling_fire": fire,
    "crying_baby": baby,
    "sneezing": lambda rng, time: (
        pulses(time, time[-1:] * rng.uniform(0.1, 0.6), 0.15) * coloured_noise(rng, time, rng.uniform(700, 1200), 5000)
    ),
    "clock_tick": lambda rng, time: (
        beats(rng, time, rng.uniform(0.45, 0.55), 0.006) * harmonic(rng.uniform(1800, 2600), time, 2)
    ),
    "helicopter": lambda rng, time: (
        beats(rng, time, 1 / rng.uniform(11, 17), 0.03) * coloured_noise(rng, time, 40, 700)
    ),
    "chainsaw": lambda rng, time: harmonic(
        (1 + 0.2 * np.sin(2 * np.pi * time * rng.uniform(0.2, 0.5))) * rng.uniform(90, 130), time, 30, 0.6
    ),
    "air_conditioner": lambda rng, time: (
        0.5 * harmonic(rng.uniform(48, 62), time, 5) + coloured_noise(rng, time, 80, rng.uniform(800, 2000))
    ),
    "car_horn": horn,
    "children_playing": lambda rng, time: sum(shout(rng, time) for _ in range(4)),
    "dog_bark": bark,
    "drilling": lambda rng, time: (
        harmonic(rng.uniform(180, 320), time, 20, 0.3) + coloured_noise(rng, time, 2000, 8000)
    ),
    "engine_idling": lambda rng, time: (
        beats(rng, time, 1 / rng.uniform(20, 30), 0.02, 0.05) * coloured_noise(rng, time, 30, 250)
    ),
    "gun_shot": lambda rng, time: (
        pulses(time, time[-1:] * rng.uniform(0.02, 0.3), rng.uniform(0.05, 0.12)) * coloured_noise(rng, time, 50, 4000)
    ),
    "jackhammer": lambda rng, time: (
        beats(rng, time, 1 / rng.uniform(14, 22), 0.012) * coloured_noise(rng, time, 400, 6000)
    ),
    "siren": siren,
    "street_music": music,
}


def recording(sound: Sound, rng: np.random.Generator, seconds: float, rate: int, snr_db: tuple[float, float]) -> Array:
    """(samples,) float64 in [-1, 1]: `seconds` of the sound in a room."""
    return in_room(sound(rng, np.arange(round(seconds * rate)) / rate), rng, rate, snr_db)


def in_room(signal: Array, rng: np.random.Generator, rate: int, snr_db: tuple[float, float]) -> Array:
    """(samples,) float64 in [-1, 1]: the signal in a room's noise, at a random level."""
    time = np.arange(len(signal)) / rate
    signal = signal / (signal.std() + 1e-9)
    room = coloured_noise(rng, time, rng.uniform(20, 100), rng.uniform(1000, 6000))
    mixture = signal + room * 10 ** (-rng.uniform(*snr_db) / 20)
    return mixture / np.abs(mixture).max() * rng.uniform(0.1, 0.9)


def breath(rng: np.random.Generator, time: Array, crackles: bool, wheezes: bool) -> Array:
    """A breathing cycle: noise that swells twice, maybe with crackles (clicks) or wheezes (a whistle)."""
    swell = np.abs(np.sin(2 * np.pi * np.arange(len(time)) / len(time)))
    sound = swell * coloured_noise(rng, time, 100, rng.uniform(400, 900))
    if crackles:
        sound += 3 * pulses(time, rng.uniform(0, time[-1], 12), 0.008) * coloured_noise(rng, time, 300, 1200)
    if wheezes:
        sound += 1.5 * swell * harmonic(rng.uniform(250, 500), time, 3)
    return sound


def note(rng: np.random.Generator, time: Array, family: int, instrument: int, pitch: int) -> Array:
    """A note with the harmonics, attack and noise of its family, slightly varied by instrument."""
    timbre, variation = np.random.default_rng([1, family]), np.random.default_rng([2, family, instrument])
    roll_off, decay_s, breathy = timbre.uniform(0.3, 2), timbre.uniform(0.2, 3), timbre.choice([0, 0, 0.3])
    odd_only = timbre.uniform() < 0.3
    frequency = 440 * 2 ** ((pitch - 69) / 12) * (1 + timbre.choice([0, 0.01]) * np.sin(2 * np.pi * 5 * time))
    tone = harmonic(frequency, time, 12, roll_off * variation.uniform(0.8, 1.2))
    if odd_only:
        tone -= 0.8 * harmonic(2 * frequency, time, 6, roll_off) / 2**roll_off
    envelope = np.exp(-time / (decay_s * variation.uniform(0.7, 1.4))) * (time < 3)
    return envelope * (tone + breathy * coloured_noise(rng, time, 500, 5000))


def vowel(time: Array, pitch: Array, formants: tuple[float, float], tract: float) -> Array:
    """A voiced sound: harmonics of the pitch (Hz) under two formants (Hz), scaled by the speaker's tract."""
    step = time[1] - time[0]
    phase = 2 * np.pi * np.cumsum(pitch) * step
    sound = np.zeros_like(time)
    for partial, frequency in enumerate(pitch.mean() * np.arange(1, 30), start=1):
        gain = sum(1 / (1 + ((frequency - formant * tract) / 120) ** 2) for formant in formants)
        sound += gain * np.sin(partial * phase) * (frequency < 0.45 / step)
    return sound


def speech(rng: np.random.Generator, time: Array, speaker: int, syllables: list[int]) -> Array:
    """Syllables, which differ in their vowels, in a speaker's pitch and vocal tract."""
    voice = np.random.default_rng([3, speaker])
    pitch_hz, tract = voice.uniform(90, 240), voice.uniform(0.85, 1.2)
    vowels = [(700, 1200), (300, 2300), (350, 800), (550, 1800), (450, 1000), (650, 1700)]
    edges = np.linspace(0, len(time), len(syllables) + 1).astype(int)
    sound = np.zeros_like(time)
    for start, end, syllable in zip(edges[:-1], edges[1:], syllables, strict=True):
        span = time[start:end]
        melody = pitch_hz * (1 + 0.1 * rng.uniform(-1, 1) + 0.05 * np.linspace(1, -1, len(span)))
        shape = np.sin(np.pi * np.arange(len(span)) / len(span)) ** 0.5
        sound[start:end] = shape * vowel(span, melody, vowels[syllable % len(vowels)], tract)
        if syllable >= len(vowels):  # begins with a hiss
            hiss = coloured_noise(rng, span, 3000, 7500) * np.exp(-(span - span[0]) / 0.06)
            sound[start:end] += 0.5 * hiss
    return sound
