"""Checkpoints: the three formats in which gpt-oss models are found, and where models are found."""

from __future__ import annotations

from ossia.model.checkpoint.convert import convert
from ossia.model.checkpoint.describe import ModelInfo, describe
from ossia.model.checkpoint.load import load_model
from ossia.model.checkpoint.pull import pull
from ossia.model.checkpoint.resolve import resolve_model
from ossia.model.checkpoint.save import save_checkpoint
from ossia.model.checkpoint.source import FORMATS, Checkpoint, read_config

__all__ = [
    "FORMATS",
    "Checkpoint",
    "ModelInfo",
    "convert",
    "describe",
    "load_model",
    "pull",
    "read_config",
    "resolve_model",
    "save_checkpoint",
]
