"""The encoder of a name, as ``--encoder`` gives it."""

from __future__ import annotations

import sys

import torch

from common.config import ExtractConfig
from common.encoder.audiosep import AudioSepEncoder, load_encoder
from common.encoder.hear import HearEncoder
from common.encoder.hugging_face import TransformersEncoder
from common.encoder.logmel import LogMelStatistics
from common.encoder.plug_in import PluginError
from common.encoder.protocol import Encoder, Output, choose_outputs
from common.encoder_name import EncoderKind, EncoderName


def configured_encoder(config: ExtractConfig, device: torch.device) -> tuple[Encoder, tuple[Output, ...]]:
    """The encoder that a configuration names, and the outputs to extract; errors as for `new_encoder`."""
    name = EncoderName.parse(config.encoder)
    if name.kind is EncoderKind.AUDIOSEP:  # a wrong layer is refused before the weights are read
        choose_outputs(AudioSepEncoder.outputs, AudioSepEncoder.default_output, config.layer, config.pool)
    settings = (config.precision, config.condition, config.padding, config.trust_remote_code)
    encoder = new_encoder(name, config.checkpoint, device, *settings)
    return encoder, choose_outputs(encoder.outputs, encoder.default_output, config.layer, config.pool)


def new_encoder(
    name: EncoderName,
    checkpoint: str,
    device: torch.device,
    precision: str = "fp32",
    condition: str = "none",
    padding: str = "none",
    trust_remote_code: bool = False,
) -> Encoder:
    """Load an encoder; a model of transformers may run code that it brings only if `trust_remote_code`.

    The checkpoint, precision, condition and padding are AudioSep's, as for `load_encoder`, as are errors. PluginError: an
    encoder from outside cannot be loaded, or something is asked of it that only AudioSep has.
    """
    if name.kind is EncoderKind.AUDIOSEP:
        return load_encoder(checkpoint, device, precision, condition, padding)
    if (condition, padding) != ("none", "none") or precision not in ("fp32", "auto"):
        raise PluginError(f"{name} has no --condition, --precision or --padding: that is for AudioSep alone")
    if name.kind is EncoderKind.LOGMEL:
        return LogMelStatistics()
    if name.kind is EncoderKind.HEAR or trust_remote_code:
        print(f"note: {name} is code that runs with your rights; use only what you trust", file=sys.stderr)
    if name.kind is EncoderKind.HEAR:
        return HearEncoder(name, device)
    return TransformersEncoder(name, device, trust_remote_code)
