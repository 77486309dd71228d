"""The encoder: equal to a plain float64 one and to the official outputs; the same alone, in company and in tiles."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SHARED, needs_shared, noise
from plain_encoder import plain_layers

from common import encoder as encoder_module
from common import resunet, tiles
from common.datasets.audio import read_audio
from common.encoder import CHANNELS, LAYERS, MIN_SAMPLES, POOLS, AudioSepEncoder, load_encoder
from common.encoder.network import BLOCKS

CONDITION = np.random.default_rng(5).standard_normal(512)


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest relative L2 error of a row."""
    value, reference = torch.atleast_2d(value.double()), torch.atleast_2d(reference.double())
    return float(((value - reference).norm(dim=1) / reference.norm(dim=1)).max())


@pytest.mark.parametrize("samples", [MIN_SAMPLES, 10_667, 32_000, 50_001])
@pytest.mark.parametrize("condition", [None, "zero", CONDITION], ids=["none", "zero", "query"])
def test_equals_the_plain_encoder(samples: int, condition) -> None:
    waveform = noise(1, samples)
    vector = np.zeros(512) if isinstance(condition, str) else condition
    grid = load_encoder("random:2024", "cpu", condition=condition).embed_grid([waveform], LAYERS, POOLS)
    for layer, output in plain_layers(waveform, condition=vector).items():
        assert relative(grid[layer, "mean"], output.mean(dim=(1, 2))) < 3e-6, layer
        assert relative(grid[layer, "std"], output.std(dim=(1, 2), correction=0)) < 1e-5, layer
        assert relative(grid[layer, "max"], output.amax(dim=(1, 2))) < 3e-6, layer


def golden_waveforms() -> dict[str, np.ndarray]:
    """The six waveforms of the golden outputs, by their recipe."""

    def gauss(seed: int, samples: int) -> np.ndarray:
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


@needs_shared
@pytest.mark.parametrize("condition", ["none", "zero", "query"])
def test_equals_the_official_encoder(condition: str) -> None:
    golden = np.load(SHARED / "golden" / "golden_seed2024.npz")
    waveforms = golden_waveforms()
    encoder = load_encoder(
        "random:2024", "cpu", condition=golden["condition_query"] if condition == "query" else condition
    )
    grid = encoder.embed_grid(list(waveforms.values()), LAYERS, POOLS)
    compared = 0
    for row, name in enumerate(waveforms):
        for layer in LAYERS:
            for pool, suffix, tolerance in (("mean", "", 3e-6), ("std", "/std", 1e-5), ("max", "/max", 3e-6)):
                key = f"f64/{name}/{condition}/nopad/{layer}{suffix}"
                if key in golden.files:
                    error = relative(grid[layer, pool][row], torch.from_numpy(golden[key]))
                    assert error < tolerance, (key, error)
                    compared += 1
    assert compared == (6 * 8 + 6 * 2 * 2 if condition == "none" else 6 * 8)


def test_a_clip_is_the_same_alone_and_in_any_company(encoder: AudioSepEncoder) -> None:
    waveforms = [noise(seed, samples) for seed, samples in enumerate([1, 9_920, 16_000, 33_333, 50_000, 9_921])]
    together = encoder.embed(waveforms)
    reversed_order = encoder.embed(waveforms[::-1]).flip(0)
    for row, waveform in enumerate(waveforms):
        alone = encoder.embed([waveform])[0]
        assert torch.equal(alone, together[row])
        assert torch.equal(alone, reversed_order[row])


def in_padded_batches(self: AudioSepEncoder, tiles: list) -> list[list]:
    """As on a GPU: tiles share a batch, padded to one width; here even those of different widths."""
    return [tiles]


