"""Where networks can run on this machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from streamexit.errors import ConfigurationError, OperationError


def pick_device(name: str) -> torch.device:
    """Turn "auto", "cpu" or "cuda:0" into a device that is there.

    Raises:
        ConfigurationError: Unknown.
        OperationError: A CUDA device that this machine does not have, now.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device: {name!r} is not one of auto, cpu, cuda:0, cuda:1 ...")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OperationError(
            f"device: {name!r} is not here ({torch.cuda.device_count()} CUDA devices); use auto"
        )
    return device


def describe(device: torch.device) -> str:
    """Device and model, for people: "cuda:0 NVIDIA L4"."""
    model = processor() if device.type == "cpu" else torch.cuda.get_device_name(device)
    return f"{device} {model}".strip()


def title(kind: str, device: torch.device, precision: str) -> str:
    """What runs networks, for people: device, model, backend, precision."""
    return f"{describe(device)}, {kind} {precision}"


def processor() -> str:
    """The processor's model and how many cores of it are ours."""
    name = platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux: what `platform` says has to do
    return f"{name} x {usable_cores()}".strip()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
