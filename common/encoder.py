"""AudioSep's ResUNet30 encoder as a frozen feature extractor: waveforms in, embeddings out.

Source: Liu et al., "Separate Anything You Describe" (AudioSep), https://arxiv.org/abs/2308.05037, and its code
https://github.com/Audio-AGI/AudioSep, ``models/resunet.py``, class ``ResUNet30_Base``:

    magnitude of STFT -> bn0 -> last bin dropped -> pre_conv -> encoder_block1..6 -> conv_block7a ("bottleneck")

A block is ``shortcut(x) + conv2(lrelu(bn2(conv1(lrelu(bn1(x) + beta1))) + beta2))`` and a floor-mode average
pooling. The betas are FiLM's, computed from a text or audio condition; without a condition they are 0.
BatchNorm is frozen, so it is folded here, in float64, into one multiplication and addition (bn1) and into
conv1 (bn2); the betas join the additions.

One mechanism serves batches of any lengths and clips of any length: the tile (see `common.tiles`). Tiles padded
to a common width are set to zero beyond the clip's own end before each convolution, which is what the
convolution's own zero padding does for a clip alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.checkpoint import Weights, load_weights
from common.files import load_torch
from common.tiles import FRAMES_PER_COLUMN, Moments, Tile, plan_tiles

SAMPLE_RATE = 32_000  # Hz
N_FFT = 2048  # samples
HOP_LENGTH = 320  # samples: 100 frames a second
N_BINS = N_FFT // 2 + 1
MIN_MAGNITUDE = 1e-5  # the square root of the least power, 1e-10, of the official STFT
BN_EPS = 1e-5
LEAKY_SLOPE = 0.01
CONDITION_SIZE = 512

# name in LAYERS, official name, channels in, channels out, pooling (time, frequency)
BLOCKS = (
    ("encoder_block1", "encoder_block1", 32, 32, (2, 2)),
    ("encoder_block2", "encoder_block2", 32, 64, (2, 2)),
    ("encoder_block3", "encoder_block3", 64, 128, (2, 2)),
    ("encoder_block4", "encoder_block4", 128, 256, (2, 2)),
    ("encoder_block5", "encoder_block5", 256, 384, (2, 2)),
    ("encoder_block6", "encoder_block6", 384, 384, (1, 2)),
    ("bottleneck", "conv_block7a", 384, 384, (1, 1)),
)
PRE_CONV_CHANNELS = 32
LAYERS = ("pre_conv", *(block[0] for block in BLOCKS))
CHANNELS = dict(zip(LAYERS, (PRE_CONV_CHANNELS, *(block[3] for block in BLOCKS)), strict=True))
POOLS = ("mean", "std", "max")
# name -> type of the blocks' weights and activations; the STFT, bn0, pre_conv and the pooling are always float32
PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GPU_ONLY = ("tf32", "fp16")

MIN_SAMPLES = (FRAMES_PER_COLUMN - 1) * HOP_LENGTH  # 9,920: the shortest waveform that leaves one column
# Receptive field in frames either side, rounded up to whole columns: 126 at block 6, 64 more at the bottleneck.
HALO_FRAMES = dict.fromkeys(LAYERS, 128) | {"bottleneck": 192}
# Frames of the first block's input made at a time on a CPU: 4 MB of float32, the fastest of 2 to 512 where tried.
CACHED_FRAMES = 32
# Tiles a batch on a GPU. On a CPU larger batches bring nothing, and one tile at a time makes a clip's
# embedding the same to the last bit in any company.
GPU_TILE_BATCH = 16


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Official name without prefix -> shape of every tensor that the encoder and its FiLM layers use."""

    def batch_norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}

    shapes: dict[str, tuple[int, ...]] = batch_norm("base.bn0", N_BINS)
    shapes |= {"base.pre_conv.weight": (PRE_CONV_CHANNELS, 1, 1, 1), "base.pre_conv.bias": (PRE_CONV_CHANNELS,)}
    for _, name, channels_in, channels_out, _ in BLOCKS:
        block = f"base.{name}.conv_block1"
        shapes |= batch_norm(f"{block}.bn1", channels_in) | batch_norm(f"{block}.bn2", channels_out)
        shapes[f"{block}.conv1.weight"] = (channels_out, channels_in, 3, 3)
        shapes[f"{block}.conv2.weight"] = (channels_out, channels_out, 3, 3)
        if channels_in != channels_out:
            shapes[f"{block}.shortcut.weight"] = (channels_out, channels_in, 1, 1)
            shapes[f"{block}.shortcut.bias"] = (channels_out,)
        for beta, channels in (("beta1", channels_in), ("beta2", channels_out)):
            shapes[f"film.{name}->conv_block1->{beta}.weight"] = (channels, CONDITION_SIZE)
            shapes[f"film.{name}->conv_block1->{beta}.bias"] = (channels,)
    return shapes


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
    embedding, condition_identity = _read_condition(condition)
    weights = load_weights(checkpoint, weight_shapes())
    encoder = AudioSepEncoder(weights, embedding, condition_identity, precision)
    if resolved.type == "cpu":
        _keep_freed_memory()
    return encoder.to(resolved, memory_format=torch.channels_last)


