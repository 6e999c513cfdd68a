"""gpt-oss implemented whole, in Python."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ossia.agent.agent import Agent
    from ossia.engine.llm import LLM

__all__ = ["LLM", "Agent", "__version__"]
__version__ = "0.1.0"

_HOMES = {"Agent": "ossia.agent.agent", "LLM": "ossia.engine.llm"}


def __getattr__(name: str) -> object:
    """Import `Agent` and `LLM` when they are asked for: both import torch, which `import ossia` does not (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
