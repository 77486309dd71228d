"""AudioSep's encoder as a frozen feature extractor: waveforms in, embeddings out.

One mechanism serves batches of any lengths and clips of any length: the tile (see `common.tiles`). The network itself
stands in `common.resunet`.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common.checkpoint import Weights, load_weights
from common.condition import read_condition
from common.resunet import (
    CHANNELS,
    HOP_LENGTH,
    LAYERS,
    N_FFT,
    SAMPLE_RATE,
    ResUNet30Encoder,
    weight_shapes,
)
from common.tiles import FRAMES_PER_COLUMN, Moments, Tile, measure, plan_tiles

POOLS = ("mean", "std", "max")
# name -> type of the blocks' weights and activations; the STFT, bn0, pre_conv and the pooling are always float32
PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GPU_ONLY = ("tf32", "fp16")

MIN_SAMPLES = (FRAMES_PER_COLUMN - 1) * HOP_LENGTH  # 9,920: the shortest waveform that leaves one column
# Receptive field in frames either side, rounded up to whole columns: 126 at block 6, 64 more at the bottleneck.
HALO_FRAMES = dict.fromkeys(LAYERS, 128) | {"bottleneck": 192}
# Frames a batch on a GPU: 164 s. On a CPU larger batches bring nothing, and one tile at a time makes a clip's
# embedding the same to the last bit in any company.
GPU_BATCH_FRAMES = 16 * 1024
# Widths of tiles an octave. On a CPU 16 are some percent faster than 8 and take half a gigabyte more, for gaps in its
# memory; every width that occurs would take gigabytes.
WIDTHS = {"cpu": 16, "cuda": 8}


def load_encoder(
    checkpoint: str | Path | None = None,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    condition: str | Path | np.ndarray | torch.Tensor | None = None,
) -> AudioSepEncoder:
    """Build the frozen encoder, ready to embed.

    Args:
        checkpoint: a weights file, ``"random:SEED"`` for an untrained encoder, or None for the default file.
        device: ``"auto"`` (CUDA when there is one, else CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``...
        precision: ``"fp32"``: true float32, also on a GPU (no TF32); ``"bf16"``; on a GPU alone ``"tf32"`` (float32
            whose products are rounded to 10 bits) and ``"fp16"``; ``"auto"``: bf16 on a GPU that has it, else fp32.
        condition: None or ``"none"`` (every FiLM beta 0), ``"zero"`` (the betas of an all-zero condition), or
            a 512-d embedding as array, tensor, or path of a ``.npy`` or ``.pt`` file.

    Raises:
        CheckpointError: the weights cannot be used (a ValueError).
        ValueError: an unknown precision or device, or a condition of another size.
    """
    resolved = resolve_device(device)
    precision = resolve_precision(precision, resolved)
    embedding, condition_identity = read_condition(condition)
    weights = load_weights(checkpoint, weight_shapes())
    encoder = AudioSepEncoder(weights, embedding, condition_identity, precision)
    if resolved.type == "cpu":
        keep_freed_memory()
    return encoder.to(resolved, memory_format=torch.channels_last)


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next layer instead of returning them to the system.

    Otherwise every activation is a fresh mapping, and half the time on a CPU goes into its page faults.
    Elsewhere (macOS, Windows, musl) there is no mallopt and nothing to do.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold, never = -1, -3, 2**31 - 1
        mallopt(m_mmap_threshold, never)
        mallopt(m_trim_threshold, never)


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"`` or a device name -> a torch.device that exists here; ValueError otherwise."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is unknown; give auto, cpu, cuda or cuda:N") from error
    if resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is not supported; give auto, cpu, cuda or cuda:N")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} is not here ({torch.cuda.device_count()} CUDA GPUs); give auto or cpu")
    return resolved


def resolve_precision(precision: str, device: torch.device) -> str:
    """``"auto"`` or a name -> the name of a precision that the device has; ValueError otherwise."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; choose one of auto, {', '.join(PRECISIONS)}")
    if precision in GPU_ONLY and device.type != "cuda":
        raise ValueError(f"precision {precision} needs a CUDA GPU; on the CPU choose fp32 or bf16")
    return precision