def _keep_freed_memory() -> None:
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


def _read_condition(condition: str | Path | np.ndarray | torch.Tensor | None) -> tuple[torch.Tensor | None, str]:
    """The 512-d float64 condition (None for no FiLM) and the name under which the record of a run keeps it."""
    if condition is None or (isinstance(condition, str) and condition == "none"):
        return None, "none"
    if isinstance(condition, str) and condition == "zero":
        return torch.zeros(CONDITION_SIZE, dtype=torch.float64), "zero"
    what = "condition"
    if isinstance(condition, (str, Path)):
        path = Path(condition)
        what = f"condition {path}"
        if not path.is_file():
            raise ValueError(f"{what} not found; give none, zero, or a .npy or .pt file of {CONDITION_SIZE} numbers")
        try:
            condition = np.load(path, allow_pickle=False) if path.suffix == ".npy" else load_torch(path)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{what} cannot be read as .npy or .pt: {str(error).splitlines()[0][:120]}") from error
    if not isinstance(condition, (np.ndarray, torch.Tensor)):
        raise ValueError(f"{what} holds a {type(condition).__name__}; it must be one array of {CONDITION_SIZE} numbers")
    real = condition.is_floating_point() if torch.is_tensor(condition) else condition.dtype.kind == "f"
    if not real:
        raise ValueError(f"{what} holds numbers of type {condition.dtype}; it must hold floating-point ones")
    if isinstance(condition, np.ndarray):
        condition = np.ascontiguousarray(condition, dtype=np.float64)
    values = torch.as_tensor(condition).detach().to("cpu", torch.float64).squeeze()
    if values.shape != (CONDITION_SIZE,):
        raise ValueError(f"{what} has shape {tuple(condition.shape)}; it must hold {CONDITION_SIZE} numbers")
    if not torch.isfinite(values).all():
        raise ValueError(f"{what} holds NaN or infinite values")
    return values, "sha256:" + hashlib.sha256(values.to(torch.float32).numpy().tobytes()).hexdigest()


