"""AudioSep's separation encoder for transformers: waveforms -> embeddings. Everything is in this file; README.md shows its use.

The encoder half of AudioSep's ResUNet30 (https://arxiv.org/abs/2308.05037; https://github.com/Audio-AGI/AudioSep,
models/resunet.py): magnitude of STFT -> bn0 -> last bin dropped -> pre_conv -> encoder_block1..6 -> mean over time and
frequency. A clip's embedding is the same alone and in any batch: every clip is computed at its length.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

SAMPLE_RATE, N_FFT, HOP_LENGTH = 32_000, 2048, 320  # Hz, samples, samples: 100 frames per second
N_BINS = N_FFT // 2 + 1
FRAMES_PER_COLUMN = 32  # of the last block: 0.32 s
# Shorter clips are padded with zeros: to 0.31 s, a column; with padding of time after the STFT, to what the STFT reflects.
MIN_SAMPLES, MIN_SAMPLES_PADDED = (FRAMES_PER_COLUMN - 1) * HOP_LENGTH, N_FFT // 2 + 1
MIN_POWER = 1e-10
CONDITION_SIZE = 512  # of CLAP's embeddings
# name, channels in, channels out, pooling (time, frequency)
BLOCKS = (
    ("encoder_block1", 32, 32, (2, 2)),
    ("encoder_block2", 32, 64, (2, 2)),
    ("encoder_block3", 64, 128, (2, 2)),
    ("encoder_block4", 128, 256, (2, 2)),
    ("encoder_block5", 256, 384, (2, 2)),
    ("encoder_block6", 384, 384, (1, 2)),
    ("conv_block7a", 384, 384, (1, 1)),  # the bottleneck; only in hidden_states
)


class AudioSepEncoderConfig(PretrainedConfig):
    """What the weights alone do not say."""

    model_type = "audiosep_encoder"

    hidden_size: int = 384  # of an embedding
    sampling_rate: int = SAMPLE_RATE  # in Hz
    # For FiLM: None (every beta is 0), or 512 numbers (a CLAP embedding of a text or sound, or zeros).
    condition: Sequence[float] | None = None
    pads_time: bool = False  # with zeros after bn0 to a multiple of 32 frames, as in AudioSep's forward pass


class AudioSepFeatureExtractor(SequenceFeatureExtractor):
    """Waveforms -> a zero-padded batch and its attention mask; a different sampling rate is refused."""

    model_input_names: ClassVar = ["input_values", "attention_mask"]

    def __call__(self, raw_speech: Any, sampling_rate: int | None = None, **options: Any) -> BatchFeature:
        """One waveform or a list of them, mono, floating-point, in [-1, 1] -> ``input_values``, ``attention_mask``; the options
        are those of `pad`.

        Raises:
            ValueError: wrong sampling rate, or a waveform that is empty, not 1-D, not floating-point or not finite.
        """
        if sampling_rate != self.sampling_rate:
            raise ValueError(f"sampling_rate is {sampling_rate}; resample to {self.sampling_rate} Hz and say so")
        is_array = isinstance(raw_speech, (np.ndarray, torch.Tensor))
        if is_array and raw_speech.ndim != 1:  # several clips, or a clip in stereo?
            raise ValueError(f"shape {tuple(raw_speech.shape)}; give a list of waveforms, once they are mono")
        if is_array or (len(raw_speech) and isinstance(raw_speech[0], (float, np.floating))):
            raw_speech = [raw_speech]
        waveforms = [self._check(waveform, index) for index, waveform in enumerate(raw_speech)]
        options = {"padding": True, "return_attention_mask": True, **options}
        return self.pad(BatchFeature({"input_values": waveforms}), **options)

    @staticmethod
    def _check(raw: Any, index: int) -> np.ndarray:
        waveform = raw.detach().cpu().numpy() if torch.is_tensor(raw) else np.asarray(raw)
        if waveform.ndim != 1 or not len(waveform) or waveform.dtype.kind != "f":
            form = f"{waveform.dtype} of shape {waveform.shape}"
            raise ValueError(f"waveform {index} is {form}; give float32 in [-1, 1], mono, at least one sample")
        if not np.isfinite(waveform).all():
            raise ValueError(f"waveform {index} holds NaN or infinity")
        return waveform.astype(np.float32)


class ConvBlock(nn.Module):
    """A residual block: batch norm, FiLM's beta, leaky ReLU and convolution, twice."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels_in), nn.BatchNorm2d(channels_out)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: torch.Tensor, beta1: torch.Tensor, beta2: torch.Tensor) -> torch.Tensor:
        """(B, channels_in, time, frequency) -> (B, channels_out, time, frequency); the betas have a number per channel."""
        hidden = self.conv1(F.leaky_relu(self.bn1(x) + beta1[:, None, None], 0.01))
        hidden = self.conv2(F.leaky_relu(self.bn2(hidden) + beta2[:, None, None], 0.01))
        return self.shortcut(x) + hidden


