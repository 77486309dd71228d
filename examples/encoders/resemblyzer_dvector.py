"""Resemblyzer's speaker d-vector as a HEAR 2021 module: 256 numbers that tell voices apart (GE2E).

The weights come with a package, which need not be importable: ``pip install --no-deps resemblyzer==0.1.4``.

The network embeds windows of 1.6 s, with a hop of 0.77 s, as unit vectors. A timestamp embedding is that of one window. A
scene embedding is the mean over a clip's windows, scaled to unit length, as in the package's `embed_utterance`.
Two things differ from the package:

- Silence inside a clip stays. The package removes it with a voice activity detector.
- Trailing zeros do not count for a clip's loudness, so a clip padded by the caller gets the same scene embedding.

A clip shorter than 1.6 s is padded with zeros at its end. The last window may also reach past the end, by up to 0.4 s.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import librosa
import torch
import torch.nn.functional as F

SAMPLE_RATE = 16_000
N_FFT, HOP_LENGTH, N_MELS = 400, 160, 40
SIZE = 256  # of the embedding and of the LSTM layers
WINDOW_FRAMES, STEP_FRAMES = 160, 77  # 77 frames: the package asks for 1.3 windows per second
WINDOW_SAMPLES, STEP_SAMPLES = WINDOW_FRAMES * HOP_LENGTH, STEP_FRAMES * HOP_LENGTH
MIN_WINDOW_SAMPLES = WINDOW_SAMPLES * 3 // 4  # a later window with fewer samples is left out
MIN_RMS = 10 ** (-30 / 20)  # -30 dBFS
BATCH_SIZE = 256  # bounds memory for many or long clips


class DVector(torch.nn.Module):
    """Three LSTM layers over power mel frames (no logarithm); the last state, projected, is the embedding."""

    sample_rate = SAMPLE_RATE
    scene_embedding_size = SIZE
    timestamp_embedding_size = SIZE
    min_samples = WINDOW_SAMPLES
    mel_filters: torch.Tensor

    def __init__(self, weights_file: Path, version: str) -> None:
        super().__init__()
        self.weights_file, self.version = weights_file, version
        self.lstm = torch.nn.LSTM(N_MELS, SIZE, num_layers=3, batch_first=True)
        self.linear = torch.nn.Linear(SIZE, SIZE)
        # The file holds CUDA tensors, and two scalars that only training needs.
        state = torch.load(weights_file, map_location="cpu", weights_only=True)["model_state"]
        self.load_state_dict({name: state[name] for name in self.state_dict()})
        filters = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=N_FFT, n_mels=N_MELS)
        self.register_buffer("mel_filters", torch.from_numpy(filters), persistent=False)
        self.eval()

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Mel windows (N, 160, 40) -> embeddings (N, 256). A zero vector stays zero instead of becoming NaN."""
        _, (hidden, _) = self.lstm(windows)
        return F.normalize(self.linear(hidden[-1]).relu(), dim=1)


def load_model(model_file_path: str = "") -> DVector:
    """Build the network with the package's weights, or with those of a file of the same form."""
    if model_file_path:
        return DVector(Path(model_file_path), f"d-vector of {Path(model_file_path).name}")
    try:
        package = metadata.distribution("resemblyzer")
    except metadata.PackageNotFoundError:
        raise ImportError("the d-vector needs a package: pip install --no-deps resemblyzer==0.1.4") from None
    return DVector(Path(str(package.locate_file("resemblyzer/pretrained.pt"))), f"resemblyzer {package.version}")


def get_scene_embeddings(audio: torch.Tensor, model: DVector) -> torch.Tensor:
    """Sounds (n_sounds, n_samples) at 16 kHz -> (n_sounds, 256) float32."""
    return F.normalize(get_timestamp_embeddings(audio, model)[0].mean(dim=1), dim=1)


def get_timestamp_embeddings(audio: torch.Tensor, model: DVector) -> tuple[torch.Tensor, torch.Tensor]:
    """(n_sounds, n_samples) -> (n_sounds, n_windows, 256) float32, and the centres of the windows in ms (n_sounds, n_windows)."""
    n_sounds, n_samples = audio.shape
    n_windows = 1 + max(0, n_samples - MIN_WINDOW_SAMPLES) // STEP_SAMPLES
    missing = (n_windows - 1) * STEP_SAMPLES + WINDOW_SAMPLES - n_samples
    with torch.no_grad():
        waveforms = F.pad(_raise_loudness(audio.to(model.mel_filters)), (0, max(0, missing)))
        hann = torch.hann_window(N_FFT, device=waveforms.device)
        spectrum = torch.stft(waveforms, N_FFT, HOP_LENGTH, window=hann, pad_mode="constant", return_complex=True)
        mel = (model.mel_filters @ spectrum.abs().square()).transpose(1, 2)  # (n_sounds, frames, 40)
        windows = mel.unfold(1, WINDOW_FRAMES, STEP_FRAMES)[:, :n_windows].transpose(2, 3).flatten(0, 1)
        embeddings = torch.cat([model(batch) for batch in windows.split(BATCH_SIZE)])
    centres = torch.arange(n_windows, device=embeddings.device) * STEP_SAMPLES + min(n_samples, WINDOW_SAMPLES) / 2
    return embeddings.unflatten(0, (n_sounds, n_windows)), (centres * 1000 / SAMPLE_RATE).repeat(n_sounds, 1)


def _raise_loudness(waveforms: torch.Tensor) -> torch.Tensor:
    """Raise quiet sounds to -30 dBFS; leave loud sounds and silence as they are."""
    positions = torch.arange(1, waveforms.shape[1] + 1, device=waveforms.device)
    lengths = (positions * (waveforms != 0)).amax(dim=1).clamp(min=1)  # without trailing zeros
    rms = (waveforms.square().sum(dim=1) / lengths).sqrt()
    return waveforms * (MIN_RMS / rms.clamp(min=1e-8)).clamp(min=1)[:, None]