class _Block(nn.Module):
    """One residual block and the average pooling after it, with BatchNorms and betas folded into what stands beside them.

    The pooling too is folded, into conv2: nothing but the addition of the shortcut lies between them, and the mean of
    2x2 neighbouring outputs of a 3x3 convolution is one output of a 4x4 convolution with stride 2. That takes 16
    multiplications where one after the other takes 36. The shortcut, a 1x1 convolution, is taken of the pooled input.
    """

    def __init__(self, channels_in: int, channels_out: int, pooling: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.pooling = pooling
        self.register_buffer("scale", torch.empty(channels_in, 1, 1, dtype=dtype))
        self.register_buffer("shift", torch.empty(channels_in, 1, 1, dtype=dtype))
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, dtype=dtype)
        kernel = (2 + pooling[0], 2 + pooling[1])
        self.conv2 = nn.Conv2d(channels_out, channels_out, kernel, stride=pooling, padding=1, bias=False, dtype=dtype)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, dtype=dtype) if channels_in != channels_out else None

    def forward(self, x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """(B, channels_in, time, frequency) -> (B, channels_out, time // pooling[0], frequency // pooling[1])."""
        activated, pooled = self._inputs(x)
        hidden = F.leaky_relu_(self.conv1(_zero_beyond(activated, lengths)), LEAKY_SLOPE)
        del activated
        residual = self.conv2(_zero_beyond(hidden, lengths))
        return residual.add_(pooled if self.shortcut is None else self.shortcut(pooled))

    def _inputs(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What conv1 and what the shortcut takes."""
        activated = F.leaky_relu_(torch.addcmul(self.shift, x, self.scale), LEAKY_SLOPE)
        return activated, x if self.pooling == (1, 1) else F.avg_pool2d(x, self.pooling)


class _FirstBlock(_Block):
    """The first block together with pre_conv before it, a 1x1 convolution of the spectrogram's one channel.

    What conv1 and what the shortcut takes are both functions of one number, so pre_conv's 32 channels at full resolution
    are never written: bn1 is folded into it for the one, and the spectrogram is pooled before it for the other.
    """

    def __init__(self, channels_in: int, channels_out: int, pooling: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__(channels_in, channels_out, pooling, dtype)
        self.dtype = dtype
        for name in ("scale", "shift", "pre_weight", "pre_bias"):  # float32, like the spectrogram
            self.register_buffer(name, torch.empty(channels_in))

    def pre_conv(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """(B, time, frequency) -> (B, 32, time, frequency), channels last in memory."""
        return torch.addcmul(self.pre_bias, spectrogram[..., None], self.pre_weight).permute(0, 3, 1, 2)

    def _inputs(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        activated = x.new_empty(*x.shape, len(self.scale), dtype=self.dtype)
        # In parts that stay in a CPU's cache between the three steps.
        rows = CACHED_FRAMES if x.device.type == "cpu" else x.shape[1]
        for part, target in zip(x.split(rows, dim=1), activated.split(rows, dim=1), strict=True):
            target.copy_(F.leaky_relu_(torch.addcmul(self.shift, part[..., None], self.scale), LEAKY_SLOPE))
        return activated.permute(0, 3, 1, 2), self.pre_conv(F.avg_pool2d(x, self.pooling)).to(self.dtype)


def _pooled_kernel(kernel: torch.Tensor, pooling: tuple[int, int]) -> torch.Tensor:
    """The kernel that, moved in steps of `pooling`, gives the means of what `kernel` (out, in, 3, 3) gives step by step."""
    time, frequency = pooling
    shifted = [
        F.pad(kernel, (right, frequency - 1 - right, down, time - 1 - down))
        for down in range(time)
        for right in range(frequency)
    ]
    return torch.stack(shifted).mean(dim=0)


def _zero_beyond(x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Set each item's positions from its own length on to zero, in place."""
    for item, length in zip(x, lengths, strict=True):
        if length < x.shape[2]:
            item[:, length:] = 0
    return x


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
        self.register_buffer("window", torch.hann_window(N_FFT, periodic=True))
        self.register_buffer("bn0_scale", torch.empty(N_BINS - 1))
        self.register_buffer("bn0_shift", torch.empty(N_BINS - 1))
        dtype = PRECISIONS[precision]
        blocks = (_FirstBlock if number == 0 else _Block for number in range(len(BLOCKS)))
        self.blocks = nn.ModuleList(kind(*block[2:], dtype) for kind, block in zip(blocks, BLOCKS, strict=True))
        self._fold(weights.tensors, condition)
        self.tile_batch = GPU_TILE_BATCH
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def _fold(self, tensors: dict[str, torch.Tensor], condition: torch.Tensor | None) -> None:
        """Fill the module from the official tensors; float64 until the last step."""

        def batch_norm(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            weight, bias, mean, var = (
                tensors[f"{name}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = weight / torch.sqrt(var + BN_EPS)
            return scale, bias - mean * scale

        def beta(block: str, name: str) -> torch.Tensor | float:
            film = f"film.{block}->conv_block1->{name}"
            if condition is None:
                return 0.0
            return tensors[f"{film}.weight"].double() @ condition + tensors[f"{film}.bias"].double()

        scale, shift = batch_norm("base.bn0")
        self.bn0_scale.copy_(scale[:-1])
        self.bn0_shift.copy_(shift[:-1])
        for module, (_, name, *_) in zip(self.blocks, BLOCKS, strict=True):
            block = f"base.{name}.conv_block1"
            scale, shift = batch_norm(f"{block}.bn1")
            shift = shift + beta(name, "beta1")
            if isinstance(module, _FirstBlock):
                weight, bias = (tensors[f"base.pre_conv.{part}"].double().flatten() for part in ("weight", "bias"))
                module.pre_weight.copy_(weight)
                module.pre_bias.copy_(bias)
                scale, shift = scale * weight, shift + scale * bias
            module.scale.copy_(scale.view_as(module.scale))
            module.shift.copy_(shift.view_as(module.shift))
            scale, shift = batch_norm(f"{block}.bn2")
            module.conv1.weight.copy_(tensors[f"{block}.conv1.weight"].double() * scale[:, None, None, None])
            module.conv1.bias.copy_(shift + beta(name, "beta2"))
            module.conv2.weight.copy_(_pooled_kernel(tensors[f"{block}.conv2.weight"].double(), module.pooling))
            if module.shortcut is not None:
                module.shortcut.weight.copy_(tensors[f"{block}.shortcut.weight"])
                module.shortcut.bias.copy_(tensors[f"{block}.shortcut.bias"])

    @property
    def device(self) -> torch.device:
        return self.window.device

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
            row is the same alone and in any company.

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
        moments: dict[tuple[int, str], list[Moments]] = {
            (clip, layer): [] for clip in range(len(checked)) for layer in layers
        }
        with self._arithmetic():
            for batch in self._batches(tiles):
                for tile, layer, part in self._moments(batch, checked, layers, pools):
                    moments[tile.clip, layer].append(part)
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
            by_width.setdefault(tile.padded_frames, []).append(tile)
        for same_width in by_width.values():
            start = 0
            while start < len(same_width):
                size = self.tile_batch  # which falls where memory is short
                yield same_width[start : start + size]
                start += size

    def _moments(
        self, batch: list[Tile], waveforms: list[torch.Tensor], layers: Sequence[str], pools: Sequence[str]
    ) -> list[tuple[Tile, str, Moments]]:
        """What is pooled of each tile of a batch; in halves where the device has too little memory for all."""
        parts = []
        try:
            for layer, level, output in self._forward(batch, waveforms, layers):
                for tile, item in zip(batch, output, strict=True):
                    own = item[:, tile.columns(level)]  # (channels, time, frequency)
                    if own.shape[1]:
                        parts.append((tile, layer, Moments.of(own, pools)))
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        else:
            return parts
        half = -(-len(batch) // 2)
        if self.tile_batch == GPU_TILE_BATCH:
            warnings.warn(f"the GPU's memory is short: going on with {half} tiles at a time", stacklevel=4)
        self.tile_batch = min(self.tile_batch, half)
        torch.cuda.empty_cache()
        return [part for each in (batch[:half], batch[half:]) for part in self._moments(each, waveforms, layers, pools)]

    def _forward(
        self, batch: list[Tile], waveforms: list[torch.Tensor], layers: Sequence[str]
    ) -> Iterator[tuple[str, int, torch.Tensor]]:
        """Compute a batch of tiles; yield (layer, poolings in time so far, (B, channels, time, frequency))."""
        lengths = [tile.frames for tile in batch]
        width = max(tile.padded_frames for tile in batch)
        samples = torch.stack([_samples(waveforms[tile.clip], tile, width) for tile in batch])
        if self.device.type == "cuda":
            samples = samples.pin_memory().to(self.device, non_blocking=True)
        x = self._normalised_magnitude(samples)  # (B, time, 1024)
        if "pre_conv" in layers:
            yield "pre_conv", 0, self.blocks[0].pre_conv(x)
        level = 0
        for module, layer in zip(self.blocks, LAYERS[1:], strict=True):
            if not set(LAYERS[LAYERS.index(layer) :]) & set(layers):
                return
            x = module(x, [length >> level for length in lengths])
            level += module.pooling[0] - 1
            if layer in layers:
                yield layer, level, x

    def _normalised_magnitude(self, samples: torch.Tensor) -> torch.Tensor:
        """(B, samples), already reflect-padded -> bn0 of the magnitude without the last bin: (B, frames, 1024)."""
        spectrum = torch.stft(samples, N_FFT, HOP_LENGTH, window=self.window, center=False, return_complex=True)
        magnitude = spectrum[:, : N_BINS - 1].abs().clamp_(min=MIN_MAGNITUDE).transpose(1, 2)
        return torch.addcmul(self.bn0_shift, magnitude, self.bn0_scale).contiguous()

    @contextlib.contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """cuDNN would round float32 convolutions to TF32 by default, and may choose algorithms by timing them."""
        if self.device.type == "cpu":
            yield
            return
        is_tf32 = self.info["precision"] == "tf32"
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=is_tf32):
            yield


def _samples(waveform: torch.Tensor, tile: Tile, width: int) -> torch.Tensor:
    """The samples under `width` frames from the tile's first, as the STFT of the whole clip would see them:
    reflected at the clip's ends, zeros where the clip has no such frame."""
    start = tile.first * HOP_LENGTH - N_FFT // 2
    end = start + (tile.frames - 1) * HOP_LENGTH + N_FFT
    before, after = max(0, -start), max(0, end - len(waveform))
    inner = waveform[max(0, start) : end]
    # Reflection needs more samples than it mirrors; a tile is at least 32 frames, so a slice holds enough.
    padded = F.pad(inner[None], (before, after), mode="reflect")[0] if before or after else inner
    return F.pad(padded, (0, (width - tile.frames) * HOP_LENGTH))


def _check_sequence(waveforms: Sequence[np.ndarray | torch.Tensor]) -> Sequence[np.ndarray | torch.Tensor]:
    """One array is ambiguous: is (2, samples) two clips, or one in stereo?"""
    if isinstance(waveforms, (np.ndarray, torch.Tensor)):
        how = "embed([waveform])" if waveforms.ndim == 1 else "embed(list(waveforms)), once they are mono"
        raise ValueError(
            f"waveforms is one array of shape {tuple(waveforms.shape)}; give a sequence of 1-D ones: {how}"
        )
    return waveforms


def _check_waveform(waveform: np.ndarray | torch.Tensor, index: int) -> torch.Tensor:
    """A finite 1-D float32 CPU tensor of at least MIN_SAMPLES, or a ValueError that says what to do."""
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
    if isinstance(waveform, np.ndarray):  # of any strides, byte order and floating-point width
        waveform = torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32))
    samples = waveform.detach().to("cpu", torch.float32)
    if not torch.isfinite(samples).all():
        raise ValueError(f"waveform {index} holds NaN or infinite samples; repair or leave out this clip")
    return F.pad(samples, (0, max(0, MIN_SAMPLES - len(samples))))
