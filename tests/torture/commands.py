"""The commands that are attacked, and the small files that they read.

A command reads files in a folder `data`, which its `build` fills, and writes into a folder `out`.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
import threading
import zipfile
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
import yaml

from analysis import summary
from common.cli import classify_main, extract_main
from common.datasets import Task
from common.download.command import main as download_main
from common.encoder.checkpoint import load_weights
from common.encoder.network import weight_shapes
from common.extraction import claims
from common.extraction.work import PART_SIZES
from common.flags import run
from demo.generate import generate_icbhi, generate_speech_commands
from esc50_feature_fc import esc50
from icbhi_feature_fc import icbhi
from key_word_spotting import speech_commands
from nsynth_feature_fc import nsynth
from own_sounds.embed import embed_main
from own_sounds.predict import predict_main
from own_sounds.probe import probe_main
from tests.support.heads import SIZE, draw_nothing, grouped_features, saved
from tests.support.loopback import Server
from tests.support.samples import noise, write_csv, write_wav
from tests.torture.runner import Build, Command
from urbansound8k_feature_fc import urbansound8k

claims.RENEW_S, claims.STALE_S = 0.5, 5.0  # the claim of a killed process is cut within
PART_SIZES["cpu"] = (1, 600.0)  # so that there is unfinished work to attack
draw_nothing(pytest.MonkeyPatch())
LOGMEL = ("--encoder", "logmel", "--device", "cpu", "--workers", "2")


# Data sets


def build_esc50(data: Path) -> None:
    """Six clips, one of which cannot be decoded, and a file of settings."""
    rows = []
    for fold in (1, 2, 5):
        for target in (0, 10):
            name = f"{fold}-{1000 + fold}-A-{target}.wav"
            rows.append((name, fold, target, esc50.CLASS_NAMES[target], True, 1000 + fold, "A"))
            write_wav(data / "audio" / name, fold + target, seconds=0.05 + 0.01 * fold)
    (data / "audio" / rows[3][0]).write_bytes(b"not audio")
    columns = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    write_csv(data / "meta" / "esc50.csv", columns, rows)
    (data / "settings.yaml").write_text("precision: fp32\n")


def build_urbansound8k(data: Path) -> None:
    rows = [(f"{fold}-3-0-1.wav", fold, 0, 4, 1, fold, 3, "dog_bark") for fold in (1, 2, 10)]
    for name, fold, *_ in rows:
        write_wav(data / "audio" / f"fold{fold}" / name, fold, seconds=0.05)
    columns = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
    write_csv(data / "metadata" / "UrbanSound8K.csv", columns, rows)


def build_nsynth(data: Path) -> None:
    notes = {}
    for number, family in enumerate(("bass", "vocal", "synth_lead")):
        name = f"{family}_acoustic_{number:03d}-060-100"
        write_wav(data / "nsynth-train" / "audio" / f"{name}.wav", number, seconds=0.05)
        notes[name] = {"note": number, "instrument_str": name[:-8], "qualities": [0]}
        notes[name] |= {"instrument_family": number, "instrument_family_str": family}
    (data / "nsynth-train" / "examples.json").write_text(json.dumps(notes))


def build_table(data: Path) -> None:
    rows = [(f"{n}.wav", "ab"[n % 2], n // 2 % 2 + 1, f"group{n}", 0, 0.05) for n in range(8)]
    for number, row in enumerate(rows):
        write_wav(data / row[0], number, seconds=0.06)
    write_csv(data / "table.csv", ("path", "label", "fold", "group", "start", "end"), rows)


def extract(data: Path, out: Path, task: Task = esc50.TASK, flags: tuple[str, ...] = ()) -> None:
    places = ("--data-root", str(data), "--output", str(out / "features.pt"))
    extract_main(task, [*places, *LOGMEL, *(flag.format(data=data) for flag in flags)])


def probe(data: Path, out: Path) -> None:
    places = (str(data / "table.csv"), "--output-dir", str(out))
    probe_main([*places, *LOGMEL, "--epochs", "1"])


def extraction_of(task: Task, build: Build, listing: str) -> Command:
    """The extraction of a data set, whose listing is attacked."""
    return Command(task.name, build, (partial(extract, task=task),), listing, task.class_names)


WITH_SETTINGS = partial(extract, flags=("--config", "{data}/settings.yaml"))
EXTRACT = Command("extraction", build_esc50, (WITH_SETTINGS,), "data/settings.yaml")
SHARDS = Command(
    "extraction in two shards",
    build_esc50,
    tuple(partial(extract, flags=("--shard", shard)) for shard in ("1/2", "2/2")),
    "out/**/*.pt",
)
TABLE = Command("a table", build_table, (probe,), "data/table.csv")
DATA_SETS = (
    extraction_of(esc50.TASK, build_esc50, "data/meta/*"),
    TABLE,
    extraction_of(urbansound8k.TASK, build_urbansound8k, "data/metadata/*"),
    extraction_of(nsynth.task("train"), build_nsynth, "data/*/examples.json"),
    extraction_of(icbhi.CYCLES, partial(generate_icbhi, patients=3), "**/*.txt"),
    extraction_of(speech_commands.V1, partial(generate_speech_commands, speakers=3), "data/*.txt"),
)


# Audio

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
COMPRESSED = {"vorbis.ogg", "sound.mp3"}


def build_audio(data: Path) -> None:
    for seed, (name, subtype) in enumerate(FORMATS.items()):
        soundfile.write(data / name, noise(seed, 8_000), 16_000, subtype)


def embed(data: Path, out: Path) -> None:
    paths = [str(data / name) for name in FORMATS]
    embed_main([*paths, "-o", str(out / "features.pt"), *LOGMEL])


EMBED = Command("embedding of files", build_audio, (embed,))


# Features, heads, results and weights


def build_features(data: Path) -> None:
    saved(grouped_features(folds=2), data / "features.pt")


def classify(data: Path, out: Path) -> None:
    places = ("--features", str(data / "features.pt"), "--output-dir", str(out))
    flags = ("--feature-dim", str(SIZE), "--device", "cpu", "--epochs", "1")
    classify_main(esc50.TASK, [*places, *flags])


def build_results(data: Path) -> None:
    build_table(data)
    probe(data, data / "results")


def predict(data: Path, out: Path) -> None:
    head = data / "results" / "own_table_linear_classifier.pt"
    predict_main([str(head), str(data), "--csv", str(out / "predicted.csv")])


def summarize(data: Path, out: Path) -> None:
    flags = ["summary", "--results", str(data / "results"), "--output", str(out)]
    with mock.patch.object(sys, "argv", flags):
        run(summary.main)


def build_weights(data: Path) -> None:
    build_esc50(data)
    tensors = load_weights("random:1", weight_shapes()).tensors
    torch.save({f"ss_model.{name}": tensors[name] for name in tensors}, data / "weights.ckpt")


CLASSIFY = Command("classification", build_features, (classify,), "data/features.pt")
PREDICT = Command("prediction", build_results, (predict,), "data/results/*linear*.pt")
SUMMARIZE = Command("summary of results", build_results, (summarize,), "data/results/*.json")
AUDIOSEP = ("--encoder", "audiosep", "--checkpoint", "{data}/weights.ckpt")
WITH_WEIGHTS = partial(extract, flags=AUDIOSEP)
WEIGHTS = Command("AudioSep's weights", build_weights, (WITH_WEIGHTS,), "data/weights.ckpt")


# Downloads

ARCHIVED = {f"top/{number}.wav": np.random.default_rng(number).bytes(9_000) for number in range(6)}


@cache
def file_server() -> Server:
    """A server that runs until the suite ends."""
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def pack(file: str, members: Mapping[str, bytes | str]) -> bytes:
    """A zip, or a compressed tar, of files (bytes) and links (where they lead)."""
    packed = io.BytesIO()
    if file.endswith(".zip"):
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in members.items():
                member = zipfile.ZipInfo(name)
                member.external_attr = (0o120777 if isinstance(content, str) else 0o100644) << 16
                archive.writestr(member, content, zipfile.ZIP_DEFLATED)
        return packed.getvalue()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def build_download(data: Path, file: str, has_checksum: bool) -> None:
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
        archive["checksum"] = f"sha256:{hashlib.sha256(content).hexdigest()}"
    source = {"title": "Sounds", "licence": "none", "archives": [archive]}
    (data / "archives.yaml").write_text(yaml.safe_dump({"sounds": source}))


def download(data: Path, out: Path) -> None:
    run(lambda: download_main(("sounds", "--root", str(out)), data / "archives.yaml"))


CHECKED = partial(build_download, file="sounds.tar.gz", has_checksum=True)
DOWNLOAD = Command("download", CHECKED, (download,))
UNPACK = tuple(
    Command(file, partial(build_download, file=file, has_checksum=False), (download,))
    for file in ("archive.tar.gz", "archive.zip")
)
