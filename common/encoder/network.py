"""The network: AudioSep's ResUNet30 encoder, with its fixed operations folded into fewer and smaller steps.

Source: Liu et al., "Separate Anything You Describe" (AudioSep), https://arxiv.org/abs/2308.05037, and its code
https://github.com/Audio-AGI/AudioSep, ``models/resunet.py``, class ``ResUNet30_Base``:

    magnitude of STFT -> bn0 -> last bin dropped -> pre_conv -> encoder_block1..6 -> conv_block7a ("bottleneck")

A block is ``shortcut(x) + conv2(lrelu(bn2(conv1(lrelu(bn1(x) + beta1))) + beta2))`` and a floor-mode average
pooling. FiLM computes the betas from a text or audio condition; without a condition they are 0, a state that AudioSep
itself never runs in.

These are folded, in float64, without changing any output: bn1 and beta1 into one multiplication and addition, in the
first block together with pre_conv; bn2 and beta2 into conv1; the pooling into conv2. One second of audio takes 9.8
GFLOP instead of 15.0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from common.encoder.checkpoint import CONDITION_SIZE
from common.encoder.tiles import fill_padding, padding_mask, to_device

SAMPLE_RATE = 32_000  # Hz
N_FFT = 2048  # samples
HOP_LENGTH = 320  # samples: 100 frames per second
N_BINS = N_FFT // 2 + 1
MIN_MAGNITUDE = 1e-5  # the square root of the official STFT's minimum power, 1e-10
BN_EPS = 1e-5
LEAKY_SLOPE = 0.01

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
CHANNELS, FREQUENCIES, TIME_POOLINGS = {"pre_conv": PRE_CONV_CHANNELS}, {"pre_conv": N_BINS - 1}, {"pre_conv": 0}
for _before, (_layer, _official, _, _channels, _pooling) in zip(LAYERS[:-1], BLOCKS, strict=True):
    CHANNELS[_layer] = _channels
    FREQUENCIES[_layer] = FREQUENCIES[_before] // _pooling[1]
    TIME_POOLINGS[_layer] = TIME_POOLINGS[_before] + _pooling[0] // 2
# Frames of the first block's input computed at a time, 131 kB of float32 each; 32 was the fastest of 2 to 512 on a CPU.
CPU_PART, GPU_PART = 32, 2048


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


class ResUNet30Encoder(nn.Module):
    """The folded network: `tensors` are those of `weight_shapes`, `condition` 512 float64 numbers for FiLM or None for betas of
    0, `dtype` that of the blocks' weights and activations; the STFT, bn0 and pre_conv are always float32."""

    def __init__(self, tensors: dict[str, torch.Tensor], condition: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.window = nn.Buffer(torch.hann_window(N_FFT, periodic=True))
        self.bn0_scale = nn.Buffer(torch.empty(N_BINS - 1))
        self.bn0_shift = nn.Buffer(torch.empty(N_BINS - 1))
        self.first_block = _FirstBlock(*BLOCKS[0][2:], dtype)
        self.blocks = [self.first_block, *(_Block(*block[2:], dtype) for block in BLOCKS[1:])]
        self.later_blocks = nn.ModuleList(self.blocks[1:])  # a list alone would not move to a device
        self._fold(tensors, condition)

    def forward(
        self,
        samples: torch.Tensor,
        lengths: Sequence[int],
        layers: Collection[str],
        sounding: Sequence[int] | None = None,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The requested layers, in the order of LAYERS, and their outputs (B, channels, time, frequency).

        The padding of a batch's shorter items is set to zero before each convolution, like the convolution's own zero
        padding of an item alone.

        Args:
            samples: (B, N_FFT + (frames - 1) * HOP_LENGTH) float32, already padded at the clips' ends.
            lengths: frames of each item before its padding.
            sounding: frames before those that are set to zero after bn0, as the official forward pads clips; None: all.
        """
        spectrum = torch.stft(samples, N_FFT, HOP_LENGTH, window=self.window, center=False, return_complex=True)
        magnitude = spectrum[:, : N_BINS - 1].abs().clamp_(min=MIN_MAGNITUDE).transpose(1, 2)
        x = torch.addcmul(self.bn0_shift, magnitude, self.bn0_scale).contiguous()  # (B, frames, 1024)
        if sounding is not None:
            fill_padding(x, padding_mask(min(sounding), to_device(sounding, x.device), x.shape[1]))
        if "pre_conv" in layers:
            yield "pre_conv", self.first_block.pre_conv(x)
        ends = to_device(lengths, x.device)
        for number, block in enumerate(self.blocks, start=1):
            if not set(LAYERS[number:]) & set(layers):
                return
            level = TIME_POOLINGS[LAYERS[number - 1]]
            x = block(x, ends >> level, padding_mask(min(lengths) >> level, ends >> level, x.shape[-2]))
            if LAYERS[number] in layers:
                yield LAYERS[number], x

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
            assert module.conv1.bias is not None
            module.conv1.bias.copy_(shift + beta(name, "beta2"))
            module.conv2.weight.copy_(_pooled_kernel(tensors[f"{block}.conv2.weight"].double(), module.pooling))
            for part, parameter in module.shortcut.named_parameters():
                parameter.copy_(tensors[f"{block}.shortcut.{part}"])


class _EmptyConv2d(nn.Conv2d):
    """Without torch's random weights, which take a quarter of a second and are never used; so does torch's `skip_init`."""

    def reset_parameters(self) -> None:
        pass


class _Block(nn.Module):
    """One residual block and the average pooling after it.

    The mean of 2x2 neighbouring outputs of a 3x3 convolution is one output of a 4x4 convolution with stride 2, which takes
    16 multiplications instead of 36. The shortcut, a 1x1 convolution, is applied to the pooled input.
    """

    def __init__(self, channels_in: int, channels_out: int, pooling: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.pooling = pooling
        self.scale = nn.Buffer(torch.empty(channels_in, 1, 1, dtype=dtype))
        self.shift = nn.Buffer(torch.empty(channels_in, 1, 1, dtype=dtype))
        self.conv1 = _EmptyConv2d(channels_in, channels_out, 3, padding=1, dtype=dtype)
        kernel = (2 + pooling[0], 2 + pooling[1])
        self.conv2 = _EmptyConv2d(
            channels_out, channels_out, kernel, stride=pooling, padding=1, bias=False, dtype=dtype
        )
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.shortcut = _EmptyConv2d(channels_in, channels_out, 1, dtype=dtype)
        # In place of conv1 and conv2 with the activations before them, or of the first block's conv1 alone. They are called
        # with an input and where the padding of its items begins; the former returns None where it would be slower.
        self.fast_convolutions: Callable[[torch.Tensor, list[int]], torch.Tensor | None] | None = None
        self.fast_conv1: Callable[[torch.Tensor, list[int]], torch.Tensor] | None = None

    def forward(self, x: torch.Tensor, ends: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(B, channels_in, time, frequency) -> (B, channels_out, time // pooling[0], frequency // pooling[1]).

        `ends` (B,) are where the padding of the items begins, as in `mask`, the `padding_mask`.
        """
        residual = None
        if self.fast_convolutions is not None and x.device.type == "cpu":  # an encoder may be moved
            residual = self.fast_convolutions(x, ends.tolist())
        if residual is None:
            residual = self.conv2(self._hidden(x, ends, mask))
        return residual.add_(self.shortcut(self._pooled(x)))

    def _hidden(self, x: torch.Tensor, ends: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The input of conv2."""
        activated = F.leaky_relu_(torch.addcmul(self.shift, x, self.scale), LEAKY_SLOPE)
        return fill_padding(F.leaky_relu_(self.conv1(fill_padding(activated, mask)), LEAKY_SLOPE), mask)

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        """The input of the shortcut."""
        return x if self.pooling == (1, 1) else F.avg_pool2d(x, self.pooling)


class _FirstBlock(_Block):
    """The first block together with pre_conv before it, a 1x1 convolution of the spectrogram's one channel.

    The inputs of conv1 and of the shortcut are both functions of one number, so pre_conv's 32 channels are never written at
    full resolution: bn1 is folded into pre_conv for conv1, and the spectrogram is pooled before pre_conv for the shortcut.
    """

    def __init__(self, channels_in: int, channels_out: int, pooling: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__(channels_in, channels_out, pooling, dtype)
        self.dtype = dtype
        # float32, like the spectrogram
        self.scale, self.shift = nn.Buffer(torch.empty(channels_in)), nn.Buffer(torch.empty(channels_in))
        self.pre_weight, self.pre_bias = nn.Buffer(torch.empty(channels_in)), nn.Buffer(torch.empty(channels_in))

    def pre_conv(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """(B, time, frequency) -> (B, 32, time, frequency), channels last in memory."""
        return torch.addcmul(self.pre_bias, spectrogram[..., None], self.pre_weight).permute(0, 3, 1, 2)

    def _hidden(self, x: torch.Tensor, ends: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if self.fast_conv1 is not None and x.device.type == "cpu":
            return self.fast_conv1(x, ends.tolist())
        activated = x.new_empty(*x.shape, len(self.scale), dtype=self.dtype)
        # In parts: on a CPU a few frames, which stay in its cache between the three steps; on a GPU a few items, since
        # float32 values of all would double the memory.
        size, dim = (CPU_PART, 1) if x.device.type == "cpu" else (max(1, GPU_PART // x.shape[1]), 0)
        for part, target in zip(x.split(size, dim), activated.split(size, dim), strict=True):
            target.copy_(F.leaky_relu_(torch.addcmul(self.shift, part[..., None], self.scale), LEAKY_SLOPE))
        hidden = self.conv1(fill_padding(activated.permute(0, 3, 1, 2), mask))
        return fill_padding(F.leaky_relu_(hidden, LEAKY_SLOPE), mask)

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        return self.pre_conv(F.avg_pool2d(x, self.pooling)).to(self.dtype)


def _pooled_kernel(kernel: torch.Tensor, pooling: tuple[int, int]) -> torch.Tensor:
    """The kernel whose outputs, at stride `pooling`, are the average-pooled outputs of `kernel` (out, in, 3, 3)."""
    time, frequency = pooling
    pooled = kernel.new_zeros(*kernel.shape[:2], 2 + time, 2 + frequency)
    for down in range(time):
        for right in range(frequency):
            pooled[:, :, down : down + 3, right : right + 3] += kernel / (time * frequency)
    return pooled
