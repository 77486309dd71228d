"""AudioSep in other suites: the embeddings of `encoder.embed`, and clear errors. `make adapters` runs the suites' checkers."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from common.encoder import CheckpointError, load_encoder, new_encoder
from common.encoder_name import EncoderName
from integrations import hear_audiosep
from integrations.xares_audiosep import AudioSepXaresEncoder
from tests.integrations import adapters_check

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights that the adapters take."""
    monkeypatch.setenv("AUDIOSEP_CHECKPOINT", "random:0")


@pytest.fixture(scope="module")
def model() -> hear_audiosep.AudioSepModel:
    return hear_audiosep.load_model("random:0")


def noise(*shape: int) -> torch.Tensor:
    """One sound of noise, or a batch."""
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_audiosep_as_a_hear_module_is_the_same_encoder() -> None:
    """By this project's plug-in of HEAR modules, with clips of several lengths."""
    clips = [noise(samples).numpy() for samples in (32_000, 50_000, 32_000, 15_000)]
    plug_in = new_encoder(EncoderName.parse("hear:integrations.hear_audiosep:"), "", CPU)
    encoder = load_encoder("random:0", CPU)
    (scene,) = [output for output in plug_in.outputs if output.layer == "scene"]
    (over_time,) = [output for output in plug_in.outputs if output.name == "timestamps mean"]
    embedded = plug_in.embed_outputs(clips, [scene, over_time])
    torch.testing.assert_close(embedded[scene], encoder.embed(clips), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(embedded[over_time], encoder.embed(clips), atol=1e-5, rtol=1e-5)
    assert plug_in.info.min_samples == encoder.info.min_samples
    assert plug_in.info.parameters is not None


@pytest.mark.parametrize("samples", [1, 4_000, 9_920, 32_000, 128_000])
def test_timestamps_are_even_and_lie_within_the_sound(samples: int, model: hear_audiosep.AudioSepModel) -> None:
    audio = noise(2, samples)
    with pytest.warns(UserWarning, match="padded with zeros") if samples < 9_920 else contextlib.nullcontext():
        embeddings, times = hear_audiosep.get_timestamp_embeddings(audio, model)
    assert embeddings.shape == (*times.shape, model.timestamp_embedding_size)
    assert bool((times <= 1000 * samples / 32_000).all()) and bool((times >= 0).all())
    assert torch.equal(times[0], times[1])
    if times.shape[1] > 1:
        torch.testing.assert_close(times.diff(dim=1), torch.full_like(times[:, 1:], 320.0))


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (noise(2, 2, 32_000), r"\(2, 2, 32000\); give a tensor \(n_sounds, n_samples\), mono"),
        (noise(32_000), r"give a tensor \(n_sounds, n_samples\)"),
        (np.zeros((1, 32_000), np.float32), "ndarray; give a tensor"),
        ((noise(1, 32_000) * 3e4).short(), "int16; give float32"),
        (noise(2, 0), "at least one sample"),
        (torch.full((1, 32_000), torch.nan), "NaN or infinite"),
    ],
)
def test_bad_audio_is_refused(audio: torch.Tensor, message: str, model: hear_audiosep.AudioSepModel) -> None:
    xares = AudioSepXaresEncoder()
    calls: list[Callable[[], object]] = [
        lambda: hear_audiosep.get_scene_embeddings(audio, model),
        lambda: hear_audiosep.get_timestamp_embeddings(audio, model),
        lambda: xares(audio),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_without_weights_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUDIOSEP_CHECKPOINT", str(tmp_path / "none.bin"))
    with pytest.raises(CheckpointError, match=r"none\.bin not found.*AUDIOSEP_CHECKPOINT to the file, or to random:0"):
        hear_audiosep.load_model()
    monkeypatch.setenv("AUDIOSEP_CONDITION", "zero")
    assert hear_audiosep.load_model("random:0").encoder.info.condition == "zero"


def test_the_evar_adapter_keeps_its_contract() -> None:
    assert "whose mean they are" in adapters_check.check_evar()


def test_the_adapters_agree_with_the_encoder() -> None:
    assert "equal to encoder.embed" in adapters_check.check_scene()


SUITES = {
    "hearvalidator": adapters_check.check_hear,
    "xares": adapters_check.check_xares,
    "mteb": adapters_check.check_mteb,
}


@pytest.mark.parametrize("suite", SUITES)
def test_the_suites_own_checkers_pass(suite: str) -> None:
    if importlib.util.find_spec(suite) is None:
        pytest.skip(f"{suite} is not installed here; make adapters runs its checker")
    assert SUITES[suite]()