@pytest.mark.parametrize("pool", POOLS)
def test_a_padded_batch_equals_each_clip_alone(encoder: AudioSepEncoder, pool: str, monkeypatch) -> None:
    # 993 and 1,024 frames, lengths that floor differently at every level, and the shortest of all.
    lengths = [9_920, 33_333, 50_000, 64_001, 10_239, 10_240, 320 * 64 - 1]
    waveforms = [noise(seed, samples) for seed, samples in enumerate(lengths)]
    alone = [encoder.embed_layers([waveform], pool) for waveform in waveforms]
    monkeypatch.setattr(AudioSepEncoder, "_batches", in_padded_batches)
    together = encoder.embed_layers(waveforms, pool)
    for layer in LAYERS:
        reference = torch.cat([layers[layer] for layers in alone])
        # The deviation of a clip of one column is small beside its values, whose rounding it then shows.
        assert relative(together[layer], reference) < (3e-6 if pool == "std" else 1e-6), layer


# Twice the bottleneck's halo and a core of one column: the smallest tile that is possible.
SMALLEST_TILE = 2 * 192 + 32


@pytest.mark.parametrize("frames", [417, 480])
@pytest.mark.parametrize("batched", [False, True])
def test_tiles_equal_one_piece(encoder: AudioSepEncoder, frames: int, batched: bool, monkeypatch) -> None:
    waveform = noise(3, frames * 320 - 220)
    whole = encoder.embed_grid([waveform], LAYERS, POOLS)
    monkeypatch.setattr(tiles, "MAX_TILE_FRAMES", SMALLEST_TILE)
    assert len(tiles.plan_tiles(0, frames, 192)) > 10
    if batched:
        monkeypatch.setattr(AudioSepEncoder, "_batches", in_padded_batches)
    tiled = encoder.embed_grid([waveform], LAYERS, POOLS)
    for key, reference in whole.items():
        assert relative(tiled[key], reference) < 1e-6, key


@pytest.mark.parametrize("frames", [1_025, 1_664, 1_665, 1_700])
def test_long_clips_equal_one_piece(encoder: AudioSepEncoder, frames: int, monkeypatch) -> None:
    waveform = noise(4, frames * 320 - 220)
    tiled = encoder.embed_layers([waveform])
    monkeypatch.setattr(tiles, "MAX_TILE_FRAMES", 10_000)
    whole = encoder.embed_layers([waveform])
    for layer in LAYERS:
        assert relative(tiled[layer], whole[layer]) < 1e-6, layer


def test_a_narrower_halo_would_be_noticed(encoder: AudioSepEncoder, monkeypatch) -> None:
    """The tolerance of the tests above means something: 96 frames are not enough."""
    waveform = noise(4, 700 * 320)
    whole = encoder.embed([waveform])
    monkeypatch.setattr(tiles, "MAX_TILE_FRAMES", 448)
    monkeypatch.setitem(encoder_module.HALO_FRAMES, "encoder_block6", 96)
    assert relative(encoder.embed([waveform]), whole) > 1e-5


@pytest.mark.parametrize(("steps", "most"), [(8, 40), (16, 70)])
def test_cores_cover_a_clip_once_and_widths_are_few(steps: int, most: int) -> None:
    widths = set()
    for frames in range(32, 5_000, 7):
        planned = tiles.plan_tiles(0, frames, 128)
        assert [tile.core_start for tile in planned] == [0, *(tile.core_end for tile in planned[:-1])]
        assert planned[-1].core_end == frames
        for tile in planned:
            assert tile.first % 32 == tile.core_start % 32 == 0
            assert tile.frames <= tile.padded_frames(steps) <= 1024
            assert tile.padded_frames(steps) < tile.frames * (1 + 2 / steps) + 8
        widths |= {tile.padded_frames(steps) for tile in planned}
    assert len(widths) <= most
    assert [tiles.Tile(0, 0, 1 + 100 * s, 0, 0).padded_frames(steps) for s in (1, 4, 10)] == [101, 401, 1001]


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


@pytest.mark.parametrize("samples", [1, 2, 1_025, 9_919])
def test_short_waveforms_are_zero_padded(encoder: AudioSepEncoder, samples: int) -> None:
    waveform = noise(6, samples)
    padded = np.pad(waveform, (0, MIN_SAMPLES - samples))
    assert torch.equal(encoder.embed([waveform]), encoder.embed([padded]))


