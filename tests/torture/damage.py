"""Bits flipped, pieces cut, zeroed and doubled in every file that the project writes and reads again."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis.encoders import _Hits
from analysis.runs import read_runs
from conftest import draw_nothing, extract_clips, write_wav
from heads_helpers import classify, grouped_features, run, saved
from stand_in import StandIn

from analysis.report import _map
from common.datasets import Clip
from common.encoder import load_encoder
from common.encoder.check import CheckRecord
from common.encoder.check import main as check_main
from common.encoder.checkpoint import file_sha256
from common.evaluation.predictions import read_predictions
from common.evaluation.record import RunRecord
from common.export.hugging_face import export_hugging_face
from common.extraction import Shard
from common.extraction import extract as extract_module
from common.features import FeatureSet
from common.heads import TrainedHead
from own_sounds.sounds import Source
from tests.torture.harness import Attack, Case, mutated, require


@dataclass(frozen=True)
class Kept:
    """A kind of file that is read again.

    Attributes:
        name: what it is.
        make: writes one into a folder, and returns it.
        read: reads it again, as the project does, into something that can be compared.
        quick: whether a case takes milliseconds.
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    quick: bool = True


def _numbers(*values: torch.Tensor | np.ndarray | None) -> list[object]:
    return [None if value is None else np.asarray(value).tolist() for value in values]


def make_features(folder: Path) -> Path:
    return saved(grouped_features(), folder / "features.pt")


def read_features(path: Path) -> object:
    features = FeatureSet.load(path)
    return [
        _numbers(features.features, features.labels, features.folds),
        features.clip_ids,
        features.class_names,
        features.groups,
        repr(sorted(features.meta.items())),
    ]


def make_head(folder: Path) -> Path:
    run(grouped_features(), epochs=1).heads["three_layer"].save(folder / "head.pt")
    return folder / "head.pt"


def read_head(path: Path) -> object:
    head = TrainedHead.load(path)
    assert head.known is not None
    weights = [value.tolist() for value in head.module.state_dict().values()]
    scaler = _numbers(head.scaler.mean, head.scaler.scale, head.known.embeddings, head.known.held_out)
    return [weights, scaler, head.temperature, head.class_names, repr(head.encoder)]


