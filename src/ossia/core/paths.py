"""Where Ossia keeps and finds files. The only module that reads OSSIA_* environment variables."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE_ROOT = Path(__file__).resolve().parent.parent
"""The installed `ossia` package, which holds the tokenizer ranks and the built-in nano."""


def data_home() -> Path:
    """The folder for what users keep: saved chats and pulled models (`OSSIA_HOME`, default `~/.ossia`)."""
    return Path(os.environ.get("OSSIA_HOME") or Path.home() / ".ossia")


def models_home() -> Path:
    """The folder that `ossia pull` fills, one sub-folder a model."""
    return data_home() / "models"


def native_choice() -> str:
    """Which CPU kernels to use (`OSSIA_NATIVE`): "0" for none, the name of a level such as "avx2", "" to choose."""
    return os.environ.get("OSSIA_NATIVE", "").strip().lower()


def native_threads() -> int | None:
    """How many threads the CPU kernels use (`OSSIA_NATIVE_THREADS`); None for as many as there are cores."""
    value = os.environ.get("OSSIA_NATIVE_THREADS", "").strip()
    return int(value) if value.isdecimal() and int(value) > 0 else None


def native_cache() -> Path:
    """Where the CPU kernels are built when the package's own folder cannot be written."""
    return data_home() / "native"


def native_folder() -> Path | None:
    """The folder that the CPU kernels must come from (`OSSIA_NATIVE_FOLDER`); None to look in the usual places."""
    value = os.environ.get("OSSIA_NATIVE_FOLDER")
    return Path(value) if value else None


def has_memory_check() -> bool:
    """Whether a model must fit into the memory that is free before it is loaded (`OSSIA_MEMORY_CHECK`, "0" for no)."""
    return os.environ.get("OSSIA_MEMORY_CHECK", "").strip() != "0"
