"""AudioSep's weights, and FiLM's condition, a 512-d CLAP embedding: find, verify and read them.

A checkpoint is opened with ``weights_only=True`` (or as safetensors), so nothing in it can run code, and checked strictly.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors

from common.arrays import Array
from common.config import DEFAULT_CHECKPOINT
from common.errors import UserError
from common.files import PROJECT_ROOT, DamagedFileError, UnsafeFileError, load_torch, read_json, sha256_of, write_json

DEFAULT_PATH = PROJECT_ROOT / DEFAULT_CHECKPOINT
KNOWN_RELEASES = {
    "37f1691fb067e2575f1ad1cfbfe44b7b3da18e52f33fcb2b0937b72952f11ba1": "nielsr/audiosep-demo pytorch_model.bin",
    "f8cda01bfd0ebd141eef45d41db7a3ada23a56568465840d3cff04b8010ce82c": "AudioSep audiosep_base_4M_steps.ckpt",
}
CLAP_SHA256 = "51c68f12f9d7ea25fdaaccf741ec7f81e93ee594455410f3bca4f47f88d8e006"
EXPORTED = "model.safetensors"  # in a folder that `common.export` has written
DOWNLOAD = "python -m common.download weights"  # to DEFAULT_PATH
# The name, without prefix, of the tensor that shows where in a file the separator is.
ANCHOR = "base.bn0.weight"
CONDITION_SIZE = 512


class CheckpointError(UserError):
    """A checkpoint cannot be used; the message names the file, the cause and the fix in one line."""


class ConditionError(UserError):
    """The condition cannot be read or has another size."""


@dataclass(frozen=True)
class Weights:
    """Encoder and FiLM tensors, and where they come from."""

    tensors: dict[str, torch.Tensor]  # official name without prefix -> float32 values
    identity: str  # "sha256:<hex>" of the file, or "random:<seed>"
    release: str  # the known release that the file equals, "unknown", or "untrained"; for readers
    is_untrained: bool = False


def load_weights(checkpoint: str | Path | None, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    """Read the tensors named in `shapes` (without prefix) from a checkpoint (as for `load_encoder`), or draw them for
    ``random:SEED``; CheckpointError if the file is missing, damaged, unsafe, or lacks the tensors."""
    if isinstance(checkpoint, str) and checkpoint.startswith("random:"):
        return _random_weights(checkpoint, shapes)
    path = Path(checkpoint or DEFAULT_PATH)
    if (path / EXPORTED).is_file():
        path = path / EXPORTED
    _refuse_non_checkpoint(path)
    sha256 = file_sha256(path)
    if sha256 == CLAP_SHA256:  # named, before a parser complains about it
        raise CheckpointError(
            f"checkpoint {path} is a CLAP checkpoint, the text encoder; get the separator: {DOWNLOAD}"
        )
    is_safetensors, is_known = path.suffix == ".safetensors", sha256 in KNOWN_RELEASES
    try:  # a known release has no damage to look for
        content = load_safetensors(path) if is_safetensors else load_torch(path, mmap=True, checks=not is_known)
    except UnsafeFileError as error:
        problem = "holds Python objects that would run code when opened; none was run"
        raise CheckpointError(f"checkpoint {path} {problem}. Get the published weights: {DOWNLOAD}") from error
    except (DamagedFileError, SafetensorError) as error:
        problem = f"({path.stat().st_size:,} bytes) is truncated or not a checkpoint ({error})"
        raise CheckpointError(f"checkpoint {path} {problem}. Delete it, then: {DOWNLOAD}") from error
    tensors = _select(content, shapes, path)
    return Weights(tensors, f"sha256:{sha256}", KNOWN_RELEASES.get(sha256, "unknown"))


def check_export(checkpoint: str | Path | None, weights: Weights, condition: torch.Tensor | None, padding: str) -> None:
    """CheckpointError if the checkpoint is an exported folder whose weights, condition or padding were others."""
    folder = Path(checkpoint or DEFAULT_PATH)
    if not (folder / EXPORTED).is_file():
        return
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        exported, sha256 = (config["condition"], config["pads_time"]), config["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} has no config.json of an exported encoder; give {folder / EXPORTED} itself"
        ) from error
    if exported != (None if condition is None else condition.tolist(), padding == "official"):
        raise CheckpointError(
            f"{folder} was exported with another condition or padding; give the same, or {folder / EXPORTED} for the "
            "weights alone"
        )
    if weights.identity != f"sha256:{sha256}":
        raise CheckpointError(f"{folder / EXPORTED} is damaged: it is not the file that was exported; export again")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, computed once: saved in ``<path>.sha256.json`` with the file's size and modification time."""
    stat = path.stat()
    state = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    note = path.with_name(path.name + ".sha256.json")
    with contextlib.suppress(OSError, ValueError, KeyError):  # no note, or not ours: compute
        remembered = json.loads(read_json(note))
        if remembered == {**state, "sha256": remembered["sha256"]}:
            return str(remembered["sha256"])
    sha256 = sha256_of(path)
    if path.name != EXPORTED:  # that is small, in a folder that is meant to be passed on
        with contextlib.suppress(OSError):  # a folder that cannot be written: computed again next time
            write_json(note, json.dumps({**state, "sha256": sha256}))
    return sha256


