"""The encoder: equal to a plain float64 one and to the official outputs; the same alone, in any batch and in tiles."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.arrays import Array
from common.datasets.audio import read_audio
from common.encoder import (
    CHANNELS,
    LAYERS,
    AudioSepEncoder,
    LogMelStatistics,
    Output,
    UnknownOutputError,
    audiosep,
    choose_outputs,
    load_encoder,
    tiles,
)
from common.encoder.audiosep import MIN_SAMPLES, OUTPUTS
from common.encoder.checkpoint import read_condition
from common.encoder.device import DeviceError
from common.encoder.network import weight_shapes
from common.encoder.tiles import Tile, plan_tiles
from tests.support.heads import on_one_thread
from tests.support.plain_encoder import plain_layers, relative, use_narrow_network
from tests.support.samples import SHARED, find_output, needs_shared, noise

CONDITION = np.random.default_rng(5).standard_normal(512)
TOLERANCES = {"mean": 3e-6, "std": 1e-5, "max": 3e-6, "mean_time": 3e-6}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Each test of this file, if it does not choose otherwise."""
    with on_one_thread():
        yield


@pytest.fixture
def narrow_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `load_encoder` builds in this test is narrow."""
    use_narrow_network(monkeypatch)


@pytest.fixture(scope="module")
def narrow() -> AudioSepEncoder:
    """An encoder with an eighth of the channels."""
    with pytest.MonkeyPatch.context() as patch:
        use_narrow_network(patch)
        return load_encoder("random:2024", device="cpu")


@pytest.fixture(scope="module")
def rough() -> AudioSepEncoder:
    """The session's encoder in bf16."""
    return load_encoder("random:2024", "cpu", precision="bf16")


# 32, 34 and 76 frames: one column; a rest that every level floors; two columns and a rest.
@pytest.mark.parametrize(
    ("condition", "lengths"),
    [(None, (MIN_SAMPLES, 10_667, 24_001)), ("zero", (10_667,)), (CONDITION, (MIN_SAMPLES, 10_667))],
    ids=["none", "zero", "query"],
)
def test_the_encoder_equals_the_plain_encoder(
    encoder: AudioSepEncoder, condition: str | Array | None, lengths: tuple[int, ...]
) -> None:
    own = encoder if condition is None else load_encoder("random:2024", "cpu", condition=condition)
    vector = np.zeros(512) if isinstance(condition, str) else condition
    for samples in lengths:
        waveform = noise(1, samples)
        embedded = own.embed_outputs([waveform], own.outputs)
        for layer, activations in plain_layers(waveform, condition=vector).items():
            for pool, expected in pooled(activations).items():
                got = embedded[find_output(own.outputs, layer, pool)]
                assert relative(got, expected) < TOLERANCES[pool], (samples, layer, pool)


def pooled(activations: torch.Tensor) -> dict[str, torch.Tensor]:
    """(channels, time, frequency) -> pool -> what it should give."""
    return {
        "mean": activations.mean(dim=(1, 2)),
        "std": activations.std(dim=(1, 2), correction=0),
        "max": activations.amax(dim=(1, 2)),
        "mean_time": activations.mean(dim=1).flatten(),
    }


