"""The states of torch's generators, as text that a checkpoint's facts hold."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import torch


def random_state(device: torch.device) -> dict[str, str]:
    """The states now: that of the CPU, and of the GPU if that is the device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in states.items()}


def set_random_state(texts: Mapping[str, str], device: torch.device) -> None:
    """Put back what `random_state` gave."""
    states = {
        name: torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8) for name, text in texts.items()
    }
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
