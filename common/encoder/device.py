"""Devices and precisions: which are available, and how freed memory is kept on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import re
import warnings
from pathlib import Path

import torch

from common.config import DEVICES
from common.errors import UserError

# name -> type of the blocks' weights and activations; the STFT, bn0, pre_conv and the pooling are always float32
PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class DeviceError(UserError):
    """The device does not exist here, or does not support the precision."""


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"`` (a CUDA GPU or the CPU) or a device's name -> a torch.device that exists here; DeviceError otherwise."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"(cpu|mps|cuda)(:\d{1,2})?", str(device)):
        raise DeviceError(f"device {device!r} is unknown; give {DEVICES}")
    resolved = torch.device(device)
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"device {device!r} is not available (it needs an Apple GPU and macOS 14); give auto or cpu")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {device!r} is not available ({torch.cuda.device_count()} CUDA GPUs); give auto or cpu"
        )
    return resolved


def resolve_precision(precision: str, device: torch.device) -> str:
    """``"auto"`` or a name -> the name of a precision that the device supports; DeviceError otherwise."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision not in PRECISIONS:
        raise DeviceError(f"precision {precision!r} is unknown; choose one of auto, {', '.join(PRECISIONS)}")
    if device.type == "mps" and precision != "fp32":
        raise DeviceError(f"precision {precision} is not offered on mps; choose fp32")
    if precision in ("tf32", "fp16") and device.type != "cuda":
        raise DeviceError(f"precision {precision} needs a CUDA GPU; on the CPU choose fp32 or bf16")
    if precision == "bf16" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        warnings.warn(
            f"this CPU ({describe_cpu()}) has no bf16 instructions, so bf16 is several times slower than fp32; use fp32",
            stacklevel=2,
        )
    return precision


def fitting_device(name: str) -> torch.device:
    """Where heads are fitted for a device's name: on the CPU unless a CUDA GPU is named.

    Compiled steps on the CPU fit one head a core. What a GPU would gain for heads this small has not been measured.
    """
    if name == "auto":
        return torch.device("cpu")
    device = resolve_device(name)
    if device.type == "mps":
        print("heads are fitted on the CPU: mps lacks float64")
        return torch.device("cpu")
    return device


def describe_cpu() -> str:
    """The CPU's model and the instructions that torch uses on it, such as ``"AMD EPYC 7B13, AVX2"``."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        named = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE)
        model = named[1].strip() if named else model
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next layer instead of returning them to the system.

    Otherwise every activation is a new mapping, and half the time on a CPU is spent on page faults.
    """
    with contextlib.suppress(AttributeError, TypeError):  # macOS, Windows and musl have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        m_trim_threshold, m_mmap_threshold, never = -1, -3, 2**31 - 1
        mallopt(m_mmap_threshold, never)
        mallopt(m_trim_threshold, never)