class AudioSepEncoder(nn.Module):
    """The frozen encoder. Build it with `load_encoder`.

    Attributes:
        sample_rate: 32000, in Hz.
        embedding_size: 384.
        info: what the record of a run keeps: checkpoint, release, condition, precision.
    """

    sample_rate = SAMPLE_RATE
    embedding_size = CHANNELS["encoder_block6"]

    def __init__(
        self, weights: Weights, condition: torch.Tensor | None, condition_identity: str, precision: str
    ) -> None:
        super().__init__()
        self.info = {
            "encoder": "AudioSep ResUNet30",
            "checkpoint": weights.identity,
            "release": weights.release,
            "condition": condition_identity,
            "precision": precision,
        }
        self.network = ResUNet30Encoder(weights.tensors, condition, PRECISIONS[precision])
        self.batch_frames = GPU_BATCH_FRAMES
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.network.window.device

    def embed(
        self, waveforms: Sequence[np.ndarray | torch.Tensor], layer: str = "encoder_block6", pool: str = "mean"
    ) -> torch.Tensor:
        """Embed waveforms: one layer's output pooled over time and frequency.

        Args:
            waveforms: 1-D floating-point arrays or tensors, mono, 32 kHz, in [-1, 1], of any lengths of at least
                one sample. One shorter than 9,920 samples (0.31 s) is zero-padded to that.
            layer: one of LAYERS.
            pool: ``"mean"``, ``"std"`` (population) or ``"max"``.

        Returns:
            float32 tensor (N, channels of the layer: 384 by default) on the CPU, in the order given; a clip's
            row is the same alone and in any company (on a GPU but for rounding, under 1e-6).

        Raises:
            ValueError: a waveform is empty, not 1-D, not floating-point, or holds NaN or infinity; or an
                unknown layer or pool.
        """
        return self.embed_grid(waveforms, (layer,), (pool,))[layer, pool]

    def embed_layers(
        self, waveforms: Sequence[np.ndarray | torch.Tensor], pool: str = "mean"
    ) -> dict[str, torch.Tensor]:
        """Like `embed`, for every layer from one forward pass: layer -> (N, channels of that layer)."""
        grid = self.embed_grid(waveforms, LAYERS, (pool,))
        return {layer: grid[layer, pool] for layer in LAYERS}

    @torch.no_grad()
    def embed_grid(
        self, waveforms: Sequence[np.ndarray | torch.Tensor], layers: Sequence[str], pools: Sequence[str]
    ) -> dict[tuple[str, str], torch.Tensor]:
        """Every combination of `layers` and `pools` from one forward pass: (layer, pool) -> (N, channels)."""
        for name, known in [(layer, LAYERS) for layer in layers] + [(pool, POOLS) for pool in pools]:
            if name not in known:
                raise ValueError(f"{name!r} is unknown; choose one of {', '.join(known)}")
        checked = [_check_waveform(waveform, index) for index, waveform in enumerate(_check_sequence(waveforms))]
        halo = max((HALO_FRAMES[layer] for layer in layers), default=0)
        tiles = [
            tile
            for clip, waveform in enumerate(checked)
            for tile in plan_tiles(clip, 1 + len(waveform) // HOP_LENGTH, halo)
        ]
        with self._arithmetic():
            # On a GPU nothing waits here: it computes one batch while the next one's samples are laid out.
            measured = [part for batch in self._batches(tiles) for part in self._measure(batch, checked, layers, pools)]
        moments: dict[tuple[int, str], list[Moments]] = {
            (clip, layer): [] for clip in range(len(checked)) for layer in layers
        }
        for batch, layer, counts, values in measured:
            for tile, moment in zip(batch, Moments.of(counts, values), strict=True):
                moments[tile.clip, layer].append(moment)
        # Tiles of one width share a batch, so a clip's parts may come in any order; their sums are in float64.
        merged = {key: Moments.merge(parts) for key, parts in moments.items()}
        return {
            (layer, pool): torch.stack([merged[clip, layer].pooled(pool) for clip in range(len(checked))])
            if checked
            else torch.empty(0, CHANNELS[layer])
            for layer in layers
            for pool in pools
        }

    def _batches(self, tiles: list[Tile]) -> Iterator[list[Tile]]:
        """Tiles to compute together: singly on a CPU, tiles of one padded width together on a GPU."""
        if self.device.type == "cpu":
            yield from ([tile] for tile in tiles)
            return
        by_width: dict[int, list[Tile]] = {}
        for tile in tiles:
            by_width.setdefault(tile.padded_frames(WIDTHS[self.device.type]), []).append(tile)
        for width, same_width in by_width.items():
            start = 0
            while start < len(same_width):
                size = max(1, self.batch_frames // width)  # which falls where memory is short
                yield same_width[start : start + size]
                start += size

    def _measure(
        self, batch: list[Tile], waveforms: list[np.ndarray], layers: Sequence[str], pools: Sequence[str]
    ) -> list[tuple[list[Tile], str, list[int], dict[str, torch.Tensor]]]:
        """What is pooled of each tile of a batch, still on the device; in halves where that has too little memory.

        Returns:
            per layer: the tiles, the layer, how many values each has in a channel, and what `measure` gives.
        """
        try:
            return list(self._measured(batch, waveforms, layers, pools))
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        half = -(-len(batch) // 2)
        if self.batch_frames == GPU_BATCH_FRAMES:
            warnings.warn(f"the GPU's memory is short: going on with {half} tiles at a time", stacklevel=4)
        self.batch_frames = min(self.batch_frames, half * self._width(batch))
        torch.cuda.empty_cache()
        return [part for each in (batch[:half], batch[half:]) for part in self._measure(each, waveforms, layers, pools)]

    def _width(self, batch: list[Tile]) -> int:
        return max(tile.padded_frames(WIDTHS[self.device.type]) for tile in batch)

    def _measured(
        self, batch: list[Tile], waveforms: list[np.ndarray], layers: Sequence[str], pools: Sequence[str]
    ) -> Iterator[tuple[list[Tile], str, list[int], dict[str, torch.Tensor]]]:
        """The same in one piece; by itself, so that nothing of a batch that was too large is held on to."""
        for layer, level, output in self._forward(batch, waveforms, layers):
            columns = [tile.columns(level) for tile in batch]
            counts = [output.shape[3] * (column.stop - column.start) for column in columns]
            yield batch, layer, counts, measure(output, columns, pools)

    def _forward(
        self, batch: list[Tile], waveforms: list[np.ndarray], layers: Sequence[str]
    ) -> Iterator[tuple[str, int, torch.Tensor]]:
        """The layers' outputs of a batch of tiles, as `ResUNet30Encoder.forward` gives them."""
        width = self._width(batch)
        on_gpu = self.device.type == "cuda"
        samples = torch.empty(len(batch), (width - 1) * HOP_LENGTH + N_FFT, pin_memory=on_gpu)
        for row, tile in zip(samples.numpy(), batch, strict=True):
            _lay_out(waveforms[tile.clip], tile, row)
        yield from self.network(samples.to(self.device, non_blocking=True), [tile.frames for tile in batch], layers)

    @contextlib.contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """cuDNN would round float32 convolutions to TF32 by default, and may choose algorithms by timing them."""
        if self.device.type == "cpu":
            yield
            return
        is_tf32 = self.info["precision"] == "tf32"
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=is_tf32):
            yield


def _lay_out(waveform: np.ndarray, tile: Tile, row: np.ndarray) -> None:
    """Fill `row` with the samples under frames from the tile's first on, as the STFT of the whole clip would see them:
    reflected at the clip's ends, zeros where the clip has no such frame."""
    start = tile.first * HOP_LENGTH - N_FFT // 2
    end = start + (tile.frames - 1) * HOP_LENGTH + N_FFT
    before, after, size = max(0, -start), max(0, end - len(waveform)), end - start
    # Reflection needs more samples than it mirrors; a tile is at least 32 frames, so a slice holds enough.
    inner = waveform[max(0, start) : end]
    row[before : size - after] = inner
    row[:before] = inner[before:0:-1]
    row[size - after : size] = inner[-2 : -2 - after : -1]
    row[size:] = 0


def _check_sequence(waveforms: Sequence[np.ndarray | torch.Tensor]) -> Sequence[np.ndarray | torch.Tensor]:
    """One array is ambiguous: is (2, samples) two clips, or one in stereo?"""
    if isinstance(waveforms, (np.ndarray, torch.Tensor)):
        how = "embed([waveform])" if waveforms.ndim == 1 else "embed(list(waveforms)), once they are mono"
        raise ValueError(
            f"waveforms is one array of shape {tuple(waveforms.shape)}; give a sequence of 1-D ones: {how}"
        )
    return waveforms


def _check_waveform(waveform: np.ndarray | torch.Tensor, index: int) -> np.ndarray:
    """A finite 1-D float32 array of at least MIN_SAMPLES, or a ValueError that says what to do."""
    if not isinstance(waveform, (np.ndarray, torch.Tensor)):
        raise ValueError(f"waveform {index} is a {type(waveform).__name__}; give a 1-D float32 array or tensor")
    if waveform.ndim != 1:
        raise ValueError(
            f"waveform {index} has shape {tuple(waveform.shape)}; give a 1-D array (average the channels to mono first)"
        )
    if not (waveform.is_floating_point() if torch.is_tensor(waveform) else waveform.dtype.kind == "f"):
        raise ValueError(
            f"waveform {index} has type {waveform.dtype}; give float32 in [-1, 1] (16-bit integers: divide by 32768)"
        )
    if not len(waveform):
        raise ValueError(f"waveform {index} is empty; give at least one sample")
    if torch.is_tensor(waveform):
        waveform = waveform.detach().to("cpu", torch.float32).numpy()
    samples = np.ascontiguousarray(waveform, dtype=np.float32)  # of any strides, byte order and floating-point width
    if not np.isfinite(samples).all():
        raise ValueError(f"waveform {index} holds NaN or infinite samples; repair or leave out this clip")
    return np.pad(samples, (0, MIN_SAMPLES - len(samples))) if len(samples) < MIN_SAMPLES else samples
