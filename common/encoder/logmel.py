"""A control that is not learned: mean and standard deviation over time of a log-mel spectrogram.

It takes the encoder's place in an extraction, so its features come from the same audio in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from common.encoder.network import HOP_LENGTH, N_FFT, SAMPLE_RATE
from common.encoder.protocol import Encoder, EncoderInfo, Output, Waveform, check_waveforms
from common.encoder_name import EncoderKind

N_MELS = 128
NAME = EncoderKind.LOGMEL.value


class LogMelStatistics(Encoder):
    """An `Encoder` with one output of 256 numbers: the mean of each mel band in dB, then the standard deviations."""

    is_thread_safe = True
    sample_rate = SAMPLE_RATE
    embedding_size = 2 * N_MELS
    device = torch.device("cpu")
    outputs = (Output(NAME, "mean+std", 2 * N_MELS),)
    default_output = outputs[0]
    info = EncoderInfo(
        EncoderKind.LOGMEL, "log-mel statistics", NAME, "none", "none", "fp32", parameters=0, min_samples=N_FFT
    )

    def embed_outputs(self, waveforms: Sequence[Waveform], outputs: Sequence[Output]) -> dict[Output, torch.Tensor]:
        """As `Encoder.embed_outputs`: mono waveforms at 32 kHz -> (N, 256) float32.

        librosa's mel spectrogram: power, windows of 2,048 samples, 100 frames per second, 128 bands (Slaney), in dB
        relative to 1, at least -100 dB.
        """
        from common.compiled import import_compiled

        librosa = import_compiled("librosa")
        rows = []
        for samples in check_waveforms(waveforms, N_FFT):
            mel = librosa.feature.melspectrogram(
                y=samples, sr=SAMPLE_RATE, n_fft=N_FFT, hop_length=HOP_LENGTH, n_mels=N_MELS
            )
            decibel = librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=None)  # (mels, frames)
            rows.append(np.concatenate([decibel.mean(axis=1), decibel.std(axis=1)]))
        embeddings = torch.from_numpy(np.array(rows, np.float32).reshape(-1, self.embedding_size))
        return dict.fromkeys(outputs, embeddings)
