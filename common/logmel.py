"""The control that has learned nothing: mean and standard deviation over time of a log-mel spectrogram.

It stands in the encoder's place in an extraction, so that its features are made of the same audio in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from common.resunet import HOP_LENGTH, N_FFT, SAMPLE_RATE

N_MELS = 128
NAME = "logmel"  # what stands for it where a checkpoint is given


class LogMelStatistics:
    """`embed` as an encoder's; (N, 256): the mean of each mel band in dB, then the standard deviations."""

    sample_rate = SAMPLE_RATE
    embedding_size = 2 * N_MELS
    device = torch.device("cpu")
    info = {  # noqa: RUF012 - never changed
        "encoder": "log-mel statistics, no encoder",
        "checkpoint": NAME,
        "release": "untrained",
        "condition": "none",
        "precision": "fp32",
    }

    def embed(self, waveforms: Sequence[np.ndarray], layer: str = NAME, pool: str = "mean+std") -> torch.Tensor:
        """Mono waveforms at 32 kHz -> (N, 256) float32; `layer` and `pool` are what they are.

        librosa's mel spectrogram: power, 2,048 samples a window, 100 frames a second, 128 bands (Slaney), in dB above
        1e-10.
        """
        import librosa

        del layer, pool
        rows = []
        for waveform in waveforms:
            samples = np.pad(np.asarray(waveform, np.float32), (0, max(0, N_FFT - len(waveform))))
            mel = librosa.feature.melspectrogram(
                y=samples, sr=SAMPLE_RATE, n_fft=N_FFT, hop_length=HOP_LENGTH, n_mels=N_MELS
            )
            decibel = librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=None)  # (mels, frames)
            rows.append(np.concatenate([decibel.mean(axis=1), decibel.std(axis=1)]))
        return torch.from_numpy(np.array(rows, np.float32).reshape(-1, self.embedding_size))
