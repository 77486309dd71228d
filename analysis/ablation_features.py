"""What an ablation extracts from every clip: all layers and pools from one forward pass, and further passes with the
waveform or the condition changed. One wide row per clip."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from analysis.sampling import balanced_rows
from analysis.studies import Study
from common.arrays import Array
from common.datasets.audio import limit_bandwidth
from common.encoder import SAMPLE_RATE, AudioSepEncoder, Encoder, Output, Waveform, load_encoder
from common.extraction import ClipList, ExtractOptions, extract
from common.features import FeatureFileError, FeatureSet

BASE = AudioSepEncoder.default_output
# Over time alone, the early layers give 16,000 to 33,000 numbers per clip, which would fill most of the file.
TIME_LAYERS = ("encoder_block4", "encoder_block5", "encoder_block6", "bottleneck")
GRID = tuple(output for output in AudioSepEncoder.outputs if output.pool != "mean_time" or output.layer in TIME_LAYERS)
Degradation = Callable[[Array], Array]


def keep_first(share: float) -> Degradation:
    """The first part of a clip."""
    return lambda waveform: waveform[: max(1, round(share * len(waveform)))]


def add_noise(snr_db: float) -> Degradation:
    """White noise, `snr_db` decibels below the clip's mean power; the same for the same clip in any batch."""

    def noisy(waveform: Array) -> Array:
        seed = int.from_bytes(hashlib.sha256(np.ascontiguousarray(waveform).tobytes()).digest()[:8], "little")
        power = float(np.square(waveform, dtype=np.float64).mean())
        noise = np.random.default_rng(seed).standard_normal(len(waveform))
        mixture: Array = (waveform + np.sqrt(power / 10 ** (snr_db / 10)) * noise).astype(np.float32)
        return mixture

    return noisy


# factor -> variant -> what happens to the waveform before it is embedded. In the file, the factor takes the place of
# the layer, and the variant that of the pool.
DEGRADATIONS: dict[str, dict[str, Degradation]] = {
    "duration": {"first 50 %": keep_first(0.5), "first 25 %": keep_first(0.25)},
    "bandwidth": {
        "up to 8 kHz": lambda waveform: limit_bandwidth(waveform, SAMPLE_RATE, 16_000),
        "up to 4 kHz": lambda waveform: limit_bandwidth(waveform, SAMPLE_RATE, 8_000),
    },
    "noise": {f"SNR {snr_db} dB": add_noise(snr_db) for snr_db in (20, 10, 0)},
}
CONDITION = "condition"
FACTORS = (CONDITION, *DEGRADATIONS)  # those whose variants need further passes


class AblationEncoder(Encoder):
    """An encoder whose outputs are the variants of an ablation."""

    sample_rate = SAMPLE_RATE

    def __init__(self, checkpoint: str, device: torch.device, factors: Sequence[str], condition: Path | None) -> None:
        """Load the encoder without a condition, and for the factor ``"condition"`` those with one.

        Raises:
            CheckpointError, DeviceError, ConditionError: as `load_encoder`.
        """
        self.plain = load_encoder(checkpoint, device)
        self.info, self.device = self.plain.info, self.plain.device
        self.conditioned: dict[str, AudioSepEncoder] = {}
        if CONDITION in factors:
            self.conditioned["zero"] = load_encoder(checkpoint, device, condition="zero")
            if condition is not None:
                other = load_encoder(checkpoint, device, condition=condition)
                self.conditioned[other.info.condition.removeprefix("sha256:")[:12]] = other
        names = [(CONDITION, name) for name in self.conditioned]
        names += [(factor, name) for factor, variants in DEGRADATIONS.items() if factor in factors for name in variants]
        self.outputs = (*GRID, *(Output(factor, name, BASE.width) for factor, name in names))
        self.default_output = BASE

    def embed_outputs(self, waveforms: Sequence[Waveform], outputs: Sequence[Output]) -> dict[Output, torch.Tensor]:
        """As `Encoder.embed_outputs`."""
        embedded = self.plain.embed_outputs(waveforms, [output for output in outputs if output.layer not in FACTORS])
        for output in outputs:
            if output.layer == CONDITION:
                embedded[output] = self.conditioned[output.pool].embed(waveforms)
            elif output.layer in DEGRADATIONS:
                degrade = DEGRADATIONS[output.layer][output.pool]
                embedded[output] = self.plain.embed([degrade(np.asarray(waveform)) for waveform in waveforms])
        return embedded


def read_variants(path: Path) -> FeatureSet:
    """A file of variants, whose `output_columns` name them; FeatureFileError if it holds none."""
    features = FeatureSet.load(path)
    if not features.output_columns:
        raise FeatureFileError(
            f"{path} holds no variants of this version; extract them again: python analysis/ablation.py"
        )
    return features


def extract_variants(
    study: Study, encoder: AblationEncoder, root: Path, output: Path, most: int, options: ExtractOptions
) -> FeatureSet:
    """Every variant of every clip, or of a sample: one pass over the audio, saved and resumed like any extraction."""
    clips = [clip for task in study.extract.values() for clip in task.read_clips(root)]
    sides = np.array([f"{clip.fold} {clip.split}" for clip in clips])
    picked = balanced_rows(np.unique([clip.class_name for clip in clips], return_inverse=True)[1], sides, most)
    print(f"{study.task.title}: {len(picked):,} of {len(clips):,} clips, {len(encoder.outputs)} variants of each")
    source = ClipList([clips[index] for index in picked], root, study.name, study.task.class_names)
    extract(source, encoder, output, encoder.outputs, options)
    return read_variants(output)
