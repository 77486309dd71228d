"""The commands that are attacked, and the small files that they read."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import draw_nothing, noise, write_csv, write_wav
from heads_helpers import SIZE, grouped_features, saved
from loopback import Server, serving

from analysis import summary
from common.cli import classify_main, extract_main
from common.datasets import Task, Variants
from common.download.command import main as download_main
from common.encoder.checkpoint import load_weights
from common.encoder.network import weight_shapes
from common.entry import run
from common.extraction import extract as extraction
from esc50_feature_fc import esc50
from icbhi_feature_fc import icbhi
from key_word_spotting import speech_commands
from nsynth_feature_fc import nsynth
from own_sounds.embedding import embed_main
from own_sounds.predicting import predict_main
from own_sounds.probing import probe_main
from speaker_recognition import librispeech
from tests.torture.runner import Command
from urbansound8k_feature_fc import urbansound8k

extraction.SAVE_EVERY_S = -1.0  # after every clip, so that there is unfinished work to attack
draw_nothing(pytest.MonkeyPatch())
LOGMEL = ("--encoder", "logmel", "--device", "cpu", "--workers", "2")
SHORT_FIT = ("--device", "cpu", "--epochs", "1")


# Data sets


def build_esc50(folder: Path) -> None:
    """Six clips, one of which cannot be decoded, and a file of settings."""
    rows = []
    for fold in (1, 2, 5):
        for target in (0, 10):
            name = f"{fold}-{1000 + fold}-A-{target}.wav"
            rows.append((name, fold, target, esc50.CLASS_NAMES[target], True, 1000 + fold, "A"))
            write_wav(folder / "data" / "audio" / name, fold + target, seconds=0.05 + 0.01 * fold)
    (folder / "data" / "audio" / rows[3][0]).write_bytes(b"not audio")
    columns = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    write_csv(folder / "data" / "meta" / "esc50.csv", columns, rows)
    (folder / "settings.yaml").write_text("precision: fp32\n")


def build_urbansound8k(folder: Path) -> None:
    rows = [(f"{7 + fold}-3-0-1.wav", 7 + fold, 0, 4, 1, fold, 3, "dog_bark") for fold in (1, 2, 10)]
    for name, *_, fold, _, _ in rows:
        write_wav(folder / "data" / "audio" / f"fold{fold}" / name, fold, seconds=0.05)
    columns = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
    write_csv(folder / "data" / "metadata" / "UrbanSound8K.csv", columns, rows)


def build_nsynth(folder: Path) -> None:
    notes = {}
    for number, family in enumerate(("bass", "vocal", "synth_lead")):
        name = f"{family}_acoustic_{number:03d}-060-100"
        write_wav(folder / "data" / "nsynth-train" / "audio" / f"{name}.wav", number, seconds=0.05)
        notes[name] = {"note": number, "instrument_str": name[:-8], "pitch": 60, "qualities": [0]}
        notes[name] |= {"instrument_family": number, "instrument_family_str": family}
    (folder / "data" / "nsynth-train" / "examples.json").write_text(json.dumps(notes))


def build_icbhi(folder: Path) -> None:
    splits = ""
    for patient, split in ((101, "train"), (102, "train"), (103, "test")):
        stem = f"{patient}_1b1_Al_sc_Meditron"
        write_wav(folder / "data" / f"{stem}.wav", patient, seconds=0.3, rate=4_000)
        (folder / "data" / f"{stem}.txt").write_text("0.0\t.15\t0\t0\n.15\t.2\t1\t0\n.2\t.3\t1\t1\n")
        splits += f"{stem}\t{split}\r\n"
    (folder / "data" / icbhi.SPLIT_FILE).write_text(splits)


def build_speech_commands(folder: Path) -> None:
    for word in ("yes", "no", "bed"):
        for speaker in "abc":
            name = f"0000000{speaker}_nohash_0.wav"
            write_wav(folder / "data" / word / name, seconds=0.05, rate=16_000)
    for speaker, name in (("b", "validation_list.txt"), ("c", "testing_list.txt")):
        words = [f"{word}/0000000{speaker}_nohash_0.wav\n" for word in ("yes", "no", "bed")]
        (folder / "data" / name).write_text("".join(words))


def build_librispeech(folder: Path) -> None:
    rows = ["; comment", ";ID  |SEX| SUBSET           |MINUTES| NAME"]
    for speaker, name in ((60, "|CBW|Simon"), (62, "Some Body"), (61, "Paul")):
        subset = "test-clean" if speaker == 61 else "train-clean-100"
        path = folder / "data" / subset / str(speaker) / "1" / f"{speaker}-1-0000.flac"
        write_wav(path, speaker, seconds=0.05, rate=16_000)
        rows.append(f"{speaker}   | M | {subset:<16} | 20.18 | {name}")
    (folder / "data" / "SPEAKERS.TXT").write_text("\n".join(rows) + "\n")


def build_table(folder: Path) -> None:
    rows = [(f"{n}.wav", "ab"[n % 2], n // 2 % 2 + 1, f"group{n}", 0, 0.05) for n in range(8)]
    for number, row in enumerate(rows):
        write_wav(folder / "data" / row[0], number, seconds=0.06)
    write_csv(folder / "data" / "table.csv", ("path", "label", "fold", "group", "start", "end"), rows)


def extract(task: Task | Variants, *flags: str, folder: Path) -> None:
    """A task's extraction script."""
    places = ("--data-root", str(folder / "data"), "--output", str(folder / "out" / "features.pt"))
    extract_main(task, [*places, *LOGMEL, *flags])