class AudioSepEncoderModel(PreTrainedModel):
    """The encoder; layers have their official names."""

    config_class = AudioSepEncoderConfig
    main_input_name = "input_values"

    def __init__(self, config: AudioSepEncoderConfig) -> None:
        super().__init__(config)
        self.base, self.film = nn.Module(), nn.Module()
        self.base.bn0 = nn.BatchNorm2d(N_BINS)
        self.base.pre_conv = nn.Conv2d(1, BLOCKS[0][1], 1)
        for name, channels_in, channels_out, _ in BLOCKS:
            self.base.add_module(name, nn.ModuleDict({"conv_block1": ConvBlock(channels_in, channels_out)}))
            self.film.add_module(f"{name}->conv_block1->beta1", nn.Linear(CONDITION_SIZE, channels_in))
            self.film.add_module(f"{name}->conv_block1->beta2", nn.Linear(CONDITION_SIZE, channels_out))
        self.post_init()

    def train(self, mode: bool = True) -> "AudioSepEncoderModel":
        """Stay in evaluation mode: the encoder is frozen, with the batch norms' statistics of the checkpoint."""
        return super().train(False)

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling:
        """Embed a batch.

        Args:
            input_values: (B, samples) at 32 kHz, mono, in [-1, 1].
            attention_mask: (B, samples), 1 for a clip's samples, 0 for the padding after them; None: no padding.

        Returns:
            last_hidden_state: (B, columns of 0.32 s, 384), means over frequency; 0 beyond the end of a clip.
            pooler_output: (B, 384), the mean over a clip's columns: its embedding.
            hidden_states: if asked for: the same for every layer, (B, columns, channels), pre_conv first.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        lengths = self._lengths(input_values, attention_mask)
        clips: list[list[torch.Tensor]] = [[] for _ in lengths]
        for length in set(lengths):
            rows = [row for row, clip_length in enumerate(lengths) if clip_length == length]
            for layer in self._layers(input_values[rows, :length], bool(output_hidden_states)):
                for row, columns in zip(rows, layer, strict=True):
                    clips[row].append(columns)
        last = -2 if output_hidden_states else -1  # the bottleneck comes after it
        pooled = torch.stack([layers[last].mean(dim=0) for layers in clips])
        padded = [nn.utils.rnn.pad_sequence(layer, batch_first=True) for layer in zip(*clips, strict=True)]
        hidden_states = tuple(padded) if output_hidden_states else None
        return BaseModelOutputWithPooling(
            last_hidden_state=padded[last], pooler_output=pooled, hidden_states=hidden_states
        )

    @staticmethod
    def _lengths(input_values: torch.Tensor, attention_mask: torch.Tensor | None) -> list[int]:
        """Samples of every clip; ValueError unless clips are mono and padded at their ends."""
        if input_values.ndim != 2 or not input_values.is_floating_point() or 0 in input_values.shape:
            form = f"{input_values.dtype} of shape {tuple(input_values.shape)}"
            raise ValueError(f"input_values are {form}; give floating-point (clips, samples)")
        if attention_mask is None:
            return [input_values.shape[1]] * len(input_values)
        mask = attention_mask.bool()
        if mask.shape != input_values.shape or bool((mask[:, 1:] & ~mask[:, :-1]).any()) or not bool(mask[:, 0].all()):
            raise ValueError("attention_mask must be 1 for each clip's samples, then 0 for the padding after them")
        return mask.sum(dim=1).tolist()

    def _layers(self, waveforms: torch.Tensor, with_all: bool) -> Iterator[torch.Tensor]:
        """(B, samples) of equal length -> means over frequency (B, time, channels): of every layer, or of encoder_block6."""
        min_samples = MIN_SAMPLES_PADDED if self.config.pads_time else MIN_SAMPLES
        waveforms = F.pad(waveforms, (0, max(0, min_samples - waveforms.shape[1])))
        # In float32 up to bn0, as half precision cannot hold a loud tone's power.
        window = torch.hann_window(N_FFT, device=waveforms.device)
        spectrum = torch.stft(
            waveforms.float(), N_FFT, HOP_LENGTH, window=window, pad_mode="reflect", return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        magnitude = power.clamp(min=MIN_POWER).sqrt().transpose(1, 2)[:, None]
        bn0 = self.base.bn0
        scale = bn0.weight.float() / (bn0.running_var.float() + bn0.eps).sqrt()
        x = (magnitude * scale + (bn0.bias.float() - bn0.running_mean.float() * scale)).to(self.dtype)
        if self.config.pads_time:
            x = F.pad(x, (0, 0, 0, -x.shape[2] % FRAMES_PER_COLUMN))
        x = self.base.pre_conv(x[..., :-1])
        if with_all:
            yield x.mean(dim=3).transpose(1, 2)
        for name, _, _, pooling in BLOCKS if with_all else BLOCKS[:-1]:
            x = F.avg_pool2d(self.base.get_submodule(name)["conv_block1"](x, *self._betas(name)), pooling)
            if with_all or name == BLOCKS[-2][0]:
                yield x.mean(dim=3).transpose(1, 2)

    def _betas(self, block: str) -> Iterator[torch.Tensor]:
        """FiLM's two betas of a block."""
        condition = self.config.condition
        for beta in ("beta1", "beta2"):
            film = self.film.get_submodule(f"{block}->conv_block1->{beta}")
            zero = torch.zeros_like(film.bias)
            yield zero if condition is None else film(zero.new_tensor(condition))