def test_the_official_padding_equals_the_plain_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, in a padded batch, and cut into tiles."""
    use_narrow_network(monkeypatch)
    own = load_encoder("random:2024", "cpu", padding="official")
    waveforms = [noise(1, samples) for samples in (1025, 9_920, 24_001, 10_239, 150_001)]
    alone = [own.embed_outputs([waveform], own.outputs) for waveform in waveforms]
    monkeypatch.setattr(AudioSepEncoder, "_batches", in_padded_batches)
    together = own.embed_outputs(waveforms, own.outputs)
    monkeypatch.setattr("common.encoder.tiles.MAX_TILE_FRAMES", 416)
    in_tiles = own.embed_outputs(waveforms, own.outputs)
    for row, waveform in enumerate(waveforms):
        for layer, activations in plain_layers(waveform, pads_time=True).items():
            for pool, expected in pooled(activations).items():
                output = find_output(own.outputs, layer, pool)
                for got in (alone[row][output][0], together[output][row], in_tiles[output][row]):
                    assert relative(got, expected) < TOLERANCES[pool], (len(waveform), layer, pool)
    short = load_encoder("random:2024", "cpu")
    assert relative(short.embed(waveforms[2:3]), own.embed(waveforms[2:3])) > 0.01
    with pytest.raises(DeviceError, match="padding 'circular' is unknown; choose one of none, official"):
        load_encoder("random:2024", "cpu", padding="circular")


def golden_waveforms() -> dict[str, Array]:
    """The six waveforms of the golden outputs, by their recipe."""

    def gauss(seed: int, samples: int) -> Array:
        return np.random.Generator(np.random.PCG64(seed)).standard_normal(samples)

    time = np.arange(128_000) / 32_000
    waveforms = {
        "noise5s": np.clip(0.1 * gauss(7, 160_000), -1, 1),
        "sine440": 0.5 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 32_000),
        "chirp4s": 0.5 * np.sin(2 * np.pi * (50 * time + 0.5 * (15_000 - 50) / 4 * time**2)),
        "impulse2s": np.where(np.arange(64_000) % 3217 == 100, 0.9, 0),
        "quiet1s": 1e-6 * gauss(8, 32_000),
        "short": np.clip(0.1 * gauss(9, 10_667), -1, 1),
    }
    return {name: waveform.astype(np.float32) for name, waveform in waveforms.items()}


SHORT = ("sine440", "quiet1s", "short")  # a condition changes nothing about the STFT, so these say enough of it
ALL = tuple(golden_waveforms())


@needs_shared
@pytest.mark.parametrize(
    ("condition", "names"),
    [
        pytest.param("none", ALL, id="none"),
        pytest.param("zero", SHORT, id="zero"),
        pytest.param("query", SHORT, id="query"),
        pytest.param("zero", ALL, id="zero, all", marks=pytest.mark.slow),
        pytest.param("query", ALL, id="query, all", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("padding", ["none", "official"])
def test_the_encoder_equals_the_official_encoder(
    encoder: AudioSepEncoder, condition: str, names: Sequence[str], padding: str
) -> None:
    golden = np.load(SHARED / "golden" / "golden_seed2024.npz")
    waveforms = golden_waveforms()
    if condition != "none" or padding != "none":
        query = golden["condition_query"] if condition == "query" else condition
        encoder = load_encoder("random:2024", "cpu", condition=query, padding=padding)
    chain = "nopad" if padding == "none" else "pad"
    embedded = encoder.embed_outputs([waveforms[name] for name in names], encoder.outputs)
    compared = 0
    for row, name in enumerate(names):
        for output in encoder.outputs:
            suffix = "" if output.pool == "mean" else f"/{output.pool}"
            key = f"f64/{name}/{condition}/{chain}/{output.layer}{suffix}"
            if key in golden.files:
                error = relative(embedded[output][row], torch.from_numpy(golden[key]))
                assert error < TOLERANCES[output.pool], (key, error)
                compared += 1
    assert compared == 8 * len(names) + (6 * 2 * 2 if condition == "none" else 0)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_clip_is_the_same_alone_and_in_any_batch(encoder: AudioSepEncoder, n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    waveforms = [noise(seed, samples) for seed, samples in enumerate([1, 16_001, 9_921])]
    together = encoder.embed(waveforms)
    reversed_order = encoder.embed(waveforms[::-1]).flip(0)
    for row, waveform in enumerate(waveforms):
        alone = encoder.embed([waveform])[0]
        assert torch.equal(alone, together[row])
        assert torch.equal(alone, reversed_order[row])


def in_padded_batches(self: AudioSepEncoder, tiles: list[Tile]) -> Iterator[list[Tile]]:
    """As on a GPU: tiles share a batch, padded to one width; here even those of different widths."""
    del self
    yield tiles


def test_a_padded_batch_equals_each_clip_alone(encoder: AudioSepEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    # 32 to 105 frames: lengths that floor differently at every level, and the shortest of all.
    lengths = [9_920, 33_333, 10_239, 10_240, 320 * 64 - 1]
    waveforms = [noise(seed, samples) for seed, samples in enumerate(lengths)]
    alone = [encoder.embed_outputs([waveform], OUTPUTS) for waveform in waveforms]
    monkeypatch.setattr(AudioSepEncoder, "_batches", in_padded_batches)
    together = encoder.embed_outputs(waveforms, OUTPUTS)
    for output in OUTPUTS:
        reference = torch.cat([each[output] for each in alone])
        # The deviation of a clip of one column is small beside its values, whose rounding it then shows.
        assert relative(together[output], reference) < (3e-6 if output.pool == "std" else 1e-6), output


# Twice the bottleneck's halo and a core of one column: the smallest tile that is possible.
SMALLEST_TILE = 2 * 192 + 32


@pytest.mark.parametrize("frames", [417, 480])
@pytest.mark.parametrize("is_batched", [False, True])
def test_tiles_equal_one_piece(
    narrow: AudioSepEncoder, frames: int, is_batched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waveform = noise(3, frames * 320 - 220)
    whole = narrow.embed_outputs([waveform], OUTPUTS)
    monkeypatch.setattr(tiles, "MAX_TILE_FRAMES", SMALLEST_TILE)
    assert len(plan_tiles(0, frames, 192)) > 10
    if is_batched:
        monkeypatch.setattr(AudioSepEncoder, "_batches", in_padded_batches)
    tiled = narrow.embed_outputs([waveform], OUTPUTS)
    for output, reference in whole.items():
        assert relative(tiled[output], reference) < 1e-6, output


@pytest.mark.parametrize("frames", [1_025, 1_664, 1_665, 1_700])
def test_long_clips_equal_one_piece(narrow: AudioSepEncoder, frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_tiles_equal_one_piece(narrow, frames, monkeypatch)


def assert_tiles_equal_one_piece(encoder: AudioSepEncoder, frames: int, patch: pytest.MonkeyPatch) -> None:
    """A long clip in tiles as they are, and in one tile that holds it all."""
    waveform = noise(4, frames * 320 - 220)
    tiled = encoder.embed_layers([waveform])
    patch.setattr(tiles, "MAX_TILE_FRAMES", 10_000)
    whole = encoder.embed_layers([waveform])
    for layer in LAYERS:
        assert relative(tiled[layer], whole[layer]) < 1e-6, layer


def test_a_narrower_halo_would_be_noticed(narrow: AudioSepEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tolerance of the tests above means something: 96 frames are not enough."""
    waveform = noise(4, 700 * 320)
    whole = narrow.embed([waveform])
    monkeypatch.setattr(tiles, "MAX_TILE_FRAMES", 448)
    monkeypatch.setitem(audiosep.HALO_FRAMES, "encoder_block6", 96)
    assert relative(narrow.embed([waveform]), whole) > 1e-5


