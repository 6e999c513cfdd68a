"""What to say when a GPU has too little memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ossia.core.errors import TrainingError

MORE_GPUS = (
    "the weights, their float32 masters and the optimizer's state do not fit; take a smaller model or more GPUs "
    "(torchrun)"
)
"""Advice for a run that does not even begin."""


@contextmanager
def memory_explained(when: str, *, advice: str) -> Iterator[None]:
    """Turn torch's error into one that says what to change.

    Args:
        when: what was being done.
        advice: the settings that need less.

    Raises:
        TrainingError: the GPU has too little memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).split(". ")[0]
        raise TrainingError(f"{when}: the GPU has too little memory ({first}); {advice}") from error
