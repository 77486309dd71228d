"""Feature files and trained heads as a stranger may send them: well-formed files with hostile content."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_nothing
from heads_helpers import classify, grouped_features, run, saved

from common.errors import UserError
from common.evaluation.record import RunRecord
from common.features import FeatureSet
from common.heads import TrainedHead
from tests.torture.harness import Attack, Case, require


class Executes:
    """Would make a file if it were unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (Path("executed"),))


def _pool(rows: int) -> dict[str, Callable[[], Any]]:
    """Hostile values, by what they are; made only when they are needed."""
    return {
        "None": lambda: None,
        "a text": lambda: "x",
        "a number": lambda: 7,
        "an empty list": list,
        "an empty dict": dict,
        "a list of lists": lambda: [[1], [2]],
        "stride 0, 10^9 rows": lambda: torch.zeros(1, 24).expand(10**9, 24),
        "stride 0, its rows": lambda: torch.zeros(1).expand(rows),
        "no rows": lambda: torch.zeros(0, 24),
        "no columns": lambda: torch.zeros(rows, 0),
        "a scalar": lambda: torch.tensor(1.0),
        "three dimensions": lambda: torch.zeros(rows, 2, 2),
        "complex": lambda: torch.zeros(rows, 24, dtype=torch.complex64),
        "complex labels": lambda: torch.zeros(rows, dtype=torch.complex64),
        "sparse": lambda: torch.eye(rows).to_sparse(),
        "sparse CSR": lambda: torch.eye(rows).to_sparse_csr(),
        "meta": lambda: torch.zeros(10**6, 10**6, device="meta"),
        "meta labels": lambda: torch.zeros(rows, dtype=torch.int64, device="meta"),
        "quantized": lambda: torch.quantize_per_tensor(torch.zeros(rows, 24), 0.1, 0, torch.quint8),
        "bool": lambda: torch.zeros(rows, dtype=torch.bool),
        "half": lambda: torch.randn(rows, 24).half(),
        "double": lambda: torch.randn(rows, 24).double(),
        "bfloat16": lambda: torch.randn(rows, 24).bfloat16(),
        "float8": lambda: torch.randn(rows, 24).to(torch.float8_e4m3fn),
        "NaN": lambda: torch.full((rows, 24), float("nan")),
        "infinite": lambda: torch.full((rows, 24), float("inf")),
        "3e38": lambda: torch.full((rows, 24), 3e38) * torch.randn(rows, 24).sign(),
        "1e-45": lambda: torch.full((rows, 24), 1e-45),
        "constant": lambda: torch.ones(rows, 24),
        "labels of 10^15": lambda: torch.full((rows,), 10**15),
        "one label of 10^15": lambda: torch.cat([torch.zeros(rows - 1, dtype=torch.int64), torch.tensor([10**15])]),
        "negative labels": lambda: -torch.arange(rows) - 2,
        "one class": lambda: torch.zeros(rows, dtype=torch.int64),
        "a class a clip": lambda: torch.arange(rows),
        "uint8": lambda: (torch.arange(rows) % 4).to(torch.uint8),
        "too many": lambda: torch.zeros(rows + 1, dtype=torch.int64),
        "folds of 10^18": lambda: torch.full((rows,), 10**18),
        "a fold a clip": lambda: torch.arange(rows),
        "names of 10^5 letters": lambda: [f"{index}{'x' * 10**5}" for index in range(4)],
        "names of tags": lambda: ["<script>alert(1)</script>", "=cmd|'/c calc'!A0", "\x00\n\r\t", "a\u202eb"],
        "names that are numbers": lambda: [1, 2.5, None, True],
        "names that are tensors": lambda: [torch.ones(1)] * 4,
        "one name for all": lambda: ["a"] * 4,
        "too many names": lambda: [str(index) for index in range(10_000)],
        "too few names": lambda: ["a"],
        "rows of tensors": lambda: [torch.ones(1)] * rows,
        "rows of None": lambda: [None] * rows,
        "rows of texts": lambda: [f"row{index}" for index in range(rows)],
        "rows of formulas": lambda: [f"=1+{index}" for index in range(rows)],
        "rows of one text": lambda: ["same"] * rows,
        "code": Executes,
    }


def _metas() -> dict[str, Callable[[], Any]]:
    """Values of the provenance."""
    return {
        "meta: a tensor": lambda: {"dataset": "esc50", "extra": torch.ones(3)},
        "meta: tuple keys": lambda: {"dataset": "esc50", ("a", "b"): 1},
        "meta: number keys": lambda: {"dataset": "esc50", 3: 1},
        "meta: nested": lambda: {"dataset": "esc50", "extra": {"a": [{"b": (1, torch.ones(1))}]}},
        "meta: NaN": lambda: {"dataset": "esc50", "extra": float("nan")},
        "meta: bytes": lambda: {"dataset": "esc50", "extra": b"\xff"},
        "meta: outputs": lambda: {"dataset": "esc50", "outputs": [("a", "b", 10**9)], "default_output": ("a", "b")},
        "meta: outputs of no width": lambda: {"dataset": "esc50", "outputs": [("a", "", -3), ("b", "", 27)]},
        "meta: counts": lambda: {"dataset": "esc50", "counts": {"clips": -1, "failed": 10**30}},
        "meta: failed": lambda: {"dataset": "esc50", "failed": [("a", "b")] * 10, "samples": torch.ones(2)},
        "meta: a long text": lambda: {"dataset": "esc50", "encoder": "x" * 10**6},
        "meta: another data set": lambda: {"dataset": "nsynth"},
        "meta: a list": lambda: [1, 2],
        "meta: deep": lambda: _deep(100),
    }


