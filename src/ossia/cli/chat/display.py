"""What a turn looks like: a line about the reasoning (or the reasoning itself), then the answer as it comes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TextIO

from ossia.cli.terminal import strip_controls
from ossia.cli.turn import Delta, Kind, Turn

DIM, RESET, ERASE_LINE = "\x1b[2m", "\x1b[0m", "\r\x1b[K"
REFRESH_SECONDS = 0.1
"""How often the line about the reasoning is drawn anew."""


class TurnDisplay:
    """Shows turns. Answers go to `out`, all else to `notes`; what goes to a terminal is freed of control characters."""

    def __init__(self, *, out: TextIO, notes: TextIO | None, shows_reasoning: bool = False) -> None:
        """
        Args:
            out: where answers go.
            notes: where the line about the reasoning and remarks go; None leaves them out.
            shows_reasoning: whether the reasoning itself is shown, on `notes`.
        """
        self.out = out
        self.notes = notes
        self.shows_reasoning = shows_reasoning
        self._is_live = notes is not None and notes.isatty()
        self._has_color = self._is_live and "NO_COLOR" not in os.environ
        self._drawn_at = 0.0
        self._line_open = False

    def show(self, turn: Iterable[Delta], *, status: Turn) -> None:
        """Show a turn while it is being sampled. The cursor is at the beginning of a line afterwards, come what may."""
        shown: Kind | None = None
        start = time.perf_counter()
        thought_for = 0.0
        at_line_start = True
        try:
            for kind, text in turn:
                if kind is Kind.REASONING:
                    thought_for = time.perf_counter() - start
                if kind is Kind.REASONING and not self.shows_reasoning:
                    self._draw_thinking(thought_for, status.num_reasoning_tokens)
                    continue
                if not text or kind is None or (kind is not Kind.ANSWER and self.notes is None):
                    continue
                if kind is not shown:
                    self._close_thinking(thought_for, status.num_reasoning_tokens)
                    if not at_line_start:
                        self._write("\n", kind=shown)
                    shown = kind
                self._write(text, kind=kind)
                at_line_start = text.endswith("\n")
        finally:
            self._close_thinking(thought_for, status.num_reasoning_tokens)
            if not at_line_start:
                self._write("\n", kind=shown)

    def note(self, text: str) -> None:
        """A remark of the program's own, if there is anyone to read it."""
        if self.notes is not None:
            self._write_note(text + "\n")

    def _write(self, text: str, *, kind: Kind | None) -> None:
        if kind is not Kind.ANSWER:
            self._write_note(text)
            return
        self.out.write(strip_controls(text) if self.out.isatty() else text)
        self.out.flush()

    def _write_note(self, text: str) -> None:
        if self.notes is None:
            return
        if self._is_live:
            text = strip_controls(text)
        self.notes.write(f"{DIM}{text}{RESET}" if self._has_color else text)
        self.notes.flush()

    def _draw_thinking(self, seconds: float, num_tokens: int) -> None:
        """Draw the line anew on a terminal; elsewhere it is written once, when the reasoning is over."""
        now = time.perf_counter()
        if self.notes is None or (self._line_open and now - self._drawn_at < REFRESH_SECONDS):
            return
        self._line_open = True
        self._drawn_at = now
        if self._is_live:
            self.notes.write(ERASE_LINE)
            self._write_note(thinking_line(seconds, num_tokens))

    def _close_thinking(self, seconds: float, num_tokens: int) -> None:
        if self.notes is None or not self._line_open:
            return
        self._line_open = False
        if self._is_live:
            self.notes.write(ERASE_LINE)
        self._write_note(thinking_line(seconds, num_tokens) + "\n")


def thinking_line(seconds: float, num_tokens: int) -> str:
    """``thinking, 1.2 s, 84 tokens``."""
    return f"thinking, {seconds:.1f} s, {num_tokens} token{'' if num_tokens == 1 else 's'}"
