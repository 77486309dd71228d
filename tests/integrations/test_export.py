"""The export for transformers: loaded outside the project, it gives the project's embeddings, alone and in any batch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.arrays import Array
from common.encoder import CheckpointError, load_encoder, new_encoder
from common.encoder_name import EncoderName
from integrations.export import ExportError, main
from integrations.export.hugging_face import export_hugging_face
from integrations.export.onnx import export_onnx

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
CPU = torch.device("cpu")
OUTSIDE = """
import sys
import numpy as np, torch
from transformers import AutoFeatureExtractor, AutoModel
folder, clips, result = sys.argv[1:]
extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
model, loading = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not any(loading.values()), loading
waveforms = list(np.load(clips).values())
with torch.no_grad():
    output = model.eval()(**extractor(waveforms, sampling_rate=32_000, return_tensors="pt"))
assert not any(name.partition(".")[0] in ("common", "integrations") for name in sys.modules)
np.savez(result, pooled=output.pooler_output, frames=output.last_hidden_state)
"""


def clips() -> list[Array]:
    """Of several lengths, among them less than a column."""
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(samples)).astype(np.float32) for samples in (32_000, 5_000, 50_123, 32_000)]


@pytest.fixture(scope="module", autouse=True)
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where transformers copies the code of models, away from the developer's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "audiosep"
    main([str(path), "--checkpoint", "random:0"])
    return path


@pytest.mark.slow
def test_outside_the_project_it_gives_the_same_embeddings(folder: Path, tmp_path: Path) -> None:
    """In a new process, in a folder where nothing of the project is imported."""
    np.savez(tmp_path / "clips.npz", *clips())
    (tmp_path / "outside.py").write_text(OUTSIDE)
    words = [sys.executable, "-I", "outside.py", str(folder), "clips.npz", "result.npz"]
    environment = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    ended = subprocess.run(words, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    encoder = load_encoder("random:0", "cpu")
    expected = encoder.embed(clips())
    with np.load(tmp_path / "result.npz") as result:
        pooled, frames = torch.from_numpy(result["pooled"]), torch.from_numpy(result["frames"])
    assert float((pooled - expected).abs().max() / expected.abs().max()) < 1e-6
    for padded, wanted in zip(frames, encoder.embed_frames(clips()), strict=True):
        assert float((padded[: len(wanted)] - wanted).abs().max() / wanted.abs().max()) < 1e-6
        assert not padded[len(wanted) :].any()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 100e6


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    """Feature extractor and model."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
    return extractor, model.eval()


@torch.no_grad()
def test_a_clip_is_the_same_alone_and_in_any_padded_batch(loaded: tuple[Any, Any]) -> None:
    extractor, model = loaded
    together = model(**extractor(clips(), sampling_rate=32_000, return_tensors="pt"), output_hidden_states=True)
    for place, clip in enumerate(clips()):
        inputs = extractor(clip, sampling_rate=32_000, return_tensors="pt")
        alone = model(**inputs)
        torch.testing.assert_close(together.pooler_output[place], alone.pooler_output[0], atol=1e-5, rtol=1e-6)
        more = torch.nn.functional.pad(inputs["input_values"], (0, 7_000))
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 7_000))
        padded = model(input_values=more, attention_mask=mask)
        assert torch.equal(padded.pooler_output, alone.pooler_output)
    assert [state.shape[2] for state in together.hidden_states] == [32, 32, 64, 128, 256, 384, 384, 384]
    as_tuple = model(**extractor(clips(), sampling_rate=32_000, return_tensors="pt"), return_dict=False)
    assert torch.equal(as_tuple[1], together.pooler_output)


@pytest.mark.parametrize("settings", [{"condition": "zero"}, {"padding": "official"}])
@torch.no_grad()
def test_condition_and_padding_are_exported(settings: dict[str, str], tmp_path: Path) -> None:
    export_hugging_face(tmp_path / "exported", "random:1", **settings)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "exported", trust_remote_code=True)
    model = transformers.AutoModel.from_pretrained(tmp_path / "exported", trust_remote_code=True).eval()
    pooled = model(**extractor(clips(), sampling_rate=32_000, return_tensors="pt")).pooler_output
    expected = load_encoder("random:1", "cpu", **settings).embed(clips())
    assert float((pooled - expected).abs().max() / expected.abs().max()) < 1e-6


