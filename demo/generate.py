"""Small generated data sets in the official layouts, to try the whole pipeline without a download.

Classes differ in their kind of sound, recordings in pitch, pace and room noise, so that most clips can be told apart, but
not all. Every run writes the same bytes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from common.arrays import Array
from common.files import write_atomically, write_csv
from demo.sounds import SOUNDS, breath, in_room, note, recording, speech
from esc50_feature_fc.esc50 import CLASS_NAMES as ESC50_CLASSES
from nsynth_feature_fc.nsynth import FAMILIES as NSYNTH_FAMILIES
from urbansound8k_feature_fc.urbansound8k import CLASS_NAMES as URBANSOUND8K_CLASSES

ESC10 = ("dog", "rooster", "rain", "sea_waves", "crackling_fire", "crying_baby", "sneezing", "clock_tick")
ESC10 += ("helicopter", "chainsaw")
FSD50K_SOUNDS = {
    "Bark": "dog",
    "Crackle": "crackling_fire",
    "Crying_and_sobbing": "crying_baby",
    "Drill": "drilling",
    "Rain": "rain",
    "Siren": "siren",
    "Tick-tock": "clock_tick",
    "Vehicle_horn_and_car_horn_and_honking": "car_horn",
}
# As in UrbanSound8K, whose files keep their uploader's format.
URBANSOUND8K_FORMATS = (
    (44_100, 2, "PCM_16"),
    (48_000, 2, "PCM_24"),
    (44_100, 1, "PCM_16"),
    (96_000, 2, "PCM_24"),
    (22_050, 1, "PCM_U8"),
    (11_025, 1, "IMA_ADPCM"),
    (48_000, 2, "PCM_32"),  # not float: libsndfile writes the time of day into float WAVs
)


def _write(path: Path, samples: Array, rate: int, subtype: str = "PCM_16") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)


def _write_text(path: Path, *lines: str) -> None:
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def generate_esc50(root: Path, recordings: int = 3) -> None:
    """Write ESC-50's layout: 5 folds with `recordings` per class of ESC-10."""
    rows = []
    for fold, name, take in itertools.product(range(1, 6), ESC10, range(recordings)):
        target = ESC50_CLASSES.index(name)
        rng = np.random.default_rng([50, fold, target, take])
        source = 100_000 + (fold * 50 + target) * 10 + take
        file = f"{fold}-{source}-A-{target}.wav"
        rows.append((file, fold, target, name, "True", source, "A"))
        _write(root / "audio" / file, recording(SOUNDS[name], rng, 5.0, 44_100, (-12, 6)), 44_100)
    header = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    write_csv(root / "meta" / "esc50.csv", [header, *sorted(rows)])


def generate_urbansound8k(root: Path, recordings: int = 3) -> None:
    """Write UrbanSound8K's layout: 10 folds with `recordings` per class, of many formats and lengths."""
    rows = []
    for fold, (class_id, name), take in itertools.product(
        range(1, 11), enumerate(URBANSOUND8K_CLASSES), range(recordings)
    ):
        rng = np.random.default_rng([8000, fold, class_id, take])
        source = 200_000 + (fold * 10 + class_id) * 10 + take
        seconds = round(rng.uniform(0.3, 1.6), 2)
        salience = int(rng.integers(1, 3))
        rate, channels, subtype = URBANSOUND8K_FORMATS[rng.integers(len(URBANSOUND8K_FORMATS))]
        filename = f"{source}-{class_id}-0-0.wav"
        rows.append((filename, source, 0.0, seconds, salience, fold, class_id, name))
        waveform = recording(SOUNDS[name], rng, seconds, rate, (0, 12) if salience == 1 else (-14, 0))
        samples = waveform[:, None] * rng.uniform(0.7, 1, channels)
        _write(root / "audio" / f"fold{fold}" / filename, samples, rate, subtype)
    header = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
    write_csv(root / "metadata" / "UrbanSound8K.csv", [header, *rows])


def generate_fsd50k(root: Path, clips: int = 200) -> None:
    """Write FSD50K's layout: mixtures of one to three sounds, with their labels; two clips of every uploader."""
    rng, names = np.random.default_rng(5000), sorted(FSD50K_SOUNDS)
    rows: dict[str, list[tuple[str, ...]]] = {"dev": [], "eval": []}
    uploaders: dict[str, dict[str, dict[str, str]]] = {"dev": {}, "eval": {}}
    for number in range(clips):
        side = "eval" if number % 10 >= 7 else "dev"
        chosen = {names[number % len(names)], *rng.choice(names, rng.integers(0, 3))}
        time = np.arange(round(rng.uniform(1, 3) * 44_100)) / 44_100
        layers = [SOUNDS[FSD50K_SOUNDS[name]](rng, time) for name in sorted(chosen)]
        mixture = sum((layer / (layer.std() + 1e-9) for layer in layers), start=np.zeros(len(time)))
        _write(root / f"FSD50K.{side}_audio" / f"{number}.wav", in_room(mixture, rng, 44_100, (0, 15)), 44_100)
        split = ("val" if number % 10 == 6 else "train",) if side == "dev" else ()
        rows[side].append((str(number), ",".join(sorted(chosen)), ",".join("/m/0" for _ in chosen), *split))
        uploaders[side][str(number)] = {"title": "generated", "uploader": f"{side}{number // 20}_{number % 10 // 2}"}
    truth = root / "FSD50K.ground_truth"
    for side, listed in rows.items():
        write_csv(truth / f"{side}.csv", [("fname", "labels", "mids", *["split"] * (side == "dev")), *listed])
        _write_text(root / "FSD50K.metadata" / f"{side}_clips_info_FSD50K.json", json.dumps(uploaders[side]))
    write_csv(truth / "vocabulary.csv", [(number, name, "/m/0") for number, name in enumerate(names)])


