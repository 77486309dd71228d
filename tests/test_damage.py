"""Files that are read again: a flipped bit or a cut is told, and never gives other numbers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.scores import read_runs
from common.encoder import CheckpointError, load_encoder
from common.evaluation.record import RecordError, RunRecord
from common.features import FeatureFileError, FeatureSet
from common.files import DamagedFileError, read_json, spreadsheet_cell, write_json
from common.heads import HeadFileError, TrainedHead
from integrations.export.hugging_face import export_hugging_face
from tests.support import processes, stand_in
from tests.support.heads import classify, draw_nothing, grouped_features, run, saved

FLIPS = 150


def feature_file(folder: Path) -> Path:
    return saved(grouped_features(), folder / "features.pt")


def head_file(folder: Path) -> Path:
    run(grouped_features(), epochs=1).heads["three_layer"].save(folder / "head.pt")
    return folder / "head.pt"


def tensors_of_features(path: Path) -> list[torch.Tensor]:
    features = FeatureSet.load(path)
    assert features.folds is not None
    return [features.features, features.labels, features.folds]


def tensors_of_head(path: Path) -> list[torch.Tensor]:
    head = TrainedHead.load(path)
    assert head.known is not None
    arrays = [head.scaler.mean, head.scaler.scale, head.known.embeddings, head.known.held_out]
    return [*head.module.state_dict().values(), *map(torch.from_numpy, arrays), torch.tensor(head.temperature)]


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], list[torch.Tensor]], type[Exception]]] = {
    "features": (feature_file, tensors_of_features, FeatureFileError),
    "head": (head_file, tensors_of_head, HeadFileError),
}


def with_flipped_bits(content: bytes) -> Iterator[bytes]:
    """The content with another bit flipped, FLIPS times."""
    rng = np.random.default_rng(0)
    for place, bit in zip(rng.integers(0, len(content), FLIPS), rng.integers(0, 8, FLIPS), strict=True):
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        yield bytes(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_never_gives_other_numbers(kind: str, tmp_path: Path) -> None:
    make, read, refused = KINDS[kind]
    path = make(tmp_path)
    before, content = read(path), path.read_bytes()
    told = 0
    for changed in with_flipped_bits(content):
        path.write_bytes(changed)
        try:
            after = read(path)
        except refused:
            told += 1
            continue
        for one, other in zip(before, after, strict=True):  # what a zip does not use, such as its padding
            assert torch.equal(one, other)
    assert told > FLIPS / 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_refused(kind: str, tmp_path: Path) -> None:
    make, read, refused = KINDS[kind]
    path = make(tmp_path)
    content = path.read_bytes()
    for size in np.linspace(0, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:size])
        with pytest.raises(refused):
            read(path)


def test_a_flipped_bit_in_a_result_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_nothing(monkeypatch)
    classify("--features", feature_file(tmp_path), "--output-dir", tmp_path / "out", "--epochs", 1)
    path = tmp_path / "out" / "result.json"
    before, content = RunRecord.load(path), path.read_bytes()
    told = 0
    for changed in with_flipped_bits(content):
        path.write_bytes(changed)
        try:
            after = RunRecord.load(path)
        except RecordError:
            told += 1
        else:
            said = "has changed since it was written" in capsys.readouterr().err
            assert said or after == before  # between the values, or in the checksum's name
            told += said
    assert told > FLIPS / 2
    path.write_bytes(content)
    (one,) = read_runs(tmp_path / "out")
    assert len(one.predictions())
    path = one.folder / "predictions.pt"
    path.write_bytes(path.read_bytes().replace(b"fold 1", b"fold 2", 1))
    with pytest.raises(FeatureFileError, match=r"not what was written.*classify again with --overwrite"):
        one.predictions()


def test_edited_json_is_read_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new.json"
    write_json(path, '{"a": 1.5, "b": null}')
    assert json.loads(read_json(path)) == {"a": 1.5, "b": None}
    assert capsys.readouterr().err == ""
    path.write_text(path.read_text().replace("1.5", "2.5"))
    assert json.loads(read_json(path)) == {"a": 2.5, "b": None}
    assert "new.json has changed since it was written" in capsys.readouterr().err
    for text in ("[]", "{", "[" * 100_000, "\xff"):
        (tmp_path / "other.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(DamagedFileError):
            read_json(tmp_path / "other.json")


def test_a_clip_stored_twice_is_refused(tmp_path: Path) -> None:
    features = grouped_features()
    ids = list(features.clip_ids)
    ids[7] = ids[3]
    saved(replace(features, clip_ids=ids), tmp_path / "features.pt")
    with pytest.raises(FeatureFileError, match=f"clip_ids: {ids[3]} is in it more than once"):
        FeatureSet.load(tmp_path / "features.pt")


def test_changed_exported_weights_are_refused(tmp_path: Path) -> None:
    export_hugging_face(tmp_path / "exported", "random:0")
    path = tmp_path / "exported" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: it is not the file that was exported; export again"):
        load_encoder(tmp_path / "exported", "cpu")


@pytest.mark.parametrize("cell", ["=cmd|'/c calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\tx"])
def test_no_cell_for_a_spreadsheet_is_a_formula(cell: str) -> None:
    assert spreadsheet_cell(cell) == f"'{cell}"
    for harmless in ("plain", "a=b", -0.5, None):
        assert spreadsheet_cell(harmless) == harmless


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX descriptors")
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("how", ["closed", "ended"])
def test_a_closed_terminal_costs_no_work(number: int, how: str, esc50_root: Path, tmp_path: Path) -> None:
    """`2>&-`, and `| head`: the file is right, or the same command makes it."""
    arguments = ["--data-root", str(esc50_root), "--checkpoint", "random:0", "--output", str(tmp_path / "features.pt")]
    process = processes.start(tmp_path / "printed.txt", extract_with_odd_streams, arguments, number, how)
    status = processes.end(process)
    assert status == (0 if how == "closed" else 2)
    assert (tmp_path / "features.pt").exists() == (status == 0)


def extract_with_odd_streams(arguments: list[str], number: int, how: str) -> None:
    """In a process of its own: the stand-in's extraction without, or with a broken, stream."""
    name = ("stdin", "stdout", "stderr")[number]
    if how == "closed":
        os.close(number)
        setattr(sys, name, None)
    else:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, number)
        setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))
    stand_in.main(arguments)