def _random_weights(checkpoint: str, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    """Untrained weights: He-normal convolutions, lightly perturbed BatchNorm, a generator per tensor name.

    NumPy's PCG64 stream is the same on every machine, so ``random:SEED`` names one encoder everywhere.
    """
    seed_text = checkpoint.removeprefix("random:")
    if not seed_text.isdecimal() or int(seed_text) >= 2**32:
        raise CheckpointError(f"--checkpoint {checkpoint}: give random: a seed from 0 to 4294967295, as in random:0")
    seed = int(seed_text)
    batch_norms = {name.rpartition(".")[0] for name in shapes if name.endswith(".running_var")}

    def draw(name: str) -> torch.Tensor:
        shape = shapes[name]
        bits = np.random.PCG64(seed ^ zlib.crc32(name.encode()))
        z = np.random.Generator(bits).standard_normal(shape).astype(np.float32)
        module, _, kind = name.rpartition(".")
        if kind == "weight" and module in batch_norms:
            value = np.float32(1) + np.float32(0.1) * z
        elif kind == "weight":
            value = z * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        elif kind == "running_var":
            value = np.exp(np.float32(0.2) * z)
        else:  # biases and running means
            value = np.float32(0.1) * z
        return torch.from_numpy(value)

    with ThreadPoolExecutor() as threads:
        tensors = dict(zip(shapes, threads.map(draw, shapes), strict=True))
    return Weights(tensors, f"random:{seed}", "untrained", is_untrained=True)


def _refuse_non_checkpoint(path: Path) -> None:
    """Recognise, by their first bytes, files that users often have instead of a checkpoint."""
    if path.is_dir():
        raise CheckpointError(f"checkpoint {path} is a folder. Give the file itself, such as {path}/pytorch_model.bin")
    if not path.is_file():
        how = f"Get it with: {DOWNLOAD} (or try the pipeline untrained with --checkpoint random:0)"
        raise CheckpointError(f"checkpoint {path} {'is not a file' if path.exists() else 'not found'}. {how}")
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    starts = {b"version https://git-lfs": "is a Git LFS pointer, not the weights", b"<": "is a web page, not weights"}
    problems = [problem for start, problem in starts.items() if head.startswith(start)] if head else ["is empty"]
    if problems:
        raise CheckpointError(f"checkpoint {path} {problems[0]}. Delete it, then: {DOWNLOAD}")


def _state_dicts(content: object, depth: int = 3) -> list[dict[str, torch.Tensor]]:
    """The tensors by name in every mapping of the file, outermost first."""
    if not isinstance(content, Mapping) or depth == 0:
        return []
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and torch.is_tensor(value)}
    return [tensors, *(state for value in content.values() for state in _state_dicts(value, depth - 1))]


