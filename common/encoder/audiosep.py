"""AudioSep's encoder as a frozen feature extractor: waveforms in, embeddings out.

Clips of any length, in batches of any lengths, are treated alike: they are cut into tiles, whose pooled
parts are merged (`common.encoder.tiles`). The network itself is in `common.encoder.network`.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
import torch
from torch import nn

from common.arrays import Array
from common.encoder.checkpoint import check_export, load_weights, read_condition
from common.encoder.device import PRECISIONS, DeviceError, keep_freed_memory, resolve_device, resolve_precision
from common.encoder.network import (
    CHANNELS,
    FREQUENCIES,
    HOP_LENGTH,
    LAYERS,
    N_FFT,
    SAMPLE_RATE,
    TIME_POOLINGS,
    ResUNet30Encoder,
    weight_shapes,
)
from common.encoder.protocol import Encoder, EncoderInfo, Output, Waveform, check_waveforms
from common.encoder.tiles import FRAMES_PER_COLUMN, POOLS, Moments, Tile, batch_moments, plan_tiles
from common.encoder_name import EncoderKind, EncoderName

T = TypeVar("T")
MIN_SAMPLES = (FRAMES_PER_COLUMN - 1) * HOP_LENGTH  # 9,920: the shortest waveform that leaves one column
# With the official padding a shorter one is padded after the STFT, whose reflection needs half a window and one sample.
MIN_SAMPLES_PADDED = N_FFT // 2 + 1
PADDINGS = ("none", "official")
# Receptive field in frames on either side, rounded up to whole columns: 126 at block 6, 64 more at the bottleneck.
HALO_FRAMES = dict.fromkeys(LAYERS, 128) | {"bottleneck": 192}
# Frames per batch on a GPU: 164 s. On a CPU larger batches are no faster, and one tile at a time makes a clip's
# embedding bit-identical in any batch.
GPU_BATCH_FRAMES = 16 * 1024
# Widths of tiles per octave. On a CPU 16 are a few percent faster than 8 but take half a gigabyte more, as memory
# fragments; computing every width that occurs would take gigabytes.
WIDTHS = {"cpu": 16, "mps": 8, "cuda": 8}
MPS_TOLERANCE = 1e-5  # relative
OUTPUTS = tuple(
    Output(layer, pool, CHANNELS[layer] * (FREQUENCIES[layer] if pool == "mean_time" else 1))
    for layer in LAYERS
    for pool in POOLS
)
DEFAULT_LAYER, DEFAULT_POOL = "encoder_block6", "mean"
DEFAULT = next(output for output in OUTPUTS if (output.layer, output.pool) == (DEFAULT_LAYER, DEFAULT_POOL))


@overload
def load_encoder(
    checkpoint: str | Path | None = None,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    condition: str | Path | Array | torch.Tensor | None = None,
    padding: str = "none",
) -> AudioSepEncoder: ...


@overload
def load_encoder(*, device: str | torch.device = "auto", encoder: str) -> Encoder: ...


def load_encoder(
    checkpoint: str | Path | None = None,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    condition: str | Path | Array | torch.Tensor | None = None,
    padding: str = "none",
    *,
    encoder: str = "audiosep",
) -> Encoder:
    """Build a frozen encoder, ready to embed.

    Args:
        encoder: a name as ``--encoder`` takes it, such as ``"logmel"`` or ``"hf:OWNER/NAME"``; the other settings but
            `device` are AudioSep's alone.
        checkpoint: a weights file or exported folder, ``"random:SEED"`` for an untrained encoder, or None for the default file.
        device: ``"auto"`` (CUDA if available, else CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``..., or ``"mps"``, whose
            embeddings are compared with the CPU's first.
        precision: ``"fp32"``: true float32, also on a GPU (no TF32); ``"bf16"``; only on a GPU ``"tf32"`` (float32
            with products rounded to 10 bits) and ``"fp16"``; ``"auto"``: bf16 on a GPU that supports it, else fp32.
        condition: None or ``"none"`` (every FiLM beta 0), ``"zero"`` (the betas of an all-zero condition), or
            a 512-d embedding as array, tensor, or path of a ``.npy`` or ``.pt`` file. AudioSep itself always has a
            condition: ``"zero"`` is the nearest state that it runs in, and None is one that it never does.
        padding: ``"none"``, or ``"official"``: as AudioSep's own forward, pad time with zeros after bn0 to a multiple of 32
            frames. Then the mean covers up to 0.31 s of nothing, which matters most for short clips.

    Raises:
        CheckpointError: the weights cannot be used.
        DeviceError: an unknown precision, device or padding; or mps computes other embeddings than the CPU.
        ConditionError: the condition cannot be read or has another size. (All three are ValueErrors.)
        PluginError: another encoder cannot be loaded.
    """
    if encoder != "audiosep":
        from common.encoder.choose import new_encoder

        chosen = "none" if condition is None else str(condition)
        return new_encoder(EncoderName.parse(encoder), "", resolve_device(device), precision, chosen, padding)
    if padding not in PADDINGS:
        raise DeviceError(f"padding {padding!r} is unknown; choose one of {', '.join(PADDINGS)}")
    resolved = resolve_device(device)
    built = AudioSepEncoder(checkpoint, resolve_precision(precision, resolved), condition, padding)
    if resolved.type == "cpu":
        keep_freed_memory()
        if built.info.precision == "fp32":
            from common.encoder.fast_cpu import accelerate

            accelerate(built.network)
    built.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _on_mps(built, resolved) if resolved.type == "mps" else built.to(resolved)


def _on_mps(encoder: AudioSepEncoder, device: torch.device) -> AudioSepEncoder:
    noise = 0.1 * torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    expected = encoder.embed([noise])
    encoder = encoder.to(device)
    error = float(torch.linalg.vector_norm(encoder.embed([noise]) - expected) / torch.linalg.vector_norm(expected))
    if not error < MPS_TOLERANCE:
        raise DeviceError(f"on mps, embeddings differ by {error:.0e} from those of the CPU; use --device cpu")
    return encoder


class AudioSepEncoder(Encoder, nn.Module):
    """The frozen encoder as plain convolutions on the CPU, which `load_encoder` makes fast and moves to a device."""

    is_thread_safe = True
    sample_rate = SAMPLE_RATE  # 32,000 Hz
    outputs = OUTPUTS  # every layer with every pooling
    default_output = DEFAULT
    embedding_size = CHANNELS[DEFAULT_LAYER]  # 384

    def __init__(
        self,
        checkpoint: str | Path | None,
        precision: str = "fp32",
        condition: str | Path | Array | torch.Tensor | None = None,
        padding: str = "none",
    ) -> None:
        super().__init__()
        embedding, condition_identity = read_condition(condition)
        weights = load_weights(checkpoint, weight_shapes())
        check_export(checkpoint, weights, embedding, padding)
        # As it is trained, without FiLM, which computes the betas, and without the running statistics.
        trained = [name for name in weights.tensors if name.startswith("base.") and ".running_" not in name]
        self.info = EncoderInfo(
            EncoderKind.UNTRAINED if weights.is_untrained else EncoderKind.AUDIOSEP,
            "AudioSep ResUNet30",
            weights.identity,
            weights.release,
            condition_identity,
            precision,
            parameters=sum(weights.tensors[name].numel() for name in trained),
            min_samples=MIN_SAMPLES_PADDED if padding == "official" else MIN_SAMPLES,
            padding=padding,
        )
        self.network = ResUNet30Encoder(weights.tensors, embedding, PRECISIONS[precision])
        self.pads_time = padding == "official"  # as AudioSep's own forward does
        self.batch_frames = GPU_BATCH_FRAMES
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # of the network, which may be moved
        return self.network.window.device

    def embed_layers(self, waveforms: Sequence[Waveform], pool: str = DEFAULT_POOL) -> dict[str, torch.Tensor]:
        """Like `embed`, for every layer from one forward pass: layer -> (N, channels of that layer)."""
        outputs = [self._one_output(layer, pool) for layer in LAYERS]
        embeddings = self.embed_outputs(waveforms, outputs)
        return {output.layer: embeddings[output] for output in outputs}

    @torch.no_grad()
    def embed_outputs(self, waveforms: Sequence[Waveform], outputs: Sequence[Output]) -> dict[Output, torch.Tensor]:
        """As `Encoder.embed_outputs`, all from one forward pass."""
        checked = check_waveforms(waveforms, self.info.min_samples)
        if not checked:
            return {output: torch.empty(0, output.width) for output in outputs}
        pools = {wanted.layer: {other.pool for other in outputs if other.layer == wanted.layer} for wanted in outputs}
        # Nothing before `joined` waits for a GPU: it computes one batch while the samples of the next one are laid out.
        items, reduced = self._reduce(
            checked, list(pools), lambda layer, activations, columns: batch_moments(activations, columns, pools[layer])
        )
        moments = {layer: Moments.joined(batches) for layer, batches in reduced.items()}
        return {
            output: torch.stack([moments[output.layer].pooled(of_clip, output.pool) for of_clip in items])
            for output in outputs
        }

    @torch.no_grad()
    def embed_frames(self, waveforms: Sequence[Waveform], layer: str = DEFAULT_LAYER) -> list[torch.Tensor]:
        """The embeddings of each clip over time, (T, channels) float32 on the CPU: the mean over frequency of each of the
        layer's columns. Arguments and errors as for `embed`.

        Their mean over time is the clip's embedding (pool ``mean``), up to rounding. `frame_times` gives their places. Of
        ``encoder_block6``, a column is 0.32 s, and what is left at the end of a clip belongs to none.
        """
        checked = check_waveforms(waveforms, self.info.min_samples)
        self._one_output(layer, DEFAULT_POOL)  # which refuses an unknown layer

        def over_frequency(_: str, activations: torch.Tensor, columns: list[slice]) -> list[torch.Tensor]:
            means = activations.float().mean(dim=3).transpose(1, 2).cpu()
            return [values[core] for values, core in zip(means, columns, strict=True)]

        items, reduced = self._reduce(checked, [layer], over_frequency)
        parts = list(itertools.chain.from_iterable(reduced[layer]))
        return [torch.cat([parts[item] for item in of_clip]) for of_clip in items]

    @staticmethod
    def frame_times(count: int, layer: str = DEFAULT_LAYER) -> torch.Tensor:
        """(count,) seconds: the centres of the first columns of a layer."""
        frames = 1 << TIME_POOLINGS[layer]
        centres: torch.Tensor = (frames * torch.arange(count) + (frames - 1) / 2) * HOP_LENGTH / SAMPLE_RATE
        return centres

    def _reduce(
        self, waveforms: list[Array], layers: Sequence[str], reduce: Callable[[str, torch.Tensor, list[slice]], T]
    ) -> tuple[list[list[int]], dict[str, list[T]]]:
        """The places of every clip's tiles in the batches, and layer -> what `reduce` makes of the layer, its output and the
        tiles' cores, for every batch of tiles."""
        halo = max((HALO_FRAMES[layer] for layer in layers), default=0)
        tiles: list[Tile] = []
        for clip, waveform in enumerate(waveforms):
            frames = _sounding_frames(waveform)
            if self.pads_time:
                frames = -(-frames // FRAMES_PER_COLUMN) * FRAMES_PER_COLUMN
            tiles += plan_tiles(clip, frames, halo)

        def work(batch: list[Tile]) -> list[tuple[list[Tile], dict[str, T]]]:
            if self.is_stopped:
                raise CancelledError
            reduced = {
                layer: reduce(layer, activations, [tile.columns(TIME_POOLINGS[layer]) for tile in batch])
                for layer, activations in self._forward(batch, waveforms, layers)
            }
            return [(batch, reduced)]

        arithmetic: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.device.type == "cuda":  # by default cuDNN rounds float32 to TF32, and may choose algorithms by timing
            is_tf32 = self.info.precision == "tf32"
            arithmetic = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=is_tf32)
        with arithmetic:
            batches = [done for batch in self._batches(tiles) for done in self._compute(batch, work)]
        computed = [tile for batch, _ in batches for tile in batch]
        items: list[list[int]] = [[] for _ in waveforms]
        for item in sorted(range(len(computed)), key=lambda item: computed[item].core_start):
            items[computed[item].clip].append(item)
        return items, {layer: [reduced[layer] for _, reduced in batches] for layer in layers}

    def _batches(self, tiles: list[Tile]) -> Iterator[list[Tile]]:
        """Tiles to compute together: tiles of the same padded width on a CUDA GPU, else one at a time."""
        if self.device.type != "cuda":
            yield from ([tile] for tile in tiles)
            return
        by_width = sorted(tiles, key=lambda tile: self._width([tile]))
        for width, same_width in itertools.groupby(by_width, lambda tile: self._width([tile])):
            # batch_frames falls when memory runs short
            while batch := list(itertools.islice(same_width, max(1, self.batch_frames // width))):
                yield batch

    def _compute(self, batch: list[Tile], work: Callable[[list[Tile]], list[T]]) -> list[T]:
        """What `work` makes of a batch of tiles; of its halves if the device is short of memory. `work` is a function of its
        own, so that nothing of a batch that was too large is kept alive."""
        try:
            return work(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        half = -(-len(batch) // 2)
        if self.batch_frames == GPU_BATCH_FRAMES:
            warnings.warn(f"the GPU is out of memory: continuing with {half} tiles at a time", stacklevel=4)
        self.batch_frames = min(self.batch_frames, half * self._width(batch))
        torch.cuda.empty_cache()
        return self._compute(batch[:half], work) + self._compute(batch[half:], work)

    def _width(self, batch: list[Tile]) -> int:
        return max(tile.padded_frames(WIDTHS[self.device.type]) for tile in batch)

    def _forward(
        self, batch: list[Tile], waveforms: list[Array], layers: Sequence[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The layers and their outputs of a batch of tiles."""
        width = self._width(batch)
        on_gpu = self.device.type == "cuda"
        samples = torch.empty(len(batch), (width - 1) * HOP_LENGTH + N_FFT, pin_memory=on_gpu)
        sounding = [min(tile.last, _sounding_frames(waveforms[tile.clip])) - tile.first for tile in batch]
        for row, tile, frames in zip(samples.numpy(), batch, sounding, strict=True):
            _lay_out(waveforms[tile.clip], tile.first, frames, row)
        moved = samples.to(self.device, non_blocking=True)
        yield from self.network(moved, [tile.frames for tile in batch], layers, sounding if self.pads_time else None)


def _sounding_frames(waveform: Array) -> int:
    """The frames of a waveform's STFT."""
    return 1 + len(waveform) // HOP_LENGTH


def _lay_out(waveform: Array, first: int, frames: int, row: Array) -> None:
    """Fill `row` with the samples of so many frames as the STFT of the whole clip sees them: reflected at the clip's ends;
    and zero after them."""
    start = first * HOP_LENGTH - N_FFT // 2
    end = start + (frames - 1) * HOP_LENGTH + N_FFT
    outside = (max(0, -start), max(0, end - len(waveform)))
    row[: end - start] = np.pad(waveform[max(0, start) : end], outside, mode="reflect")
    row[end - start :] = 0