def _deep(depth: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return {"dataset": "esc50", "extra": value}


def _content(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def _hostile_features(rng: random.Random, common: Path) -> Iterator[Case]:
    content = _content(saved(grouped_features(folds=2), common / "features.pt"))
    with pytest.MonkeyPatch.context() as patch:  # what is imported once need not be imported in every case
        draw_nothing(patch)
        classify("--features", common / "features.pt", "--output-dir", common / "out", "--epochs", 1)
    pool, metas = _pool(len(content["features"])), _metas()
    keys = ["features", "labels", "class_names", "clip_ids", "folds", "splits", "groups"]
    every = [(key, what) for key in keys for what in pool] + [("meta", what) for what in metas]
    rng.shuffle(every)

    def attack(folder: Path, changes: list[tuple[str, str]]) -> None:
        changed = dict(content)
        for key, what in changes:
            changed[key] = metas[what]() if key == "meta" else pool[what]()
        torch.save(changed, folder / "features.pt")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            draw_nothing(patch)
            ended = classify("--features", folder / "features.pt", "--output-dir", folder / "out", "--epochs", 1)
        require(not (folder / "executed").exists(), "code was run")
        require("Traceback" not in ended.stderr, ended.stderr[-300:])
        if ended.returncode == 2:
            lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
            require(len(lines) == 1, f"{len(lines)} lines of error: {ended.stderr[-300:]}")
            raise UserError(lines[0])
        require(ended.returncode == 0, f"ended with {ended.returncode}")
        record = RunRecord.load(folder / "out" / "result.json")
        accuracy = record.protocols["official" if "official" in record.protocols else "random"].heads["linear"].accuracy
        require(0 <= accuracy <= 100, f"accuracy {accuracy}")

    while True:
        for first in every:
            changes = [first] if rng.random() < 0.7 else [first, rng.choice(every)]
            yield Case(
                ", ".join(f"{key}: {what}" for key, what in changes), lambda folder, c=changes: attack(folder, c)
            )


def _hostile_heads(rng: random.Random, common: Path) -> Iterator[Case]:
    features = grouped_features()
    run(features, epochs=1).heads["three_layer"].save(common / "head.pt")
    content = _content(common / "head.pt")
    pool: dict[str, Callable[[], Any]] = {
        **_pool(len(features)),
        **_metas(),
        "10^9": lambda: 10**9,
        "10^19": lambda: 10**19,
        "-1": lambda: -1,
        "0": lambda: 0,
        "NaN number": lambda: float("nan"),
        "zeros of its width": lambda: torch.zeros(24, dtype=torch.float64),
        "another head": lambda: "linear",
        "an unknown head": lambda: "deep",
    }
    every = [(key, what) for key in content for what in pool]
    rng.shuffle(every)

    def attack(folder: Path, key: str, what: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            torch.save({**content, key: pool[what]()}, folder / "head.pt")
            head = TrainedHead.load(folder / "head.pt")
            logits = head.logits(features.features)
            require(bool(logits.isfinite().all()), "logits are not finite")
            require(logits.shape == (len(features), len(head.class_names)), f"logits are {tuple(logits.shape)}")
            if head.known is not None:
                require(bool(np.isfinite(head.known.distances(features.features.numpy())).all()), "distances")
            require(not (folder / "executed").exists(), "code was run")

    for key, what in every:
        yield Case(f"{key}: {what}", lambda folder, key=key, what=what: attack(folder, key, what))


def _code(rng: random.Random, common: Path) -> Iterator[Case]:
    """Pickles that run code, in every file that torch loads, in every format that it has."""
    for legacy in (False, True):
        for place in ("itself", "in a list", "as a key", "in meta"):

            def attack(folder: Path, legacy: bool = legacy, place: str = place) -> None:
                value: Any = Executes()
                made = {"itself": value, "in a list": [value], "as a key": {value: 1}, "in meta": {"meta": value}}[
                    place
                ]
                torch.save(made, folder / "file.pt", _use_new_zipfile_serialization=not legacy)
                with pytest.MonkeyPatch.context() as patch:
                    patch.chdir(folder)
                    for load in (FeatureSet.load, TrainedHead.load):
                        with pytest.raises(UserError):
                            load(folder / "file.pt")
                require(not (folder / "executed").exists(), "code was run")

            yield Case(f"{place}{', legacy' * legacy}", attack)


ATTACKS = [
    Attack(
        "hostile feature files",
        "well-formed files with sparse, complex or endless tensors, huge labels and names, provenance that is no JSON; classified",
        _hostile_features,
        2,
        500,
        has_answer=False,
    ),
    Attack("hostile heads", "the same in trained heads, which are then used", _hostile_heads, 3, 500, has_answer=False),
    Attack("code in files", "pickles that would run code, as features and as heads", _code, 2, 20),
]
