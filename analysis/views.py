"""What an ablation extracts of every clip: all layers and pools of one forward pass, and some more passes where the
waveform or the condition is another. One wide row a clip, of named views."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from analysis.studies import Study, balanced_rows
from common.audio import limit_bandwidth
from common.encoder import CHANNELS, LAYERS, POOLS, SAMPLE_RATE, load_encoder
from common.extract import extract
from common.features import FeatureFileError, FeatureSet

BASE_LAYER, BASE_POOL = "encoder_block6", "mean"
BASELINE = f"{BASE_LAYER} {BASE_POOL}"
GRID = tuple(f"{layer} {pool}" for layer in LAYERS for pool in POOLS)
SEPARATOR = "; "


def keep_first(share: float) -> Callable[[np.ndarray], np.ndarray]:
    """The first part of a clip."""
    return lambda waveform: waveform[: max(1, round(share * len(waveform)))]


def add_noise(snr_db: float) -> Callable[[np.ndarray], np.ndarray]:
    """White noise, `snr_db` decibels below the clip's mean power; the same for the same clip, whoever is beside it."""

    def noisy(waveform: np.ndarray) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(np.ascontiguousarray(waveform)).digest()[:8], "little")
        power = float(np.square(waveform, dtype=np.float64).mean())
        noise = np.random.default_rng(seed).standard_normal(len(waveform))
        return (waveform + np.sqrt(power / 10 ** (snr_db / 10)) * noise).astype(np.float32)

    return noisy


# name of the view -> what happens to the waveform before it is embedded
DEGRADATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "first 50 %": keep_first(0.5),
    "first 25 %": keep_first(0.25),
    "up to 8 kHz": lambda waveform: limit_bandwidth(waveform, SAMPLE_RATE, 16_000),
    "up to 4 kHz": lambda waveform: limit_bandwidth(waveform, SAMPLE_RATE, 8_000),
    "noise, SNR 20 dB": add_noise(20),
    "noise, SNR 10 dB": add_noise(10),
    "noise, SNR 0 dB": add_noise(0),
}
# factor -> how the names of its views begin
FACTORS = {"condition": ("condition",), "duration": ("first",), "bandwidth": ("up to",), "noise": ("noise",)}


class ViewsEncoder:
    """`embed` as an encoder's, of every view beside the next: what `common.extract.extract` asks of an encoder.

    Attributes:
        views: their names, in the order of the columns; `pool` in the record of the extraction.
    """

    def __init__(self, checkpoint: str, device: torch.device, factors: Sequence[str], condition: Path | None) -> None:
        """Load the encoder without a condition, and for factor ``"condition"`` those with.

        Raises:
            CheckpointError, ValueError: as `load_encoder`.
        """
        self.plain = load_encoder(checkpoint, device)
        self.conditioned = {}
        if "condition" in factors:
            self.conditioned["condition zero"] = load_encoder(checkpoint, device, condition="zero")
            if condition is not None:
                other = load_encoder(checkpoint, device, condition=condition)
                self.conditioned[f"condition {other.info['condition'].removeprefix('sha256:')[:12]}"] = other
        self.degradations = {name: how for name, how in DEGRADATIONS.items() if factor_of(name) in factors}
        self.views = (*GRID, *self.conditioned, *self.degradations)
        self.info, self.sample_rate, self.device = self.plain.info, SAMPLE_RATE, self.plain.device
        self.embedding_size = sum(map(width_of, self.views))

    def embed(self, waveforms: Sequence[np.ndarray], layer: str = "views", pool: str = "") -> torch.Tensor:
        """Mono waveforms at 32 kHz -> (N, sum of the views' widths) float32; `layer` and `pool` are what they are."""
        del layer, pool
        grid = self.plain.embed_grid(waveforms, LAYERS, POOLS)
        columns = [grid[layer, pool] for layer in LAYERS for pool in POOLS]
        columns += [encoder.embed(waveforms) for encoder in self.conditioned.values()]
        for degrade in self.degradations.values():
            columns.append(self.plain.embed([degrade(np.asarray(waveform)) for waveform in waveforms]))
        return torch.cat(columns, dim=1)


def factor_of(view: str) -> str:
    """The factor that a view is a level of; empty for one of the grid of layers and pools."""
    return next((factor for factor, begins in FACTORS.items() if view.startswith(begins)), "")


def width_of(view: str) -> int:
    """Numbers of a view."""
    return CHANNELS[view.partition(" ")[0]] if view in GRID else CHANNELS[BASE_LAYER]


def read_views(path: Path) -> tuple[FeatureSet, dict[str, slice]]:
    """A file of views, and where each stands in its rows.

    Raises:
        FeatureFileError: it holds no views.
    """
    features = FeatureSet.load(path)
    if features.meta.get("layer") != "views":
        raise FeatureFileError(f"{path} holds no views; extract them again: python analysis/ablation.py")
    views, start = {}, 0
    for name in features.meta["pool"].split(SEPARATOR):
        views[name] = slice(start, start := start + width_of(name))
    return features, views


def extract_views(
    study: Study, encoder: ViewsEncoder, root: Path, output: Path, most: int, workers: int | None, overwrite: bool
) -> tuple[FeatureSet, dict[str, slice]]:
    """Every view of every clip, or of a sample: one pass over the audio, saved, resumed and found again."""
    clips = [clip for task in study.extract.values() for clip in task.read_clips(root)]
    sides = np.array([f"{clip.fold} {clip.split}" for clip in clips])
    picked = balanced_rows(np.unique([clip.class_name for clip in clips], return_inverse=True)[1], sides, most)
    print(f"{study.task.title}: {len(picked):,} of {len(clips):,} clips, {len(encoder.views)} views of each")
    extract(
        [clips[index] for index in picked],
        root,
        encoder,
        output,
        dataset=study.name,
        class_order=study.task.class_names,
        layer="views",
        pool=SEPARATOR.join(encoder.views),
        workers=workers,
        overwrite=overwrite,
    )
    return read_views(output)