def test_a_long_clip_is_computed_in_small_pieces(narrow: AudioSepEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by the tiles: no call of the network sees more than the widest tile."""
    seen, forward = [], narrow.network.forward

    def noting(samples: torch.Tensor, *others: Any) -> Iterator[tuple[str, torch.Tensor]]:
        seen.append(samples.shape)
        return forward(samples, *others)

    monkeypatch.setattr(narrow.network, "forward", noting)
    narrow.embed([noise(0, 30 * 32_000)])
    assert len(seen) > 3
    assert {size for size, _ in seen} == {1}
    assert max(samples for _, samples in seen) <= 2048 + (tiles.MAX_TILE_FRAMES - 1) * 320


@pytest.mark.parametrize("samples", [1, 2, 1_025, 9_919])
def test_short_waveforms_are_zero_padded(encoder: AudioSepEncoder, samples: int) -> None:
    waveform = noise(6, samples)
    padded = np.pad(waveform, (0, MIN_SAMPLES - samples))
    assert torch.equal(encoder.embed([waveform]), encoder.embed([padded]))


@pytest.mark.parametrize(
    "waveform",
    [
        np.zeros(12_000, np.float32),
        np.ones(12_000, np.float32),
        np.sign(noise(7, 12_000)),
        np.full(12_000, 1e-30, np.float32),
    ],
    ids=["silence", "DC", "clipping", "denormal"],
)
def test_extremes_give_finite_numbers(encoder: AudioSepEncoder, waveform: Array) -> None:
    for layer, output in encoder.embed_layers([waveform], "std").items():
        assert torch.isfinite(output).all(), layer


@pytest.mark.parametrize(
    ("waveform", "words"),
    [
        (np.array([0.0, np.nan], np.float32), ("waveform 1", "NaN")),
        (np.array([0.0, np.inf], np.float32), ("waveform 1", "NaN or infinite")),
        (np.zeros((2, 20_000), np.float32), ("waveform 1", "(2, 20000)", "mono")),
        (np.zeros(20_000, np.int16), ("waveform 1", "int16", "divide by 32768")),
        (np.zeros(0, np.float32), ("waveform 1", "empty")),
        ([0.1, 0.2], ("waveform 1", "list")),
    ],
    ids=["nan", "infinity", "stereo", "integer", "empty", "list"],
)
def test_bad_waveforms_are_named(encoder: AudioSepEncoder, waveform: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as error:
        encoder.embed([noise(0, 10_000), waveform])
    assert all(word in str(error.value) for word in words), error.value


def test_one_waveform_without_its_list_is_explained(encoder: AudioSepEncoder) -> None:
    with pytest.raises(ValueError, match=r"embed\(\[waveform\]\)"):
        encoder.embed(noise(0, 10_000))
    with pytest.raises(ValueError, match=r"embed\(list\(waveforms\)\)"):
        encoder.embed(np.stack([noise(0, 10_000), noise(1, 10_000)]))


def test_lists_of_layers_and_pools_choose_outputs() -> None:
    logmel, scene = LogMelStatistics.default_output, Output("scene", "", 3)
    frames = tuple(Output("timestamps", pool, 4) for pool in ("mean", "std"))
    assert choose_outputs((logmel,), logmel, None, "mean,std") == (logmel,)  # it has nothing to pool
    for layers, pools, expected in (
        (None, None, (scene,)),
        ("timestamps", None, frames[:1]),
        ("timestamps", "std,mean", frames[::-1]),
        ("all", "all", (scene, *frames)),
        ("timestamps,scene", "std", (frames[1], scene)),
    ):
        assert choose_outputs((scene, *frames), scene, layers, pools) == expected
    for layers, pools, words in (
        (
            "scenes",
            None,
            "--layer scenes is unknown to this encoder; choose from scene, timestamps, or several with commas, or all",
        ),
        ("timestamps", "max", "--pool max is unknown"),
        ("scene+timestamps", None, "choose from scene, timestamps, or several with commas, or all"),
    ):
        with pytest.raises(UnknownOutputError, match=re.escape(words)):
            choose_outputs((scene, *frames), scene, layers, pools)


def test_embeddings_are_rows_on_the_cpu_in_order(encoder: AudioSepEncoder) -> None:
    assert (encoder.sample_rate, encoder.embedding_size) == (32_000, 384)
    assert ("pre_conv", *(f"encoder_block{number}" for number in range(1, 7)), "bottleneck") == LAYERS
    embeddings = encoder.embed(
        [noise(0, 12_000), torch.from_numpy(noise(1, 10_000)), noise(2, 9_999).astype(np.float64)]
    )
    assert embeddings.shape == (3, 384)
    assert embeddings.dtype == torch.float32
    assert embeddings.device.type == "cpu"
    assert not embeddings.requires_grad
    assert encoder.embed([]).shape == (0, 384)
    assert {layer: output.shape[1] for layer, output in encoder.embed_layers([noise(0, 9_920)]).items()} == CHANNELS
    for output, embedded in encoder.embed_outputs([noise(0, 9_920)], encoder.outputs).items():
        assert embedded.shape == (1, output.width)
        assert embedded.dtype == torch.float32


def test_conditions_from_files_equal_the_array(narrow_network: None, tmp_path: Path) -> None:
    np.save(tmp_path / "query.npy", CONDITION)
    torch.save(torch.from_numpy(CONDITION)[None], tmp_path / "query.pt")
    waveform = noise(0, 12_000)
    expected = load_encoder("random:1", "cpu", condition=CONDITION)
    for source in (str(tmp_path / "query.npy"), tmp_path / "query.pt", torch.from_numpy(CONDITION)):
        encoder = load_encoder("random:1", "cpu", condition=source)
        assert torch.equal(encoder.embed([waveform]), expected.embed([waveform]))
        assert encoder.info == expected.info
    plain = load_encoder("random:1", "cpu")
    assert relative(expected.embed([waveform]), plain.embed([waveform])) > 0.1
    assert (plain.info.condition, expected.info.condition[:7]) == ("none", "sha256:")


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (np.zeros(511), "512 numbers"),
        ("nowhere.npy", "not found"),
        (np.full(512, np.nan), "NaN"),
        (np.ones(512, complex), "floating-point"),
        (np.array(["a"] * 512), "floating-point"),
    ],
)
def test_bad_conditions_are_explained(condition: Array | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_condition(condition)
    with pytest.raises(ValueError, match=message):
        load_encoder("random:1", "cpu", condition=condition)


@needs_shared
@pytest.mark.slow
def test_bf16_is_near_on_real_sounds(encoder: AudioSepEncoder, rough: AudioSepEncoder) -> None:
    paths = sorted((SHARED / "real_audio" / "ESC-50-master" / "audio").glob("*.wav"))[::12]
    waveforms = [read_audio(path, 32_000) for path in paths]
    exact, near = encoder.embed(waveforms), rough.embed(waveforms)
    assert (near - exact).norm() < 1e-2 * exact.norm()


def test_bf16_is_near_and_the_same_in_any_batch(encoder: AudioSepEncoder, rough: AudioSepEncoder) -> None:
    waveforms = [noise(seed, 9_000 + 5_000 * seed) for seed in range(3)]
    exact, near = encoder.embed(waveforms), rough.embed(waveforms)
    assert near.dtype == torch.float32
    assert 0 < (near - exact).norm() < 1e-2 * exact.norm()
    assert torch.equal(near, torch.cat([rough.embed([waveform]) for waveform in waveforms]))
    assert rough.info.precision == "bf16"


def test_a_batch_that_is_too_large_for_the_memory_is_done_in_parts(
    narrow_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder("random:2024", "cpu")  # its own: the size of its batches changes
    waveforms = [noise(seed, 10_240) for seed in range(7)]
    expected = encoder.embed(waveforms)
    forward: Callable[..., Iterator[tuple[str, torch.Tensor]]] = encoder._forward
    sizes = []

    def short_of_memory(batch: list[Tile], *others: Any) -> Iterator[tuple[str, torch.Tensor]]:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return forward(batch, *others)

    monkeypatch.setattr(encoder, "_forward", short_of_memory)
    monkeypatch.setattr(encoder, "_batches", lambda tiles: [tiles])
    with pytest.warns(UserWarning, match="the GPU is out of memory: continuing with 4 tiles at a time") as warned:
        embeddings = encoder.embed(waveforms)
    torch.testing.assert_close(embeddings, expected, rtol=1e-5, atol=1e-5)
    assert len(warned) == 1
    assert (sizes, encoder.batch_frames) == ([7, 4, 2, 2, 3, 2, 1], 2 * 40)

    def always_short(batch: list[Tile], *others: Any) -> Iterator[tuple[str, torch.Tensor]]:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(encoder, "_forward", always_short)
    with pytest.raises(torch.OutOfMemoryError):
        encoder.embed(waveforms[:1])


def test_bad_device_and_precision_are_explained(narrow_network: None) -> None:
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        load_encoder("random:1", device="cpu", precision="tf32")
    assert load_encoder("random:1", device="cpu", precision="auto").info.precision == "fp32"
    with pytest.raises(ValueError, match="give auto, cpu, mps, cuda"):
        load_encoder("random:1", device="gpu")
    with pytest.raises(ValueError, match="CUDA GPUs"):
        load_encoder("random:1", device="cuda:99")
    with pytest.raises(ValueError, match="precision"):
        load_encoder("random:1", precision="fp8")


@needs_shared
def test_names_and_shapes_are_the_official_ones() -> None:
    description = json.loads((SHARED / "golden" / "keys_and_shapes.json").read_text())
    official = {
        name.removeprefix("ss_model."): tuple(tensor["shape"])
        for name, tensor in description["wrappings"]["plain"]["keys"].items()
        if not name.endswith("num_batches_tracked")
    }
    assert weight_shapes() == official


@pytest.mark.gpu
def test_gpu_equals_cpu(encoder: AudioSepEncoder) -> None:
    waveforms = [noise(seed, samples) for seed, samples in enumerate([5, 9_920, 33_333, 160_000, 1_500 * 320])]
    on_gpu = load_encoder("random:2024", device="cuda")
    expected, got = encoder.embed_layers(waveforms), on_gpu.embed_layers(waveforms)
    for layer in LAYERS:
        assert relative(got[layer], expected[layer]) < 1e-5, layer
    alone = torch.cat([on_gpu.embed([waveform]) for waveform in waveforms])
    assert relative(on_gpu.embed(waveforms), alone) < 1e-6


@pytest.mark.mps
def test_mps_equals_cpu(encoder: AudioSepEncoder) -> None:
    waveforms = [noise(seed, samples) for seed, samples in enumerate([5, 9_920, 33_333, 160_000, 1_500 * 320])]
    expected, got = encoder.embed_layers(waveforms), load_encoder("random:2024", device="mps").embed_layers(waveforms)
    for layer in LAYERS:
        assert relative(got[layer], expected[layer]) < 1e-5, layer


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="Apple silicon")
def test_mps_is_refused_with_a_reason_elsewhere() -> None:
    with pytest.raises(
        DeviceError, match=r"device 'mps' is not available \(it needs an Apple GPU and macOS 14\); give auto or cpu"
    ):
        load_encoder("random:2024", device="mps")


def test_mps_is_refused_where_it_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its place the CPU, with an error in one weight from when the encoder is moved there."""
    moved = torch.device("mps")

    def damaged(self: AudioSepEncoder, device: torch.device) -> AudioSepEncoder:
        assert device is moved
        self.network.bn0_scale[100] *= 2
        return self

    monkeypatch.setattr("common.encoder.audiosep.resolve_device", lambda name: moved)
    monkeypatch.setattr(AudioSepEncoder, "to", damaged)
    with pytest.raises(DeviceError, match=r"on mps, embeddings differ by .* from those of the CPU; use --device cpu"):
        load_encoder("random:2024", device="mps")


@pytest.mark.parametrize("padding", ["none", "official"])
def test_embeddings_over_time_have_the_embedding_as_their_mean(padding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of long clips, which are cut into tiles; and each alone as in a batch."""
    use_narrow_network(monkeypatch)
    encoder = load_encoder("random:0", "cpu", padding=padding)
    rng = np.random.default_rng(0)
    clips = [0.1 * rng.standard_normal(samples).astype(np.float32) for samples in (5_000, 32_000, 50_123, 32_000 * 13)]
    for layer, per_column in (("encoder_block6", 32), ("encoder_block2", 4)):
        frames = encoder.embed_frames(clips, layer)
        means = torch.stack([each.double().mean(dim=0).float() for each in frames])
        torch.testing.assert_close(means, encoder.embed(clips, layer), atol=2e-6, rtol=1e-5)
        for clip, own in zip(clips, frames, strict=True):
            count = 1 + max(len(clip), encoder.info.min_samples) // 320
            expected = -(-count // 32) * 32 // per_column if padding == "official" else count // per_column
            assert len(own) == expected
        assert torch.equal(encoder.embed_frames(clips[1:2], layer)[0], frames[1])
    assert encoder.embed_frames([]) == []
    times = encoder.frame_times(3)
    torch.testing.assert_close(times, torch.tensor([0.155, 0.475, 0.795]))
    with pytest.raises(UnknownOutputError, match="choose from"):
        encoder.embed_frames(clips, "block6")


def test_the_encoder_is_frozen(encoder: AudioSepEncoder) -> None:
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    before = encoder.embed([noise(0, 12_000)])
    encoder.train()
    try:
        assert torch.equal(encoder.embed([noise(0, 12_000)]), before)
    finally:
        encoder.eval()


def test_the_input_is_left_as_it_was(encoder: AudioSepEncoder) -> None:
    waveform = noise(0, 12_000)
    encoder.embed([waveform])
    assert np.array_equal(waveform, noise(0, 12_000))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
def test_minutes_need_little_memory() -> None:
    """Memory is bounded by the tiles: in one piece, two minutes would take several gigabytes."""
    script = """
import numpy as np
from common.encoder import load_encoder
peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
encoder = load_encoder("random:0", "cpu")
waveform = (0.1 * np.random.default_rng(0).standard_normal(120 * 32_000)).astype(np.float32)
before = peak()
encoder.embed([waveform])
print(peak() - before)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 1800


@pytest.mark.slow
def test_long_clips_equal_one_piece_at_full_width(encoder: AudioSepEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_tiles_equal_one_piece(encoder, 1_700, monkeypatch)
