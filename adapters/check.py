"""Run the suites' own checkers on the adapters: python -m adapters.check, in the environment of `make adapters`.

Every checker runs as its suite ships it, on AudioSep with random weights. Three things are put out of its way, none of which it
measures: hearvalidator imports TensorFlow for one isinstance; MTEB's mock data want torchcodec and FFmpeg to be decoded, so the
arrays are handed on as they are; and EVAR is no package, so its base class is as its repository has it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml

from adapters import hear_audiosep
from common.encoder import load_encoder
from common.encoder_name import EncoderName
from common.errors import UserError

WEIGHTS = "random:0"
MTEB_TASKS = 7  # that are of audio alone; MTEB counts skipped ones as passed
FOLDER = Path(__file__).resolve().parent


class CheckFailed(UserError):
    """A suite's checker refuses an adapter."""


def check_hear() -> str:
    """hearvalidator: three lengths, timestamps, scenes."""
    with _stand_in("tensorflow", Module=type("Module", (), {})):
        validate: Any = importlib.import_module("hearvalidator.validate")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            validate.ValidateModel("adapters.hear_audiosep", WEIGHTS, device="cpu")()
    except validate.ModelError as error:  # a BaseException
        raise CheckFailed(f"hearvalidator: {error}") from error
    wider = sum("less than or equal" in str(each.message) for each in warned)
    shapes = printed.getvalue().count("Received embedding of shape")
    return f"{shapes} batches accepted; {wider} warnings that columns of 320 ms are wider than 50 ms"


def check_xares() -> str:
    """X-ARES' check_audio_encoder, which logs instead of raising."""
    checker: Any = importlib.import_module("xares.audio_encoder_checker")
    from adapters.xares_audiosep import AudioSepXaresEncoder

    encoder = AudioSepXaresEncoder()
    if not checker.check_audio_encoder(encoder):
        raise CheckFailed("X-ARES refuses the encoder; its log above says why")
    return f"accepted: {encoder.output_dim} numbers every {encoder.hop_size_in_ms} ms"


def check_mteb(name: str = "audiosep") -> str:
    """mteb.mock_run, its results counted."""
    mteb: Any = importlib.import_module("mteb")
    from adapters.mteb_frozen import entry

    with _audio_as_arrays():
        results = mteb.mock_run(entry(name, WEIGHTS if name == "audiosep" else "", device="cpu"))
    passed = [task for task, result in results.items() if type(result).__name__ == "TaskResult"]
    failed = [task for task, result in results.items() if type(result).__name__ == "TaskError"]
    if failed or len(passed) != MTEB_TASKS:
        raise CheckFailed(
            f"MTEB, {name}: {len(passed)} of {MTEB_TASKS} tasks have a result; failed: {', '.join(failed)}"
        )
    return f"{name}: {len(passed)} of {MTEB_TASKS} tasks have a result"


def check_revisions() -> str:
    """That MTEB, which keeps results by name and revision, cannot take one encoder's for another's."""
    mteb: Any = importlib.import_module("mteb")
    from adapters.mteb_frozen import describe, entry

    name = EncoderName.parse("audiosep")
    encoders = [
        load_encoder(WEIGHTS, "cpu"),
        load_encoder("random:1", "cpu"),
        load_encoder(WEIGHTS, "cpu", condition="zero"),
    ]
    revisions = {describe(encoder, name).revision for encoder in encoders}
    if len(revisions) != len(encoders):
        raise CheckFailed("MTEB: other weights or another condition have the same revision")
    made = entry("audiosep", WEIGHTS, device="cpu")
    loaded = mteb.get_model(made.mteb_model_meta.name)
    if loaded.mteb_model_meta.revision != made.mteb_model_meta.revision:
        raise CheckFailed("MTEB: what is registered is not what was entered")
    return f"{made.mteb_model_meta.name} loads by its name; {len(revisions)} encoders have {len(revisions)} revisions"


