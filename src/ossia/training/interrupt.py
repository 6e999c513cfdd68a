"""Ctrl-C while a model is trained: kept until the step under way is done, so that no step is half taken."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class HeldInterrupt:
    """Whether Ctrl-C was pressed.

    Attributes:
        is_set: it was.
    """

    def __init__(self) -> None:
        self.is_set = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """As the handler of SIGINT: note the first one; another one interrupts at once."""
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True


@contextmanager
def held_interrupt() -> Iterator[HeldInterrupt]:
    """Have the first Ctrl-C be noted only. Outside of the main thread, which alone gets signals, nothing is changed."""
    held = HeldInterrupt()
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    before = signal.signal(signal.SIGINT, held)
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, before)