@pytest.mark.parametrize(
    "waveform",
    [
        np.zeros(20_000, np.float32),
        np.ones(20_000, np.float32),
        np.sign(noise(7, 20_000)),
        np.full(20_000, 1e-30, np.float32),
    ],
    ids=["silence", "DC", "clipping", "denormal"],
)
def test_extremes_give_finite_numbers(encoder: AudioSepEncoder, waveform: np.ndarray) -> None:
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
def test_bad_waveforms_are_named(encoder: AudioSepEncoder, waveform, words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as error:
        encoder.embed([noise(0, 10_000), waveform])
    assert all(word in str(error.value) for word in words), error.value


def test_one_waveform_without_its_list_is_explained(encoder: AudioSepEncoder) -> None:
    with pytest.raises(ValueError, match=r"embed\(\[waveform\]\)"):
        encoder.embed(noise(0, 10_000))
    with pytest.raises(ValueError, match=r"embed\(list\(waveforms\)\)"):
        encoder.embed(np.stack([noise(0, 10_000), noise(1, 10_000)]))


def test_arrays_of_every_floating_kind_are_the_same_waveform(encoder: AudioSepEncoder) -> None:
    waveform = noise(0, 10_000)
    expected = encoder.embed([waveform])
    kinds = [
        waveform[::-1].copy()[::-1],
        waveform.astype(">f4"),
        waveform.astype(np.float64),
        waveform.astype("longdouble"),
    ]
    assert all(torch.equal(row, expected[0]) for row in encoder.embed(kinds))


def test_embeddings_can_be_trained_on(encoder: AudioSepEncoder) -> None:
    embeddings = encoder.embed([noise(0, 10_000)])
    embeddings -= embeddings.mean()
    torch.nn.Linear(384, 2)(embeddings).sum().backward()


@pytest.mark.parametrize(("layer", "pool"), [("encoder_block7", "mean"), ("encoder_block6", "median")])
def test_unknown_layer_or_pool(encoder: AudioSepEncoder, layer: str, pool: str) -> None:
    with pytest.raises(ValueError, match="unknown; choose one of"):
        encoder.embed([noise(0, 10_000)], layer, pool)


def test_contract(encoder: AudioSepEncoder) -> None:
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


def test_frozen(encoder: AudioSepEncoder) -> None:
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


def test_conditions_from_files_equal_the_array(tmp_path) -> None:
    np.save(tmp_path / "query.npy", CONDITION)
    torch.save(torch.from_numpy(CONDITION)[None], tmp_path / "query.pt")
    waveform = noise(0, 12_000)
    expected = load_encoder("random:1", "cpu", condition=CONDITION)
    for source in (str(tmp_path / "query.npy"), tmp_path / "query.pt", torch.from_numpy(CONDITION)):
        encoder = load_encoder("random:1", "cpu", condition=source)
        assert torch.equal(encoder.embed([waveform]), expected.embed([waveform]))
        assert encoder.info["condition"] == expected.info["condition"]
    plain = load_encoder("random:1", "cpu").embed([waveform])
    assert relative(expected.embed([waveform]), plain) > 0.1


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
def test_bad_conditions_are_explained(condition, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_encoder("random:1", "cpu", condition=condition)


@needs_shared
def test_bf16_is_near_on_real_sounds(encoder) -> None:
    paths = sorted((SHARED / "real_audio" / "ESC-50-master" / "audio").glob("*.wav"))[::12]
    waveforms = [read_audio(path, 32_000) for path in paths]
    exact, near = encoder.embed(waveforms), load_encoder("random:2024", "cpu", precision="bf16").embed(waveforms)
    assert (near - exact).norm() < 1e-2 * exact.norm()


def test_bf16_is_near_and_the_same_in_any_company(encoder) -> None:
    waveforms = [noise(seed, 9_000 + 7_000 * seed) for seed in range(4)]
    rough = load_encoder("random:2024", "cpu", precision="bf16")
    exact, near = encoder.embed(waveforms), rough.embed(waveforms)
    assert near.dtype == torch.float32
    assert 0 < (near - exact).norm() < 1e-2 * exact.norm()
    assert torch.equal(near, torch.cat([rough.embed([waveform]) for waveform in waveforms]))
    assert rough.info["precision"] == "bf16"


def test_a_gpu_batch_holds_tiles_of_one_width_within_its_frames() -> None:
    lengths = [33, 1_024, 40, 900, 33, 64, 1_000, 2_000]
    listed = [tile for clip, frames in enumerate(lengths) for tile in tiles.plan_tiles(clip, frames, 128)]
    gpu = SimpleNamespace(device=torch.device("cuda"), batch_frames=2 * 1_024)
    batches = []
    for batch in AudioSepEncoder._batches(gpu, listed):
        batches.append(batch)
        assert len({tile.padded_frames(8) for tile in batch}) == 1
        assert len(batch) * batch[0].padded_frames(8) <= gpu.batch_frames
    assert {tile for batch in batches for tile in batch} == set(listed)
    assert len(batches) < len(listed)
    gpu.batch_frames = 1  # less than a tile: one at a time
    assert [len(batch) for batch in AudioSepEncoder._batches(gpu, listed)] == [1] * len(listed)


def test_a_batch_that_is_too_large_for_the_memory_is_done_in_parts(monkeypatch) -> None:
    encoder = load_encoder("random:2024", "cpu")
    waveforms = [noise(seed, 10_240) for seed in range(7)]
    expected = encoder.embed(waveforms)
    forward, sizes = encoder._forward, []

    def short_of_memory(batch, *others):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return forward(batch, *others)

    monkeypatch.setattr(encoder, "_forward", short_of_memory)
    monkeypatch.setattr(encoder, "_batches", lambda tiles: [tiles])
    with pytest.warns(UserWarning, match="going on with 4 tiles at a time") as warned:
        embeddings = encoder.embed(waveforms)
    torch.testing.assert_close(embeddings, expected, rtol=1e-5, atol=1e-5)
    assert len(warned) == 1
    assert (sizes, encoder.batch_frames) == ([7, 4, 2, 2, 3, 2, 1], 2 * 40)

    def always_short(batch, *others):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(encoder, "_forward", always_short)
    with pytest.raises(torch.OutOfMemoryError):
        encoder.embed(waveforms[:1])


def test_bad_device_and_precision_are_explained() -> None:
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        load_encoder("random:1", device="cpu", precision="tf32")
    assert load_encoder("random:1", device="cpu", precision="auto").info["precision"] == "fp32"
    with pytest.raises(ValueError, match="give auto, cpu, cuda"):
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
    assert resunet.weight_shapes() == official


def test_blocks_chain() -> None:
    channels = resunet.PRE_CONV_CHANNELS
    for _, _, channels_in, channels_out, _ in BLOCKS:
        assert channels_in == channels
        channels = channels_out


@pytest.mark.gpu
def test_gpu_equals_cpu(encoder: AudioSepEncoder) -> None:
    waveforms = [noise(seed, samples) for seed, samples in enumerate([5, 9_920, 33_333, 160_000, 1_500 * 320])]
    on_gpu = load_encoder("random:2024", device="cuda")
    expected, got = encoder.embed_layers(waveforms), on_gpu.embed_layers(waveforms)
    for layer in LAYERS:
        assert relative(got[layer], expected[layer]) < 1e-5, layer
    alone = torch.cat([on_gpu.embed([waveform]) for waveform in waveforms])
    assert relative(on_gpu.embed(waveforms), alone) < 1e-6


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for_within_a_batch(monkeypatch) -> None:
    on_gpu = load_encoder("random:2024", device="cuda")
    waveforms = [noise(seed, samples) for seed, samples in enumerate([33_000, 33_333, 34_000])]  # one padded width
    on_gpu.embed(waveforms)  # what is made at the first call may wait
    listed = [tiles.plan_tiles(clip, 1 + len(waveform) // 320, 128)[0] for clip, waveform in enumerate(waveforms)]
    (batch,) = on_gpu._batches(listed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            on_gpu._measure(batch, waveforms, ["encoder_block6"], ["mean"])
    finally:
        torch.cuda.set_sync_debug_mode("default")
