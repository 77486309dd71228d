"""Checkpoints: every wrapping read alike and strictly; every wrong file named in one line; nothing executed."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.encoder import AudioSepEncoder, checkpoint, load_encoder
from common.encoder.checkpoint import CheckpointError, file_sha256, load_weights
from common.encoder.network import weight_shapes
from tests.support.heads import on_one_thread
from tests.support.samples import SHARED, needs_shared, noise

Tensors = dict[str, torch.Tensor]
# Of the encoder's tensors those of less than 80 kB, so that a file is written and read in no time.
SHAPES = {name: shape for name, shape in weight_shapes().items() if math.prod(shape) < 20_000}


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    """Of SHAPES."""
    return load_weights("random:2024", SHAPES).tensors


@pytest.fixture(scope="module")
def whole() -> Tensors:
    """Of the whole encoder."""
    return load_weights("random:2024", weight_shapes()).tensors


def with_other_keys(tensors: Tensors, prefix: str = "ss_model.") -> Tensors:
    """A state dict as published: the decoder, the STFT and the text encoder are in it too."""
    state = {prefix + name: value for name, value in tensors.items()}
    state[f"{prefix}base.bn0.num_batches_tracked"] = torch.tensor(0)
    state[f"{prefix}base.decoder_block1.conv1.weight"] = torch.ones(3, 3)
    state[f"{prefix}base.stft.conv_real.weight"] = torch.full((2, 2), torch.nan)  # not needed: not looked at
    state["query_encoder.model.audio_branch.bn0.weight"] = torch.ones(64)
    state["query_encoder.model.text_branch.embeddings.word_embeddings.weight"] = torch.ones(5, 2)
    return state


WRAPPINGS: dict[str, Callable[[Tensors], object]] = {
    "plain": lambda tensors: with_other_keys(tensors),
    "lightning": lambda tensors: {
        "epoch": 3,
        "global_step": 4_000_000,
        "pytorch-lightning_version": "1.9.0",
        "state_dict": with_other_keys(tensors),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
        "lr_schedulers": [],
    },
    "model": lambda tensors: {"model": with_other_keys(tensors)},
    "no prefix": lambda tensors: with_other_keys(tensors, ""),
    "other prefix": lambda tensors: with_other_keys(tensors, "module.ss_model."),
    "half precision": lambda tensors: with_other_keys({name: value.half() for name, value in tensors.items()}),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_wrapping_gives_the_same_weights(tensors: Tensors, wrapping: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(WRAPPINGS[wrapping](tensors), path, _use_new_zipfile_serialization=not legacy)
    loaded = load_weights(path, SHAPES)
    assert loaded.release == "unknown"
    assert loaded.identity == f"sha256:{file_sha256(path)}"
    assert loaded.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        expected = value.half().float() if wrapping == "half precision" else value
        assert torch.equal(loaded.tensors[name], expected), name


def test_safetensors_give_the_same_weights(tensors: Tensors, tmp_path: Path) -> None:
    save_file({f"ss_model.{name}": value for name, value in tensors.items()}, tmp_path / "model.safetensors")
    loaded = load_weights(tmp_path / "model.safetensors", SHAPES)
    assert all(torch.equal(loaded.tensors[name], value) for name, value in tensors.items())


@needs_shared
@pytest.mark.parametrize("wrapping", ["plain", "lightning", "model"])
def test_the_described_wrappings_are_read_alike(
    wrapping: str, whole: Tensors, encoder: AudioSepEncoder, tmp_path: Path
) -> None:
    """Every key of the description is in the file, the other parts of the network with their real shapes."""
    description = json.loads((SHARED / "golden" / "keys_and_shapes.json").read_text())["wrappings"][wrapping]
    # One number stands for all of a tensor that is not needed: it keeps its shape and takes no space.
    state = {
        name: whole.get(name.removeprefix(description["prefix"]), torch.zeros(()).expand(tensor["shape"]))
        for name, tensor in {**description["other_keys"], **description["keys"]}.items()
    }
    content: dict[str, object] = {**dict.fromkeys(description.get("top_level", ()), 0)}
    for key in description["path"]:
        content[key] = state
    torch.save(content or state, tmp_path / "weights.bin")
    loaded = load_weights(tmp_path / "weights.bin", weight_shapes())
    assert loaded.tensors.keys() == whole.keys()
    assert all(torch.equal(loaded.tensors[name], value) for name, value in whole.items())
    if wrapping == "plain":  # the same weights embed alike
        waveform = noise(0, 12_000)
        with on_one_thread():
            embedded = load_encoder(tmp_path / "weights.bin", "cpu").embed([waveform])
            assert torch.equal(embedded, encoder.embed([waveform]))


def test_random_weights_are_reproducible() -> None:
    name_of_last = "base.encoder_block6.conv_block1.conv2.weight"
    shapes = {**SHAPES, name_of_last: weight_shapes()[name_of_last]}
    # One seed spelled in two ways, since tests draw the weights of one name once.
    first, again, other = (load_weights(f"random:{seed}", shapes) for seed in ("7", "07", "8"))
    assert (first.identity, first.release) == ("random:7", "untrained")
    assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in shapes)
    assert not any(torch.equal(first.tensors[name], other.tensors[name]) for name in shapes)
    # As drawn on x86-64 Linux with NumPy 2.2; the stream of numbers must be the same everywhere.
    expected = torch.tensor([1.0080152750, 1.0253859758, 0.9722805023])
    assert torch.allclose(first.tensors["base.bn0.weight"][:3], expected, rtol=1e-6)
    expected = torch.tensor([0.0277830120, 0.0392293595, -0.0057674339])
    assert torch.allclose(first.tensors[name_of_last].flatten()[-3:], expected, rtol=1e-6)


@pytest.mark.parametrize("spelling", ["random:", "random:-1", "random:x", "random:4294967296"])
def test_bad_seeds_are_refused(spelling: str) -> None:
    with pytest.raises(CheckpointError, match="as in random:0"):
        load_weights(spelling, SHAPES)


def problem(path: Path, shapes: dict[str, tuple[int, ...]] = SHAPES) -> str:
    """The one line that a file gets."""
    with pytest.raises(CheckpointError) as error:
        load_weights(path, shapes)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_wrong_tensors_are_all_named(whole: Tensors, tmp_path: Path) -> None:
    state = with_other_keys(whole)
    del state["ss_model.base.pre_conv.bias"]
    state["ss_model.base.encoder_block3.conv_block1.conv1.weight"] = torch.zeros(2, 3)
    state["ss_model.base.encoder_block5.conv_block1.bn1.running_mean"] = torch.full((256,), torch.nan)
    state["ss_model.base.bn0.running_var"] = -whole["base.bn0.running_var"]
    state["ss_model.film.encoder_block1->conv_block1->beta1.bias"] = torch.zeros(32, dtype=torch.int64)
    torch.save(state, tmp_path / "model.bin")
    message = problem(tmp_path / "model.bin", weight_shapes())
    for words in (
        f"5 of {len(weight_shapes())}",
        "base.pre_conv.bias is missing",
        "conv1.weight has shape (2, 3) instead of (128, 64, 3, 3)",
        "running_mean holds NaN",
        "running_var holds negative variances",
        "beta1.bias has type torch.int64",
    ):
        assert words in message


def test_a_missing_file_says_how_to_get_it(tmp_path: Path) -> None:
    message = problem(tmp_path / "pytorch_model.bin")
    assert "python -m common.download weights" in message
    assert "random:0" in message


def test_no_checkpoint_means_the_default_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkpoint, "DEFAULT_PATH", tmp_path / "here.bin")
    with pytest.raises(CheckpointError, match=r"here\.bin not found"):
        load_weights(None, SHAPES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:37f1\nsize 957000000\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>Not found</html>", "web page"),
        (b"PK\x03\x04 cut short", "truncated"),
        (b"\x80\x02}q\x00X\x03", "truncated"),
        (b"some text that is no checkpoint", "truncated or not a checkpoint"),
        (b"\x05\x9d\xff\x12 random bytes", "truncated or not a checkpoint"),
    ],
    ids=["empty", "lfs", "html", "zip cut short", "pickle cut short", "text", "random"],
)
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_files_of_another_kind_are_refused_as_checkpoints(
    content: bytes, words: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    message = problem(path)
    assert words in message
    assert "PyTorch 2.6" not in message  # torch's advice to load unsafely


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_checkpoints_are_refused(kind: str, share: float, tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.bin")
    if kind == "safetensors":
        save_file({f"ss_model.{name}": value for name, value in tensors.items()}, path)
    else:
        torch.save(with_other_keys(tensors), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "truncated" in problem(path)


def test_a_folder_in_place_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "folder" in problem(tmp_path)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path, through_the_shell: bool) -> None:
        self.marker, self.through_the_shell = marker, through_the_shell

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.system, (f"touch {self.marker}",)) if self.through_the_shell else (Path.touch, (self.marker,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # of the bare pickle
@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle"])
@pytest.mark.parametrize("through_the_shell", [False, True])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    kind: str, through_the_shell: bool, tensors: Tensors, tmp_path: Path
) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.ckpt"
    payload = Payload(marker, through_the_shell)
    content = {"state_dict": with_other_keys(tensors), "hyper_parameters": payload}
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps({"state_dict": {}, "hyper_parameters": payload}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    # A bare pickle is not what torch writes, whatever it holds.
    assert ("truncated or not a checkpoint" if kind == "bare pickle" else "would run code") in problem(path)
    assert not marker.exists()


def test_clap_is_recognised_by_its_tensors(tmp_path: Path) -> None:
    torch.save({"state_dict": {"model.audio_branch.bn0.weight": torch.zeros(64)}}, tmp_path / "clap.pt")
    assert "CLAP" in problem(tmp_path / "clap.pt")


def test_a_known_release_is_named(tensors: Tensors, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    torch.save(with_other_keys(tensors), path)
    monkeypatch.setitem(checkpoint.KNOWN_RELEASES, file_sha256(path), "the test release")
    assert load_weights(path, SHAPES).release == "the test release"
