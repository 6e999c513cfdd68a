"""On what hardware, and with which versions, something was measured: a figure without them says little."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ossia


def describe(*, device: str = "cpu", packages: tuple[str, ...] = ("ossia", "torch")) -> dict[str, str]:
    """Hardware and versions as short texts: ``{"hardware": ..., "python": ..., "torch": ...}``."""
    return {
        "hardware": describe_hardware(device),
        "python": platform.python_version(),
        **{name: package_version(name) for name in packages},
    }


def describe_hardware(device: str = "cpu") -> str:
    """The GPU's name, or the processor's with the number of cores that this process may use."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{processor_name()}, {usable_cores()} cores"


def processor_name() -> str:
    """The processor as its maker calls it, or the architecture's name where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def package_version(name: str) -> str:
    """The version of a package, "not installed" if there is none. Ossia may run from its source, uninstalled."""
    if name == "ossia":
        return ossia.__version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
