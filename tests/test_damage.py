"""Files that are read again: a flipped bit or a cut is told, and never gives other numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heads_helpers import classify, draw_nothing, grouped_features, run, saved

from analysis.runs import read_runs
from common.datasets import Clip
from common.evaluation.record import RecordError, RunRecord
from common.extraction.resume import RowStore
from common.features import FeatureFileError, FeatureSet
from common.files import DamagedFileError, load_torch, read_json, save_torch, write_json
from common.heads import HeadFileError, TrainedHead

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
def test_a_cut_is_told(kind: str, tmp_path: Path) -> None:
    make, read, refused = KINDS[kind]
    path = make(tmp_path)
    content = path.read_bytes()
    for size in np.linspace(0, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:size])
        with pytest.raises(refused):
            read(path)


def test_a_damaged_chunk_is_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = RowStore.empty(3, 4, "settings")
    for index in range(3):
        rows.add(index, torch.full((4,), float(index)), 100, 7)
    rows.save_chunk(tmp_path)
    (chunk,) = tmp_path.glob("chunk-*.pt")
    content = bytearray(chunk.read_bytes())
    place = content.index(np.float32(2).tobytes())
    content[place + 2] ^= 1
    chunk.write_bytes(bytes(content))
    fresh = RowStore.empty(3, 4, "settings")
    clips = [Clip(tmp_path / f"{name}.wav", "a") for name in range(3)]
    assert fresh.read_chunks(tmp_path, clips, [0, 1, 2]) == 0
    assert "is damaged (its part" in capsys.readouterr().out and not chunk.exists()


def test_what_other_versions_of_torch_wrote_is_read(tmp_path: Path) -> None:
    """Before version 1.6 files were no zips, and had no checksums."""
    torch.save({"a": torch.arange(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_torch(tmp_path / "old.pt")["a"], torch.arange(3))
    save_torch({"a": torch.arange(3)}, tmp_path / "new.pt")
    (tmp_path / "new.pt").write_bytes((tmp_path / "new.pt").read_bytes()[:-30])
    with pytest.raises(DamagedFileError):
        load_torch(tmp_path / "new.pt")


def test_a_huge_label_takes_no_memory(tmp_path: Path) -> None:
    """Whether or not names are stored."""
    features = grouped_features()
    content: dict[str, Any] = {"features": features.features, "labels": features.labels.clone()}
    content["labels"][3] = 1 << 50
    for names in ({}, {"class_names": list(features.class_names)}):
        save_torch({**content, **names}, tmp_path / "features.pt")
        if names:
            with pytest.raises(FeatureFileError, match=r"label 1125899906842624 but only 4 class names"):
                FeatureSet.load(tmp_path / "features.pt")
        else:
            assert len(FeatureSet.load(tmp_path / "features.pt").class_names) == 5


def test_a_flipped_bit_in_a_result_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)
    classify("--features", feature_file(tmp_path), "--output-dir", tmp_path / "out", "--epochs", 1)
    path = tmp_path / "out" / "result.json"
    before, content = RunRecord.load(path), path.read_bytes()
    told = 0
    for changed in with_flipped_bits(content):
        path.write_bytes(changed)
        try:
            assert RunRecord.load(path) == before  # between the values, or the checksum's own name
        except RecordError:
            told += 1
    assert told > FLIPS / 2
    path.write_bytes(content)
    (one,) = read_runs(tmp_path / "out")
    assert one.predictions()
    table = one.folder / "predictions.csv"
    table.write_text(table.read_text().replace("fold 1", "fold 2", 1))
    with pytest.raises(FeatureFileError, match=r"not what was written.*classify again with --overwrite"):
        one.predictions()


def test_json_of_earlier_versions_has_no_checksum(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"a": 1.5}')
    assert json.loads(read_json(tmp_path / "old.json")) == {"a": 1.5}
    write_json(tmp_path / "new.json", '{"a": 1.5, "b": null}')
    assert json.loads(read_json(tmp_path / "new.json")) == {"a": 1.5, "b": None}
    for text in ("[]", "{", "[" * 100_000, "\xff"):
        (tmp_path / "other.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(DamagedFileError):
            read_json(tmp_path / "other.json")


def test_a_clip_that_is_there_twice_is_told(tmp_path: Path) -> None:
    features = grouped_features()
    ids = list(features.clip_ids)
    ids[7] = ids[3]
    saved(replace(features, clip_ids=ids), tmp_path / "features.pt")
    with pytest.raises(FeatureFileError, match=f"clip {ids[3]} is in it more than once"):
        FeatureSet.load(tmp_path / "features.pt")
