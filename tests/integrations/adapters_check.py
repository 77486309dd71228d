"""Run the suites' checkers on AudioSep with random weights: python -m tests.integrations.adapters_check (`make adapters`).

They run as shipped, but without TensorFlow, which hearvalidator needs for a single isinstance; torchcodec, with which MTEB
decodes mock data that already are arrays; and EVAR, which is not a package.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
import yaml

from common.encoder import load_encoder
from common.encoder_name import EncoderName
from common.errors import UserError
from common.files import PROJECT_ROOT
from integrations import hear_audiosep

WEIGHTS = "random:0"
MTEB_TASKS = 7  # of audio alone; MTEB counts skipped tasks as passed
EVAR = PROJECT_ROOT / "integrations" / "evar"


class CheckFailed(UserError):
    """A suite's checker refuses an adapter."""


def _require(is_met: bool, problem: str) -> None:
    if not is_met:
        raise CheckFailed(problem)


def check_scene() -> str:
    """HEAR's scene embeddings equal `encoder.embed`, and are the mean of the timestamp embeddings."""
    audio, model = _noise(2, 50_000), hear_audiosep.load_model(WEIGHTS)
    scene = hear_audiosep.get_scene_embeddings(audio, model)
    frames, _ = hear_audiosep.get_timestamp_embeddings(audio, model)
    difference = float((frames.mean(dim=1) - scene).abs().max() / scene.abs().max())
    expected = load_encoder(WEIGHTS, "cpu").embed(list(audio))
    _require(torch.equal(scene, expected), "the scene embeddings are not those of the encoder")
    _require(
        difference <= 1e-5, f"the mean of the timestamps differs from the scene by {difference:.1e} of its maximum"
    )
    return f"equal to encoder.embed; the mean of the timestamps differs by {difference:.0e} of the maximum"


def check_hear() -> str:
    """hearvalidator: three lengths, scenes and timestamps."""
    with _stub("tensorflow", Module=type("Module", (), {})):
        validate: Any = importlib.import_module("hearvalidator.validate")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            validate.ValidateModel("integrations.hear_audiosep", WEIGHTS, device="cpu")()
    except validate.ModelError as error:  # a BaseException
        raise CheckFailed(f"hearvalidator: {error}") from error
    coarse = sum("less than or equal" in str(warning.message) for warning in caught)
    shapes = printed.getvalue().count("Received embedding of shape")
    return f"{shapes} batches accepted; {coarse} warnings that frames of 320 ms are longer than 50 ms"


def check_xares() -> str:
    """X-ARES' check_audio_encoder, which logs problems instead of raising."""
    checker: Any = importlib.import_module("xares.audio_encoder_checker")
    from integrations.xares_audiosep import AudioSepXaresEncoder

    encoder = AudioSepXaresEncoder()
    _require(checker.check_audio_encoder(encoder), "X-ARES refuses the encoder; its log above says why")
    return f"accepted: {encoder.output_dim} numbers every {encoder.hop_size_in_ms} ms"


def check_mteb(name: str = "audiosep") -> str:
    """mteb.mock_run, with results counted and arrays unchanged."""
    datasets: Any = importlib.import_module("datasets")
    mteb: Any = importlib.import_module("mteb")
    from integrations.mteb_frozen import entry

    model = entry(name, WEIGHTS if name == "audiosep" else "", device="cpu")
    with contextlib.ExitStack() as patches:
        for kind in (datasets.Dataset, datasets.DatasetDict):
            patches.enter_context(mock.patch.object(kind, "cast_column", lambda data, *_: data))
        results = mteb.mock_run(model)
    kinds = {task: type(result).__name__ for task, result in results.items()}
    failed = [task for task, kind in kinds.items() if kind == "TaskError"]
    passed = list(kinds.values()).count("TaskResult")
    summary = f"{name}: {passed} of {MTEB_TASKS} tasks have a result"
    _require(passed == MTEB_TASKS and not failed, f"MTEB, {summary}; failed: {', '.join(failed)}")
    return summary


def check_revisions() -> str:
    """MTEB, which keeps results by name and revision, distinguishes encoders, and loads what was registered."""
    mteb: Any = importlib.import_module("mteb")
    from integrations.mteb_frozen import describe, entry

    encoders = [load_encoder(weights, "cpu") for weights in (WEIGHTS, "random:1")]
    encoders.append(load_encoder(WEIGHTS, "cpu", condition="zero"))
    revisions = {describe(encoder, EncoderName.parse("audiosep")).revision for encoder in encoders}
    _require(len(revisions) == len(encoders), "MTEB: different weights or conditions have the same revision")
    meta = entry("audiosep", WEIGHTS, device="cpu").mteb_model_meta
    loaded = mteb.get_model(meta.name).mteb_model_meta
    _require(loaded.revision == meta.revision, "MTEB: the registered model is not the one that was entered")
    return f"{meta.name} loads by its name; {len(revisions)} encoders have {len(revisions)} revisions"


def check_evar() -> str:
    """The methods that EVAR's pipeline calls, with its yaml's settings."""
    with _stub("evar"), _stub("evar.ar_base", BaseAudioRepr=_BaseAudioRepr):
        module = runpy.run_path(str(EVAR / "ar_audiosep.py"))
    config = SimpleNamespace(**yaml.safe_load((EVAR / "audiosep.yaml").read_text(encoding="utf-8")))
    model = module[config.audio_repr.rpartition(".")[2]](config)
    audio = _noise(3, 2 * config.sample_rate)
    embeddings, frames = model(audio), model.encode_frames(audio)
    shapes = f"embeddings {tuple(embeddings.shape)}, frames {tuple(frames.shape)}"
    _require(embeddings.shape == (3, config.feature_d) and frames.shape[:2] == embeddings.shape, f"EVAR: {shapes}")
    torch.testing.assert_close(frames.mean(dim=2), embeddings, atol=1e-5, rtol=1e-5)
    return f"{shapes}, whose mean they are"


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
    """Run all checks; exit status 1 if one fails."""
    os.environ["AUDIOSEP_CHECKPOINT"] = WEIGHTS
    status = 0
    for name, check in CHECKS.items():
        try:
            result = check()
        except CheckFailed as error:
            status, result = 1, f"FAILED: {error}"
        print(f"{name}: {result}", flush=True)
    sys.exit(status)


class _BaseAudioRepr(torch.nn.Module):
    """EVAR's base class (evar/ar_base.py), as far as encoders need it."""

    def __init__(self, cfg: SimpleNamespace) -> None:
        super().__init__()
        self.cfg = cfg


def _noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@contextlib.contextmanager
def _stub(name: str, **content: object) -> Iterator[None]:
    """Let `name` be an importable module with this content."""
    sys.modules[name] = module = ModuleType(name)
    vars(module).update(content)
    try:
        yield
    finally:
        del sys.modules[name]


if __name__ == "__main__":
    main()