def extraction_of(
    name: str,
    build: Callable[[Path], None],
    task: Task | Variants,
    listings: tuple[str, ...],
    class_names: tuple[str, ...] | None,
    *flags: str,
) -> Command:
    """The extraction of a data set."""
    mains = (lambda folder: extract(task, *flags, folder=folder),)
    patterns = tuple(f"data/{listing}" for listing in listings)
    return Command(name, build, mains, patterns, class_names)


def probe(folder: Path) -> None:
    """own_sounds/probe.py with a table."""
    places = (str(folder / "data" / "table.csv"), "--output-dir", str(folder / "out"))
    probe_main([*places, *LOGMEL, *SHORT_FIT])


EXTRACT = Command(
    "extraction",
    build_esc50,
    (lambda folder: extract(esc50.TASK, "--config", str(folder / "settings.yaml"), folder=folder),),
)
SHARDS = Command(
    "extraction in two shards",
    build_esc50,
    tuple(partial(lambda folder, shard: extract(esc50.TASK, "--shard", shard, folder=folder), shard=shard)
          for shard in ("1/2", "2/2")),
)
DATA_SETS = (
    extraction_of("ESC-50", build_esc50, esc50.TASK, ("meta/esc50.csv",), esc50.CLASS_NAMES),
    extraction_of(
        "UrbanSound8K",
        build_urbansound8k,
        urbansound8k.TASK,
        ("metadata/UrbanSound8K.csv",),
        urbansound8k.CLASS_NAMES,
    ),
    extraction_of(
        "NSynth",
        build_nsynth,
        nsynth.task("train"),
        ("nsynth-train/examples.json",),
        nsynth.FAMILIES,
    ),
    extraction_of("ICBHI", build_icbhi, icbhi.LEVELS, ("*.txt",), icbhi.CYCLE_CLASSES, "--level", "cycle"),
    extraction_of("Speech Commands", build_speech_commands, speech_commands.V1, ("*.txt",), ("yes", "no", "bed")),
    extraction_of(
        "LibriSpeech",
        build_librispeech,
        librispeech.TRAIN_CLEAN_100,
        ("SPEAKERS.TXT",),
        None,
    ),
    Command("own table", build_table, (probe,), ("data/table.csv",)),
)


# Audio in all formats

FORMATS = {
    "pcm.wav": "PCM_16",
    "float.wav": "FLOAT",
    "adpcm.wav": "IMA_ADPCM",
    "long.rf64": "PCM_16",
    "sound.w64": "PCM_24",
    "sound.au": "PCM_16",
    "sound.aiff": "PCM_16",
    "sound.caf": "PCM_16",
    "sound.flac": "PCM_16",
    "vorbis.ogg": "VORBIS",
    "sound.mp3": "MPEG_LAYER_III",
}
COMPRESSED = ("vorbis.ogg", "sound.mp3")


def build_audio(folder: Path) -> None:
    (folder / "data").mkdir()
    for seed, (name, subtype) in enumerate(FORMATS.items()):
        soundfile.write(folder / "data" / name, noise(seed, 8_000), 16_000, subtype)