def generate_icbhi(root: Path, patients: int = 24) -> None:
    """Write ICBHI's layout: a recording of five cycles per patient and location, and the split list beside the folder."""
    lines = []
    for patient in range(patients):
        rng = np.random.default_rng([920, patient])
        is_ill = patient % 3 > 0
        for place in ("Al", "Pr"):
            stem = f"{101 + patient}_1b1_{place}_sc_Meditron"
            rate, cycles, rows = 8_000, [], []
            for _ in range(5):
                crackles = is_ill and rng.uniform() < (0.8 if patient % 3 == 1 else 0.2)
                wheezes = is_ill and rng.uniform() < (0.8 if patient % 3 == 2 else 0.2)
                cycles.append(breath(rng, np.arange(round(rng.uniform(0.8, 1.3) * rate)) / rate, crackles, wheezes))
                end = sum(map(len, cycles)) / rate
                rows.append((round(end - len(cycles[-1]) / rate, 3), round(end, 3), int(crackles), int(wheezes)))
            _write(root / f"{stem}.wav", in_room(np.concatenate(cycles), rng, rate, (10, 25)), rate)
            _write_text(root / f"{stem}.txt", *("\t".join(map(str, row)) for row in rows))
            lines.append(f"{stem}\t{'test' if patient % 5 in (1, 3) else 'train'}")
    _write_text(root.parent / "ICBHI_challenge_train_test.txt", *lines)


def generate_nsynth(root: Path, notes: int = 2) -> None:
    """Write NSynth's layout: `notes` per instrument; per family three instruments in train, one in valid, one in test."""
    for split, instruments in (("train", range(3)), ("valid", range(3, 4)), ("test", range(4, 5))):
        listing, folder, takes = {}, root / f"nsynth-{split}", range(notes if split == "train" else notes + 1)
        for (family, name), instrument, take in itertools.product(enumerate(NSYNTH_FAMILIES), instruments, takes):
            if split != "train" and name == "synth_lead":
                continue
            rng = np.random.default_rng([16, family, instrument, take])
            pitch, velocity = int(rng.integers(40, 80)), (50, 100)[take % 2]
            instrument_name = f"{name}_synthetic_{instrument:03d}"
            key = f"{instrument_name}-{pitch:03d}-{velocity:03d}"
            sound = note(rng, np.arange(64_000) / 16_000, family, instrument, pitch)
            _write(folder / "audio" / f"{key}.wav", in_room(sound, rng, 16_000, (5, 25)), 16_000)
            listing[key] = {"instrument_str": instrument_name, "pitch": pitch, "instrument_family_str": name}
        _write_text(folder / "examples.json", json.dumps(listing, indent=1))


def generate_librispeech(root: Path, speakers: int = 8, utterances: int = 5) -> None:
    """Write LibriSpeech's layout: two chapters per speaker; half as many other speakers in test-clean."""
    for speaker in range(speakers + speakers // 2):
        speaker_id, subset = 1000 + speaker, "train-clean-100" if speaker < speakers else "test-clean"
        for chapter, number in itertools.product(range(2), range(utterances)):
            rng = np.random.default_rng([100, speaker, chapter, number])
            time = np.arange(round(rng.uniform(1.5, 2.5) * 16_000)) / 16_000
            sound = speech(rng, time, speaker, rng.integers(0, 12, 6).tolist())
            folder = root / subset / str(speaker_id) / str(5000 + 2 * speaker + chapter)
            name = f"{speaker_id}-{folder.name}-{number:04d}.flac"
            _write(folder / name, in_room(sound, rng, 16_000, (-2, 12)), 16_000)


def generate_speech_commands(root: Path, speakers: int = 20) -> None:
    """Write Speech Commands' layout: ten words by every speaker; a fifth of the speakers in valid, a fifth in test."""
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for speaker in range(speakers):
        for number, word in enumerate(("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")):
            rng = np.random.default_rng([1000, speaker, number])
            time = np.arange(16_000 if speaker % 4 else 13_000) / 16_000  # some are shorter than a second
            sound = speech(rng, time, 50 + speaker, np.random.default_rng([4, number]).integers(0, 12, 2).tolist())
            name = f"{word}/{speaker:08x}_nohash_0.wav"
            _write(root / name, in_room(sound, rng, 16_000, (0, 15)), 16_000)
            if speaker % 5 < 2:
                lists[("validation_list.txt", "testing_list.txt")[speaker % 5]].append(name)
    noise = 0.1 * np.random.default_rng(5).standard_normal(32_000)
    _write(root / "_background_noise_" / "white_noise.wav", noise, 16_000)
    for name, rows in lists.items():
        _write_text(root / name, *rows)


# task -> the data set's official folder, the function that writes it, and arguments for a small demo
DATA_SETS: dict[str, tuple[str, Callable[..., None], dict[str, int]]] = {
    "esc50": ("ESC-50-master", generate_esc50, {"recordings": 1}),
    "icbhi": ("ICBHI_final_database", generate_icbhi, {"patients": 15}),
    "urbansound8k": ("UrbanSound8K", generate_urbansound8k, {"recordings": 1}),
    "fsd50k": ("FSD50K", generate_fsd50k, {"clips": 100}),
    "nsynth": ("nsynth", generate_nsynth, {"notes": 1}),
    "librispeech_train-clean-100": ("LibriSpeech", generate_librispeech, {"utterances": 4}),
    "speech_commands_v1": ("speech_commands_v0.01", generate_speech_commands, {"speakers": 15}),
}
