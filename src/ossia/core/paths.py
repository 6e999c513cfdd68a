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