def embed(folder: Path) -> None:
    """own_sounds/embed.py with every file."""
    paths = [str(folder / "data" / name) for name in FORMATS]
    embed_main([*paths, "-o", str(folder / "out" / "features.pt"), *LOGMEL])


EMBED = Command("embedding of files", build_audio, (embed,))


# Features, heads and results


def build_features(folder: Path) -> None:
    saved(grouped_features(folds=2), folder / "features.pt")


def classify(folder: Path) -> None:
    """ESC-50's classification script."""
    places = ("--features", str(folder / "features.pt"), "--output-dir", str(folder / "out"))
    classify_main(esc50.TASK, [*places, "--feature-dim", str(SIZE), *SHORT_FIT])


def build_results(folder: Path) -> None:
    """The results of probe.py."""
    build_table(folder)
    probe(folder)
    (folder / "out").rename(folder / "results")


def predict(folder: Path) -> None:
    """own_sounds/predict.py."""
    head = folder / "results" / "own_table_linear_classifier.pt"
    predict_main([str(head), str(folder / "data"), "--csv", str(folder / "out" / "predicted.csv")])


def summarize(folder: Path) -> None:
    """python -m analysis.summary."""
    places = ["--results", str(folder / "results"), "--output", str(folder / "out")]
    sys.argv = ["analysis.summary", *places]
    run(summary.main)


CLASSIFY = Command("classification", build_features, (classify,))
PREDICT = Command("prediction", build_results, (predict,))
SUMMARIZE = Command("summary of results", build_results, (summarize,))


# The encoder's weights and condition


def build_weights(folder: Path) -> None:
    build_esc50(folder)
    tensors = load_weights("random:1", weight_shapes()).tensors
    torch.save({f"ss_model.{name}": tensor for name, tensor in tensors.items()}, folder / "weights.ckpt")


def build_conditions(folder: Path) -> None:
    build_esc50(folder)
    np.save(folder / "condition.npy", noise(1, 512))


def extract_with(folder: Path, *flags: str) -> None:
    """ESC-50's extraction with AudioSep."""
    extract(esc50.TASK, "--encoder", "audiosep", *flags, folder=folder)


WEIGHTS = Command(
    "weights",
    build_weights,
    (lambda folder: extract_with(folder, "--checkpoint", str(folder / "weights.ckpt")),),
)
CONDITION = Command(
    "condition",
    build_conditions,
    (
        lambda folder: extract_with(
            folder, "--checkpoint", "random:1", "--condition", str(folder / "condition.npy")
        ),
    ),
)


# Downloads

ARCHIVED = {f"top/{number}.wav": np.random.default_rng(number).bytes(9_000) for number in range(6)}


@cache
def file_server() -> Server:
    """A server that runs until the suite ends."""
    context = contextlib.ExitStack()
    atexit.register(context.close)
    return context.enter_context(serving())


def pack_tar(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """A .tar.gz of links and of files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def pack_zip(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """A .zip of links and of files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, target)
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def pack(file: str, files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """An archive of the kind that its name says."""
    return (pack_zip if file.endswith(".zip") else pack_tar)(files, links)


def build_download(folder: Path, file: str, has_checksum: bool) -> None:
    """The table of a data set with one archive."""
    content = pack(file, ARCHIVED)
    file_server().files[file] = content
    archive = {
        "file": file,
        "url": file_server().url.rpartition("/")[0] + f"/{file}",
        "into": "unpacked",
        "unpacked": 60_000,
        "holds": {"top/*.wav": len(ARCHIVED)},
    }
    if has_checksum:
        archive |= {"size": len(content), "checksum": f"sha256:{hashlib.sha256(content).hexdigest()}"}
    source = {"title": "Sounds", "licence": "none", "archives": [archive]}
    (folder / "archives.yaml").write_text(yaml.safe_dump({"sounds": source}))


def download(folder: Path) -> None:
    """python -m common.download."""
    flags: Sequence[str] = ("sounds", "--root", str(folder / "out"))
    run(lambda: download_main(flags, folder / "archives.yaml"))


DOWNLOAD = Command(
    "download", partial(build_download, file="sounds.tar.gz", has_checksum=True), (download,)
)
UNPACK = tuple(
    Command(file, partial(build_download, file=file, has_checksum=False), (download,))
    for file in ("archive.tar.gz", "archive.zip")
)
