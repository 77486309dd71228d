from .audiosep import AudioSepEncoder, load_encoder
from .checkpoint import CheckpointError
from .choose import new_encoder
from .condition import ConditionError
from .device import DeviceError, resolve_device
from .logmel import LogMelStatistics
from .network import CHANNELS, LAYERS, SAMPLE_RATE
from .plug_in import PluginError
from .protocol import (
    Encoder,
    EncoderInfo,
    Output,
    UnknownOutputError,
    Waveform,
    choose_outputs,
    find_output,
)
from .tiles import POOLS

__all__ = [
    "CHANNELS",
    "LAYERS",
    "POOLS",
    "SAMPLE_RATE",
    "AudioSepEncoder",
    "CheckpointError",
    "ConditionError",
    "DeviceError",
    "Encoder",
    "EncoderInfo",
    "LogMelStatistics",
    "Output",
    "PluginError",
    "UnknownOutputError",
    "Waveform",
    "choose_outputs",
    "find_output",
    "load_encoder",
    "new_encoder",
    "resolve_device",
]