def make_run(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        ended = classify("--features", make_features(folder), "--output-dir", folder / "out", "--epochs", 1)
    assert ended.returncode == 0, ended.stderr
    return folder / "out" / "result.json"


def read_predicted(path: Path) -> object:
    (one,) = read_runs(path.parent)
    return one.predictions(), read_predictions(path, ("linear", "three_layer"), 42), repr(_Hits.read(one).heads)


def make_source(folder: Path) -> Path:
    Source(folder / "sounds", r"^(\d)_", None).save(folder, folder)
    return folder / "own_sounds.json"


def make_check(folder: Path) -> Path:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        check_main(["logmel", "--device", "cpu", "--json", str(folder / "check.json")])
    return folder / "check.json"


def make_export(folder: Path) -> Path:
    export_hugging_face(folder / "exported", "random:1")
    return folder / "exported" / "model.safetensors"


def read_export(path: Path) -> object:
    encoder = load_encoder(path.parent, "cpu")
    state = encoder.network.state_dict()
    return [float(value.double().sum()) for value in state.values()]


def make_weights_note(folder: Path) -> Path:
    """The checksum of a checkpoint, which is noted beside it."""
    (folder / "weights.bin").write_bytes(b"weights")
    file_sha256(folder / "weights.bin")
    return folder / "weights.bin.sha256.json"


def make_map(folder: Path) -> Path:
    (one,) = read_runs(make_run(folder).parent)
    _map(one, folder, 50)
    (path,) = (folder / "maps").glob("*.npz")
    return path


def read_map(path: Path) -> object:
    """It is drawn again where it is damaged."""
    (one,) = read_runs(path.parent.parent / "out")
    drawn = _map(one, path.parent.parent, 50)
    return drawn.rows.tolist(), drawn.caption


KINDS = [
    Kept("feature file", make_features, read_features),
    Kept("trained head", make_head, read_head),
    Kept("result.json", make_run, lambda path: RunRecord.load(path).model_dump_json()),
    Kept("predictions.csv", lambda folder: make_run(folder).with_name("predictions.csv"), read_predicted),
    Kept("checksum of weights", make_weights_note, lambda path: file_sha256(path.with_name("weights.bin"))),
    Kept("own_sounds.json", make_source, lambda path: Source.load(path.parent)),
    Kept("check of an encoder", make_check, lambda path: CheckRecord.load(path).model_dump_json(), quick=False),
    Kept("exported weights", make_export, read_export, quick=False),
    Kept("map of a report", make_map, read_map, quick=False),
]


def _read_again(rng: random.Random, common: Path) -> Iterator[Case]:
    made: dict[str, tuple[Path, bytes, object]] = {}
    for number in range(1_000_000):
        kind = KINDS[number % len(KINDS)]
        if kind.name not in made:
            folder = common / kind.name.replace(" ", "_")
            folder.mkdir()
            path = kind.make(folder)
            made[kind.name] = path, path.read_bytes(), kind.read(path)
        path, content, expected = made[kind.name]
        what, changed = mutated(content, rng)

        def attack(
            folder: Path, kind: Kept = kind, path: Path = path, changed: bytes = changed, expected: object = expected
        ) -> None:
            path.write_bytes(changed)
            found = kind.read(path)
            require(pickle.dumps(found) == pickle.dumps(expected), f"{kind.name} gives other values")

        yield Case(f"{kind.name}: {what}", attack)
        path.write_bytes(content)


# Unfinished work


def _unfinished(rng: random.Random, common: Path) -> Iterator[Case]:
    """A file of the folder of unfinished work is damaged: the same command, or with --overwrite, still gives the same file."""
    root = common / "audio"
    for index in range(5):
        write_wav(root / f"clip{index}.wav", index, 0.05)
    clips = [Clip(path, "a") for path in sorted(root.glob("*.wav"))]
    extract_module.SAVE_EVERY_S = -1.0
    extract_clips(clips, root, StandIn(), common / "whole.pt")
    expected = (common / "whole.pt").read_bytes()

    def shard(output: Path, index: int, overwrite: bool = False) -> None:
        extract_clips(clips, root, StandIn(), output, shard=Shard(index, 2), overwrite=overwrite)

    shard(common / "features.pt", 0)
    files = {path.name: path.read_bytes() for path in (common / "features.pt.partial").iterdir()}
    names = sorted(name for name, content in files.items() if content)
    other = [
        torch.ones(3),
        {"settings": 1},
        {"a": torch.ones(2)},
        "text",
        {"indices": torch.full((2,), 9), "settings": ""},
    ]

    def attack(folder: Path, name: str, content: bytes, overwrite: bool) -> None:
        work = folder / "features.pt.partial"
        work.mkdir()
        for each, own in files.items():
            (work / each).write_bytes(content if each == name else own)
        shard(folder / "features.pt", 1, overwrite)
        if not (folder / "features.pt").exists():  # the first shard's note is gone, so it is run again
            shard(folder / "features.pt", 0)
        if not (folder / "features.pt").exists():
            shard(folder / "features.pt", 1)
        require((folder / "features.pt").read_bytes() == expected, "another file")

    while True:
        name, overwrite = rng.choice(names), rng.random() < 0.3
        if name.endswith(".pt") and rng.random() < 0.2:
            value = rng.choice(other)
            torch.save(value, common / "other.pt")
            what, content = f"holds {str(value)[:40]}", (common / "other.pt").read_bytes()
        else:
            what, content = mutated(files[name], rng)
        yield Case(
            f"{name}: {what}{', --overwrite' * overwrite}",
            lambda folder, name=name, content=content, overwrite=overwrite: attack(folder, name, content, overwrite),
        )


ATTACKS = [
    Attack(
        "damaged files that are read again",
        "a bit or byte changed, pieces cut, zeroed or doubled in " + ", ".join(kind.name for kind in KINDS),
        _read_again,
        3,
        800,
    ),
    Attack(
        "damaged unfinished work",
        "the same in chunks, notes, settings and lengths of an extraction in shards, or other content in their places",
        _unfinished,
        3,
        600,
    ),
]