def _select(content: object, shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, torch.Tensor]:
    """The wanted tensors as float32, whatever their prefix; CheckpointError if any of them is wrong."""
    places = [
        (state, key.removesuffix(ANCHOR))
        for state in _state_dicts(content)
        for key in state
        if f".{key}".endswith(f".{ANCHOR}")
    ]
    if not places:
        raise CheckpointError(
            f"checkpoint {path} has no AudioSep separator in it (no tensor named ...{ANCHOR}); CLAP, its text encoder, is not "
            f"enough. Get the published weights: {DOWNLOAD}"
        )
    # A wrapper may hold copies (an averaged model beside the model): take the official prefix if there is a choice.
    state, prefix = next((place for place in places if place[1] == "ss_model."), places[0])
    selected, problems = {}, []
    for name, shape in shapes.items():
        tensor = state.get(prefix + name)
        if tensor is None:
            problems.append(f"{prefix}{name} is missing")
        elif tuple(tensor.shape) != tuple(shape):
            problems.append(f"{prefix}{name} has shape {tuple(tensor.shape)} instead of {tuple(shape)}")
        elif not tensor.is_floating_point():
            problems.append(f"{prefix}{name} has type {tensor.dtype} instead of a floating-point one")
        elif not torch.isfinite(tensor).all():
            problems.append(f"{prefix}{name} holds NaN or infinite values")
        elif name.endswith("running_var") and (tensor < 0).any():
            problems.append(f"{prefix}{name} holds negative variances")
        else:
            # A copy, so that a memory-mapped file of a gigabyte is released.
            selected[name] = tensor.detach().to(torch.float32).clone()
    if problems:
        raise CheckpointError(
            f"checkpoint {path} does not fit AudioSep's ResUNet30 encoder; {len(problems)} of {len(shapes)} tensors "
            f"are wrong: {'; '.join(problems)}. Fetch the published weights: {DOWNLOAD}"
        )
    return selected


def read_condition(condition: str | Path | Array | torch.Tensor | None) -> tuple[torch.Tensor | None, str]:
    """The 512-d float64 condition (None for no FiLM) and its name in the record of a run."""
    if condition is None or (isinstance(condition, str) and condition == "none"):
        return None, "none"
    if isinstance(condition, str) and condition == "zero":
        return torch.zeros(CONDITION_SIZE, dtype=torch.float64), "zero"
    what, content = "condition", condition
    if isinstance(condition, (str, Path)):
        what, path = f"condition {condition}", Path(condition)
        if not path.is_file():
            raise ConditionError(
                f"{what} not found; give none, zero, or a .npy or .pt file of {CONDITION_SIZE} numbers"
            )
        try:
            content = np.load(path, allow_pickle=False) if path.suffix == ".npy" else load_torch(path)
        except Exception as error:  # NumPy and torch raise many kinds
            cause = " ".join(str(error).split())[:120]
            raise ConditionError(f"{what} cannot be read as .npy or .pt: {cause}") from error
    if isinstance(content, np.ndarray) and content.dtype.kind == "f":
        content = torch.from_numpy(content.astype(np.float64))
    if not isinstance(content, torch.Tensor) or not content.is_floating_point():
        kind = getattr(content, "dtype", type(content).__name__)
        raise ConditionError(f"{what} holds {kind}; it must hold {CONDITION_SIZE} floating-point numbers")
    if content.squeeze().shape != (CONDITION_SIZE,):
        raise ConditionError(f"{what} has shape {tuple(content.shape)}; it must hold {CONDITION_SIZE} numbers")
    values = content.detach().to("cpu", torch.float64).flatten()
    if not torch.isfinite(values).all():
        raise ConditionError(f"{what} holds NaN or infinite values")
    return values, "sha256:" + hashlib.sha256(values.to(torch.float32).numpy().tobytes()).hexdigest()
