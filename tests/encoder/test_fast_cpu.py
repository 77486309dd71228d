"""Fewer multiplications on a CPU: Winograd's algorithm and the table equal plain convolutions, on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.arrays import Array
from common.encoder import LAYERS, AudioSepEncoder, load_encoder
from common.encoder.fast_cpu import winograd
from common.encoder.fast_cpu.table import TableConv2d
from common.encoder.fast_cpu.winograd import WinogradBlock
from common.encoder.tiles import fill_padding, padding_mask
from tests.support.heads import on_one_thread
from tests.support.plain_encoder import relative
from tests.support.samples import noise


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Each test of this file, if it does not choose otherwise."""
    with on_one_thread():
        yield


@pytest.mark.parametrize(("capability", "n_replaced"), [("AVX2", 6), ("AVX512", 5), ("DEFAULT", 5)])
def test_fewer_multiplications_change_no_embedding(
    capability: str, n_replaced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    plain, fast = AudioSepEncoder("random:2024"), load_encoder("random:2024", device="cpu")
    assert plain.network.first_block.fast_conv1 is None and fast.network.first_block.fast_conv1 is not None
    for encoder, n_own in ((plain, 0), (fast, n_replaced)):
        replaced = [block.fast_convolutions is not None for block in encoder.network.blocks]
        assert replaced == [False] * (7 - n_own) + [True] * n_own
    waveforms = [noise(seed, samples) for seed, samples in enumerate([9_920, 33_333, 160_000])]
    expected, got = plain.embed_layers(waveforms), fast.embed_layers(waveforms)
    for layer in LAYERS:
        assert relative(got[layer], expected[layer]) < 1e-6, layer


def leaky_relu(x: Array, slope: float) -> Array:
    """The activation."""
    return np.where(x > 0, x, slope * x)


def convolve(x: Array, kernel: Array, stride: tuple[int, int] = (1, 1)) -> Array:
    """(B, C, T, F) -> (B, O, T // stride[0], F // stride[1]), with a zero on every side; the kernel is (O, C, I, J)."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2:], axis=(2, 3))
    convolved: Array = np.einsum("bctfij,ocij->botf", windows[:, :, :: stride[0], :: stride[1]], kernel, optimize=True)
    return convolved


def test_a_block_equals_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    conv1 = torch.nn.Conv2d(16, 8, 3, padding=1)
    conv2 = torch.nn.Conv2d(8, 8, 4, 2, padding=1, bias=False)
    x = torch.randn(2, 16, 34, 24, generator=generator)
    scale, shift = torch.randn(2, 16, generator=generator)
    with torch.no_grad():
        got = WinogradBlock(scale, shift, conv1, conv2)(x, [34, 34])
    weight1, bias1, weight2 = (value.detach().double().numpy() for value in (conv1.weight, conv1.bias, conv2.weight))
    scale, shift = (value.double().view(-1, 1, 1).numpy() for value in (scale, shift))
    hidden = convolve(leaky_relu(x.double().numpy() * scale + shift, 0.01), weight1) + bias1[:, None, None]
    expected = torch.from_numpy(convolve(leaky_relu(hidden, 0.01), weight2, (2, 2)))
    assert relative(got, expected) < 1e-5


@settings(max_examples=25, deadline=None)
@given(
    pooling=st.tuples(st.sampled_from([1, 2]), st.sampled_from([1, 2])),
    size=st.tuples(st.integers(2, 75), st.sampled_from([8, 16, 40])),
    items=st.integers(1, 3),
    # Of 130 channels, three columns are computed at a time, which are not all.
    channels=st.tuples(*[st.one_of(st.integers(1, 9), st.just(130))] * 2),
    is_padded=st.booleans(),
    at_a_time=st.sampled_from([1, 5_000, 2**23]),
    min_tiles=st.sampled_from([1, 8]),
    seed=st.integers(0, 2**16),
)
def test_winograd_equals_the_direct_convolutions(
    pooling: tuple[int, int],
    size: tuple[int, int],
    items: int,
    channels: tuple[int, int],
    is_padded: bool,
    at_a_time: int,
    min_tiles: int,
    seed: int,
) -> None:
    """Also of less than a whole tile."""
    torch.manual_seed(seed)
    conv1 = torch.nn.Conv2d(*channels, 3, padding=1)
    conv2 = torch.nn.Conv2d(channels[1], channels[1], (2 + pooling[0], 2 + pooling[1]), pooling, padding=1, bias=False)
    scale, shift = torch.randn(2, channels[0])
    x, ends = torch.randn(items, channels[0], *size), torch.full((items,), size[0])
    if is_padded:
        ends = torch.randint(0, size[0] + 1, (items,))
        x[0, :, int(ends[0]) :] = torch.nan  # no padding is read
    mask = padding_mask(int(ends.min()), ends, size[0])
    with torch.no_grad():
        with mock.patch.multiple(winograd, MIN_TILES=min_tiles, NUMBERS_AT_A_TIME=at_a_time):
            got = WinogradBlock(scale, shift, conv1, conv2)(x, ends.tolist())
        assume(got is not None)  # of fewer tiles
        x, conv1, conv2 = x.double(), conv1.double(), conv2.double()
        activated = fill_padding(F.leaky_relu(x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1), 0.01), mask)
        expected = conv2(fill_padding(F.leaky_relu(conv1(activated), 0.01), mask))
        # Rounding errors grow with what is added up, also where it cancels out.
        assert conv1.bias is not None
        added_up = F.conv2d(activated.abs(), conv1.weight.abs(), conv1.bias.abs(), padding=1)
        added_up = F.conv2d(added_up, conv2.weight.abs(), stride=pooling, padding=1)
    assert got.shape == expected.shape
    for item, end in enumerate(ends // pooling[0]):
        assert not got[item, :, end:].any()
        expected[item, :, end:] = 0
    assert float((got - expected).norm() / added_up.norm()) < 5e-6


def test_the_encoder_computes_the_same_with_any_number_of_threads() -> None:
    """Also with more than the rows there are."""
    waveforms = [noise(seed, samples) for seed, samples in enumerate([9_920, 33_333, 160_000])]
    encoder = load_encoder("random:2024", device="cpu")
    expected = encoder.embed(waveforms)
    for n_threads in (2, 3, 40):
        torch.set_num_threads(n_threads)  # the fixture of this file sets it back
        assert relative(encoder.embed(waveforms), expected) < 1e-6


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 9),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 11), st.integers(1, 20)),
    n_alike=st.integers(0, 3),
    n_flat=st.integers(0, 3),
    is_padded=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_a_table_equals_the_convolution(
    channels: int, sizes: tuple[int, int, int], n_alike: int, n_flat: int, is_padded: bool, seed: int
) -> None:
    """Also of channels that bend at one place, and of channels that do not depend on the spectrogram."""
    torch.manual_seed(seed)
    scale, shift = torch.randn(2, channels)
    scale[:n_alike], shift[:n_alike] = scale[0].clone(), shift[0].clone()
    scale[channels - n_flat :] = 0
    shift[channels - n_flat // 2 :] = 0
    conv, x = torch.nn.Conv2d(channels, 5, 3, padding=1), torch.randn(sizes)
    x[0, 0, 0] = -shift[0] / scale[0] if scale[0] else 0  # where a channel bends
    ends = torch.randint(0, sizes[1] + 1, (sizes[0],)) if is_padded else torch.full((sizes[0],), sizes[1])
    mask = padding_mask(int(ends.min()), ends, sizes[1])
    with torch.no_grad():
        got = TableConv2d(scale, shift, conv)(x, ends.tolist())
        conv, scaled, shift = conv.double(), x[:, None].double() * scale.view(-1, 1, 1).double(), shift.view(-1, 1, 1)
        expected = fill_padding(F.leaky_relu(conv(fill_padding(F.leaky_relu(scaled + shift, 0.01), mask)), 0.01), mask)
        assert conv.bias is not None
        added_up = F.conv2d(scaled.abs() + shift.abs(), conv.weight.abs(), conv.bias.abs(), padding=1)
    assert got.shape == expected.shape
    assert float((got - expected).norm() / added_up.norm()) < 1e-6