def check_evar() -> str:
    """The three methods of EVAR's base class, called as its pipeline does, with its yaml."""
    with _stand_in("evar"), _stand_in("evar.ar_base", BaseAudioRepr=_BaseAudioRepr):
        spec = importlib.util.spec_from_file_location("ar_audiosep", FOLDER / "evar" / "ar_audiosep.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    config = yaml.safe_load((FOLDER / "evar" / "audiosep.yaml").read_text(encoding="utf-8"))
    made = getattr(module, config["audio_repr"].rpartition(".")[2])(_Config(config))
    audio = 0.1 * torch.randn(3, 2 * config["sample_rate"], generator=torch.Generator().manual_seed(0))
    made.precompute(torch.device("cpu"), [(audio, None)])
    embeddings, frames = made(audio), made.encode_frames(audio)
    if embeddings.shape != (3, config["feature_d"]) or frames.shape[:2] != embeddings.shape:
        raise CheckFailed(f"EVAR: embeddings are {tuple(embeddings.shape)}, frames {tuple(frames.shape)}")
    torch.testing.assert_close(frames.mean(dim=2), embeddings, atol=1e-5, rtol=1e-5)
    return f"embeddings {tuple(embeddings.shape)}, frames {tuple(frames.shape)}, whose mean they are"


def check_scene() -> str:
    """That every adapter gives the project's own embeddings."""
    audio = 0.1 * torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0))
    expected = load_encoder(WEIGHTS, "cpu").embed(list(audio))
    model = hear_audiosep.load_model(WEIGHTS)
    scene = hear_audiosep.get_scene_embeddings(audio, model)
    frames, _ = hear_audiosep.get_timestamp_embeddings(audio, model)
    if not torch.equal(scene, expected):
        raise CheckFailed("the scene embeddings are not those of the encoder")
    difference = float((frames.mean(dim=1) - scene).abs().max() / scene.abs().max())
    if difference > 1e-5:
        raise CheckFailed(f"the mean of the timestamps differs from the scene by {difference:.1e} of its largest value")
    return f"scene embeddings are the encoder's own; the mean of the timestamps differs by {difference:.0e} of the largest value"


CHECKS: dict[str, Callable[[], str]] = {
    "embeddings": check_scene,
    "HEAR (hearvalidator)": check_hear,
    "X-ARES (check_audio_encoder)": check_xares,
    "MTEB (mock_run)": check_mteb,
    "MTEB (mock_run), log-mel": lambda: check_mteb("logmel"),
    "MTEB (registry)": check_revisions,
    "EVAR (by contract)": check_evar,
}


def main() -> None:
    """Run all; exit status 1 if one fails."""
    os.environ["AUDIOSEP_CHECKPOINT"] = WEIGHTS
    failed = 0
    for name, check in CHECKS.items():
        try:
            print(f"{name}: {check()}", flush=True)
        except CheckFailed as error:
            failed += 1
            print(f"{name}: FAILED: {error}", flush=True)
    sys.exit(1 if failed else 0)


class _Config(dict[str, Any]):
    """EVAR's configuration: keys are attributes too."""

    __getattr__ = dict.__getitem__


class _BaseAudioRepr(torch.nn.Module):
    """EVAR's base class, by its repository (evar/ar_base.py)."""

    def __init__(self, cfg: _Config) -> None:
        super().__init__()
        self.cfg = _Config(cfg)

    def precompute(self, device: torch.device, data_loader: object) -> None:
        """Statistics of the training data, for encoders that need them."""


@contextlib.contextmanager
def _stand_in(name: str, **content: object) -> Iterator[None]:
    """A module of this name that has only this content."""
    module = ModuleType(name)
    vars(module).update(content)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


@contextlib.contextmanager
def _audio_as_arrays() -> Iterator[None]:
    """Keep columns of audio as they are: the mock data are arrays already."""
    datasets: Any = importlib.import_module("datasets")
    kept = {kind: kind.cast_column for kind in (datasets.Dataset, datasets.DatasetDict)}

    def cast(self: Any, column: str, feature: Any) -> Any:
        return self if isinstance(feature, datasets.Audio) else kept[type(self)](self, column, feature)

    for kind in kept:
        kind.cast_column = cast
    try:
        yield
    finally:
        for kind, method in kept.items():
            kind.cast_column = method


if __name__ == "__main__":
    main()
