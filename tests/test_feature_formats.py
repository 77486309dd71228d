"""Embeddings in formats of other programs: the same clips and labels whichever way they come, and what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pytest
import torch
from pyarrow import feather, parquet

from common.arrays import Array
from common.encoder_name import EncoderKind
from common.feature_formats import checksum_of_features, write_embeddings
from common.features import FeatureFileError, FeatureSet, Provenance

EMBEDDINGS = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
LABELS = ["owl", "frog", "owl", "frog", "owl", "frog"]
FOLDS, GROUPS = [1, 2, 3, 1, 2, 3], ["a", "a", "b", "b", "c", "c"]
TABLE = pd.DataFrame({"label": LABELS, "fold": FOLDS, "speaker": GROUPS})
COLUMNS = pd.DataFrame(EMBEDDINGS, columns=["f0", "f1", "f2"])
LISTS = pa.Table.from_pandas(TABLE.assign(embedding=list(EMBEDDINGS)), preserve_index=False)


def save_npy(path: Path) -> None:
    np.save(path, EMBEDDINGS)
    TABLE.to_csv(path.with_suffix(".csv"), index=False)


def save_stream(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, LISTS.schema) as writer:
        writer.write_table(LISTS)


SAVE: dict[str, Callable[[Path], object]] = {
    "npz": lambda path: np.savez(path, embeddings=EMBEDDINGS, labels=LABELS, folds=FOLDS, groups=GROUPS),
    "npy": save_npy,
    "csv": lambda path: pd.concat([TABLE, COLUMNS], axis=1).to_csv(path, index=False),
    "tsv": lambda path: pd.concat([COLUMNS, TABLE], axis=1).to_csv(path, index=False, sep="\t"),
    "parquet": lambda path: pd.concat([TABLE, COLUMNS], axis=1).to_parquet(path),
    "feather": lambda path: feather.write_feather(LISTS, path),
    "arrow": save_stream,
}


@pytest.mark.parametrize("kind", SAVE)
def test_embeddings_are_the_same_whichever_way_they_come(kind: str, tmp_path: Path) -> None:
    SAVE[kind](tmp_path / f"x.{kind}")
    features = FeatureSet.load(tmp_path / f"x.{kind}")
    np.testing.assert_array_equal(features.features, EMBEDDINGS)
    assert features.class_names == ["frog", "owl"] and features.label_texts == LABELS
    assert features.folds is not None and features.folds.tolist() == FOLDS
    assert features.groups == GROUPS and features.splits is None
    assert features.meta == {"kind": EncoderKind.ELSEWHERE.value, "encoder": f"x.{kind}"}


def test_another_table_beside_an_array_is_another_file(tmp_path: Path) -> None:
    save_npy(tmp_path / "x.npy")
    before = checksum_of_features(tmp_path / "x.npy")
    TABLE[::-1].to_csv(tmp_path / "x.csv", index=False)
    assert checksum_of_features(tmp_path / "x.npy") != before


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([10, 2, 10, 2, 10, 2]), ["10", "2", "10", "2", "10", "2"]),
        (
            np.array(["owl;frog", "frog", "owl", "", "frog;owl", "owl"]),
            ["frog;owl", "frog", "owl", "", "frog;owl", "owl"],
        ),
        (np.eye(6, 2, dtype=int), ["0", "1", "", "", "", ""]),
    ],
)
def test_labels_may_be_numbers_or_several(labels: Array, expected: list[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", embeddings=EMBEDDINGS, labels=labels)
    features = FeatureSet.load(tmp_path / "x.npz")
    assert features.label_texts == expected
    assert features.is_multilabel == (";" in "".join(expected) or labels.ndim == 2)
    assert features.class_names == sorted(
        features.class_names, key=lambda name: name.zfill(2) if name.isdecimal() else name
    )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"vectors": EMBEDDINGS}, r"it has no array called embeddings \(it has vectors\)"),
        ({"embeddings": EMBEDDINGS[0]}, "it has no 2-D floating-point tensor 'features'"),
        ({"embeddings": EMBEDDINGS, "labels": LABELS[:5]}, "6 rows of features but 5 labels"),
        ({"embeddings": EMBEDDINGS, "labels": [*LABELS[:5], ""]}, "row 5 has no label, but others have"),
        (
            {"embeddings": EMBEDDINGS, "split": ["train"] * 5 + ["rest"]},
            "splits.5: Input should be 'train', 'valid', 'test' or 'None'",
        ),
        ({"embeddings": EMBEDDINGS, "clip_ids": ["a"] * 6}, "clip_ids: .*a is in it more than once"),
        ({"embeddings": np.array([[object()]])}, "cannot be used as embeddings"),
    ],
)
def test_what_does_not_fit_is_named(arrays: dict[str, Array], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(FeatureFileError, match=message):
        FeatureSet.load(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "label,size\na,1\n", "it has no columns of numbers such as f0, f1, f2"),
        ("x.csv", "label,f0,f1\na,one,two\n", "could not convert"),
        ("x.npz", "PK", "cannot be used as embeddings"),
        ("x.parquet", "PAR1", "cannot be used as embeddings"),
        ("x.arrow", "", "cannot be used as embeddings"),
        ("x.npy", "", "cannot be used as embeddings"),
    ],
)
def test_damaged_files_are_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FeatureFileError, match=message):
        FeatureSet.load(tmp_path / name)


def whole() -> FeatureSet:
    outputs = [("block1", "mean", 1), ("block2", "mean", 2)]
    meta = Provenance(
        kind="logmel", encoder="log-mel statistics", checkpoint="logmel", outputs=outputs, dataset="birds"
    )
    ids = ["a.wav#0.0-1.5", "a.wav#1.5-None", "b.wav", "c.wav", "d.wav", "e.wav"]
    labels, splits = torch.tensor([1, 0, 1, 0, 1, 0]), ["train", "train", "valid", "valid", "test", "test"]
    # Not in the order of the alphabet.
    return FeatureSet(
        torch.from_numpy(EMBEDDINGS), labels, ["owl", "frog"], ids, torch.tensor(FOLDS), splits, GROUPS, meta
    )


@pytest.mark.parametrize("kind", ["npz", "parquet", "csv"])
def test_what_is_written_is_read_back_equal(kind: str, tmp_path: Path) -> None:
    before = whole()
    write_embeddings(before, tmp_path / f"x.{kind}")
    after = FeatureSet.load(tmp_path / f"x.{kind}")
    assert torch.equal(after.features, before.features) and after.label_texts == before.label_texts
    assert (after.clip_ids, after.splits, after.groups) == (before.clip_ids, before.splits, before.groups)
    assert after.folds is not None and after.folds.tolist() == FOLDS
    if kind != "csv":
        assert after.class_names == before.class_names and after.meta == before.meta


def test_other_programs_open_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_embeddings(whole(), path)
    assert parquet.read_schema(path).field("embedding").type.list_size == 3
    relation = duckdb.read_parquet(str(path)).select("clip_id", "start", "end", "class_name", "embedding")
    assert relation.limit(1).fetchall() == [("a.wav#0.0-1.5", 0.0, 1.5, "frog", EMBEDDINGS[0].tolist())]
    frame = polars.read_parquet(path)
    np.testing.assert_array_equal(frame["embedding"].to_numpy(), EMBEDDINGS)


def test_scikit_learn_gets_folds_too() -> None:
    bunch = whole().to_sklearn()
    assert bunch.folds.tolist() == FOLDS and bunch.groups.tolist() == GROUPS


@pytest.mark.parametrize("more", [{"fold1": [1] * 6}, {"take7": range(6)}, {"Unnamed: 0": range(6)}])
def test_numbers_that_are_no_embeddings_are_none(more: dict[str, object], tmp_path: Path) -> None:
    pd.concat([TABLE.assign(**more), COLUMNS], axis=1).to_csv(tmp_path / "x.csv", index=False)
    np.testing.assert_array_equal(FeatureSet.load(tmp_path / "x.csv").features, EMBEDDINGS)
    TABLE.assign(**more, embedding=list(EMBEDDINGS)).to_csv(tmp_path / "y.csv", index=False)
    with pytest.raises(FeatureFileError, match="it has no columns of numbers"):
        FeatureSet.load(tmp_path / "y.csv")


def test_lists_of_different_lengths_are_refused(tmp_path: Path) -> None:
    lists = [[1.0, 2.0]] * 3 + [[1.0, 2.0, 3.0]] * 2 + [[]]
    parquet.write_table(pa.table({"embedding": lists, "label": LABELS}), tmp_path / "x.parquet")
    with pytest.raises(FeatureFileError, match="the lists of embedding are not all of one length"):
        FeatureSet.load(tmp_path / "x.parquet")
