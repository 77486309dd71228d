"""What every encoder asks of the waveforms that it is given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from common.arrays import Array

Waveform = Array | torch.Tensor


def check_waveforms(waveforms: Sequence[Waveform], min_samples: int) -> list[Array]:
    """Finite 1-D float32 arrays of at least `min_samples`; shorter ones are zero-padded to that.

    Raises:
        ValueError: one is empty, not 1-D, not floating-point, or holds NaN or infinity; the message says what to do.
    """
    # One array is ambiguous: is (2, samples) two clips, or one in stereo?
    if isinstance(waveforms, (np.ndarray, torch.Tensor)):
        how = "embed([waveform])" if waveforms.ndim == 1 else "embed(list(waveforms)), once they are mono"
        raise ValueError(
            f"waveforms is one array of shape {tuple(waveforms.shape)}; give a sequence of 1-D ones: {how}"
        )
    return [_check_waveform(waveform, index, min_samples) for index, waveform in enumerate(waveforms)]


def _check_waveform(waveform: Waveform, index: int, min_samples: int) -> Array:
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
    return np.pad(samples, (0, min_samples - len(samples))) if len(samples) < min_samples else samples