def test_the_project_loads_its_own_export_both_ways(folder: Path) -> None:
    """As a checkpoint, and as any other model of transformers."""
    expected = load_encoder("random:0", "cpu").embed(clips())
    from_folder = load_encoder(folder, "cpu")
    assert torch.equal(from_folder.embed(clips()), expected)
    with pytest.raises(CheckpointError, match="exported with another condition or padding; give the same, or"):
        load_encoder(folder, "cpu", padding="official")
    assert load_encoder(folder / "model.safetensors", "cpu", padding="official").info.padding == "official"
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".json", ".md", ".py", ".safetensors"]
    assert from_folder.info.checkpoint.startswith("sha256:") and from_folder.info.release == "unknown"
    plug_in = new_encoder(EncoderName.parse(f"hf:{folder}"), "", CPU, trust_remote_code=True)
    (pooled,) = [output for output in plug_in.outputs if output.layer == "pooler_output"]
    embeddings = plug_in.embed_outputs(clips(), [pooled])[pooled]
    assert float((embeddings - expected).abs().max() / expected.abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("waveforms", "rate", "message"),
    [
        (np.zeros(32_000, np.float32), 16_000, "resample to 32000 Hz"),
        (np.zeros(32_000, np.float32), None, "sampling_rate is None"),
        (np.zeros(32_000, np.int16), 32_000, "int16 of shape .*; give float32"),
        ([np.zeros((2, 32_000), np.float32)], 32_000, "mono"),
        (np.zeros((400, 2), np.float32), 32_000, "give a list of waveforms, once they are mono"),
        (np.zeros(0, np.float32), 32_000, "at least one sample"),
        (np.full(32_000, np.nan, np.float32), 32_000, "NaN or infinity"),
    ],
)
def test_bad_sounds_are_refused(loaded: tuple[Any, Any], waveforms: Any, rate: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loaded[0](waveforms, sampling_rate=rate, return_tensors="pt")


def test_a_mask_with_holes_is_refused(loaded: tuple[Any, Any]) -> None:
    values, mask = torch.zeros(1, 32_000), torch.ones(1, 32_000)
    mask[0, 100] = 0
    with pytest.raises(ValueError, match="attention_mask must be 1 for each clip's samples, then 0"):
        loaded[1](input_values=values, attention_mask=mask)
    with pytest.raises(ValueError, match="give floating-point"):
        loaded[1](input_values=torch.zeros(1, 2, 32_000))


def test_the_card_says_where_the_weights_come_from(folder: Path, tmp_path: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "Random weights (random:0): for trials only" in card and "<" not in card.replace("https://", "")
    assert "license:" not in card and "Without a condition" in card and "random numbers in the shapes" in card
    export_hugging_face(tmp_path / "other", "random:0", condition="zero", padding="official")
    other = (tmp_path / "other" / "README.md").read_text()
    assert (
        "Without a condition" not in other
        and "padded with zeros to a whole frame" in other
        and "<" not in other.replace("https", "")
    )
    config = json.loads((folder / "config.json").read_text())
    assert config["condition"] is None and config["auto_map"]["AutoModel"].endswith("AudioSepEncoderModel")
    with pytest.raises(ExportError, match="not an empty folder; give another, or --overwrite"):
        export_hugging_face(folder, "random:0")


@torch.no_grad()
def test_an_export_takes_what_transformers_users_give(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    extractor, model = loaded
    clip = clips()[0]
    inputs = extractor(clip, sampling_rate=32_000, return_tensors="pt", return_attention_mask=True)
    expected = model(**inputs).pooler_output
    assert torch.equal(model(**inputs, output_attentions=False).pooler_output, expected)
    for form in ([clip], clip.tolist(), list(clip), torch.from_numpy(clip), [torch.from_numpy(clip)]):
        again = extractor(form, sampling_rate=32_000, return_tensors="pt")
        assert torch.equal(again["input_values"], inputs["input_values"])
    assert torch.equal(model.train()(**inputs).pooler_output, expected) and not model.training
    model.save_pretrained(tmp_path / "again")
    extractor.save_pretrained(tmp_path / "again")
    saved = transformers.AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True, dtype=torch.bfloat16)
    rounded = saved(**inputs).pooler_output.float()
    assert float((rounded - expected).abs().max() / expected.abs().max()) < 0.05
    options = {"return_dict": False, "output_hidden_states": True}
    as_tuple = transformers.AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True, **options)(**inputs)
    assert torch.equal(as_tuple[1], expected) and len(as_tuple[2]) == 8


def test_onnx_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match="onnx and onnxscript is not installed: pip install -r"):
        export_onnx(tmp_path / "encoder.onnx", "random:0")


@pytest.mark.slow
def test_one_onnx_graph_holds_any_length(tmp_path: Path) -> None:
    """From the shortest clip to a minute, alone and several of equal length."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnx
    import onnxruntime

    path = tmp_path / "encoder.onnx"
    main([str(path), "--format", "onnx", "--checkpoint", "random:0", "--condition", "zero"])
    assert [file.name for file in tmp_path.iterdir()] == ["encoder.onnx"] and path.stat().st_size < 100e6
    properties = onnx.load(path).metadata_props
    assert {item.key: item.value for item in properties}["checkpoint"] == "random:0"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    encoder = load_encoder("random:0", "cpu", condition="zero")
    rng = np.random.default_rng(0)
    for count, samples in ((1, 9_920), (3, 16_001), (2, 50_123), (1, 32_000 * 60)):
        audio = (0.1 * rng.standard_normal((count, samples))).astype(np.float32)
        embedding, frames = session.run(None, {"audio": audio})
        expected = encoder.embed(list(audio)).numpy()
        assert np.abs(embedding - expected).max() / np.abs(expected).max() < 1e-6
        columns = encoder.embed_frames(list(audio))[0].numpy()
        assert np.abs(frames[0] - columns).max() / np.abs(columns).max() < 1e-6
    with pytest.raises(ExportError, match="already exists; give another file, or --overwrite"):
        export_onnx(path, "random:0")
