"""What an answer looks like: a line about the reasoning (or all of it), calls and their results, then the text.

While a tool runs, a terminal shows the line that it writes at the moment; the result then stands in its place.
"""

from __future__ import annotations

import os
import shutil
import time
from typing import TextIO

from ossia.agent.events import AgentEvent, CallEnded, CallProgressed, CallStarted
from ossia.cli.chat.footnotes import Footnotes
from ossia.cli.terminal import strip_controls
from ossia.cli.turn import Delta, Kind, Run
from ossia.harmony.message import Message
from ossia.tools.base import ToolFile, ToolResult

DIM, RESET, ERASE_LINE = "\x1b[2m", "\x1b[0m", "\r\x1b[K"
REFRESH_SECONDS = 0.1
"""How often the line about the reasoning, or of a tool that runs, is drawn anew."""
MAX_LINES, MAX_CHARS = 8, 600
"""How much of a call and of a result is shown."""


class RunDisplay:
    """Shows runs. Answers go to `out`, all else to `notes`; what goes to a terminal is freed of control characters."""

    def __init__(self, *, out: TextIO, notes: TextIO | None, shows_reasoning: bool = False) -> None:
        """
        Args:
            out: where answers go.
            notes: where the line about the reasoning, calls and remarks go; None leaves them out.
            shows_reasoning: whether the reasoning itself is shown, on `notes`.
        """
        self.out = out
        self.notes = notes
        self.shows_reasoning = shows_reasoning
        self._is_live = notes is not None and notes.isatty()
        self._has_color = self._is_live and "NO_COLOR" not in os.environ
        self._footnotes = Footnotes()
        self._drawn_at = 0.0
        self._thought_since: float | None = None
        self._thought_for = 0.0
        self._line_open = False
        self._tool_lines: dict[int, str] = {}  # by call: what it writes at the moment
        self._tool_line_open = False
        self._shown: Kind | None = None
        self._at_line_start = True

    def show(self, run: Run, event: AgentEvent, deltas: list[Delta]) -> None:
        """Show a step. Call `finish` behind the last, come what may."""
        for delta in deltas:
            self._show_delta(delta, num_tokens=run.num_reasoning_tokens)
        if isinstance(event, CallStarted):
            self._end_line(run.num_reasoning_tokens)
            self.note(describe_call(event.call))
        elif isinstance(event, CallProgressed):
            self._draw_tool(event)
        elif isinstance(event, CallEnded):
            self._tool_lines.pop(event.number, None)
            self._footnotes.add_sources(event.result.sources)
            self._end_line(run.num_reasoning_tokens)
            self.note(describe_result(event.result))

    def finish(self, run: Run) -> None:
        """Close the line and write the footnotes; the cursor is at the beginning of a line afterwards."""
        self._give_answer(self._footnotes.end())
        self._end_line(run.num_reasoning_tokens)
        for line in self._footnotes.take_notes():
            self._give_answer(f"{line}\n")
        self._shown, self._at_line_start = None, True
        self._tool_lines.clear()

    def note(self, text: str) -> None:
        """A remark of the program's own, if there is anyone to read it."""
        if self.notes is not None:
            self._write_note(text + "\n")

    def _show_delta(self, delta: Delta, *, num_tokens: int) -> None:
        kind, text = delta
        if kind is Kind.REASONING and not self.shows_reasoning:
            self._draw_thinking(num_tokens)
        elif kind in (Kind.REASONING, Kind.PREAMBLE, Kind.ANSWER) and text:
            if kind is not Kind.ANSWER and self.notes is None:
                return
            if kind is not self._shown:
                self._end_line(num_tokens)
                self._shown = kind
            if kind is Kind.ANSWER:
                self._give_answer(self._footnotes.feed(text))
            else:
                self._write_note(text)
                self._at_line_start = text.endswith("\n")

    def _give_answer(self, text: str) -> None:
        if text:
            self.out.write(strip_controls(text) if self.out.isatty() else text)
            self.out.flush()
            self._at_line_start = text.endswith("\n")

    def _end_line(self, num_tokens: int) -> None:
        """Go to the beginning of a line, behind what stands there."""
        self._close_thinking(num_tokens)
        self._close_tool()
        if not self._at_line_start:
            if self._shown is Kind.ANSWER:
                self._give_answer("\n")
            else:
                self._write_note("\n")
        self._shown, self._at_line_start = None, True

    def _write_note(self, text: str) -> None:
        if self.notes is None:
            return
        if self._is_live:
            text = strip_controls(text)
        self.notes.write(f"{DIM}{text}{RESET}" if self._has_color else text)
        self.notes.flush()

    def _draw_thinking(self, num_tokens: int) -> None:
        """Draw the line anew on a terminal; elsewhere it is written once, when the reasoning is over."""
        now = time.perf_counter()
        if self._thought_since is None:
            self._thought_since = now
        self._thought_for = now - self._thought_since
        if self.notes is None or (self._line_open and now - self._drawn_at < REFRESH_SECONDS):
            return
        self._line_open = True
        self._drawn_at = now
        if self._is_live:
            self.notes.write(ERASE_LINE)
            self._write_note(thinking_line(self._thought_for, num_tokens))

    def _close_thinking(self, num_tokens: int) -> None:
        self._thought_since = None
        if self.notes is None or not self._line_open:
            return
        self._line_open = False
        if self._is_live:
            self.notes.write(ERASE_LINE)
        self._write_note(thinking_line(self._thought_for, num_tokens) + "\n")

    def _draw_tool(self, event: CallProgressed) -> None:
        """Draw the line that a tool writes at the moment, as much as a terminal is wide; elsewhere it is left out."""
        text = self._tool_lines.get(event.number, "") + event.progress.text
        line = text.rstrip("\n").rpartition("\n")[2]
        self._tool_lines[event.number] = line[-MAX_CHARS:] + ("\n" if text.endswith("\n") else "")
        now = time.perf_counter()
        if self.notes is None or not self._is_live or (self._tool_line_open and now - self._drawn_at < REFRESH_SECONDS):
            return
        self._close_tool()
        self._tool_line_open, self._drawn_at = True, now
        width = shutil.get_terminal_size().columns - 1  # in the last column a terminal may begin a new line
        self._write_note(f"   {strip_controls(line.expandtabs())}"[:width])

    def _close_tool(self) -> None:
        if self._tool_line_open and self.notes is not None:
            self.notes.write(ERASE_LINE)
            self._tool_line_open = False


def thinking_line(seconds: float, num_tokens: int) -> str:
    """``thinking, 1.2 s, 84 tokens``."""
    return f"thinking, {seconds:.1f} s, {num_tokens} token{'' if num_tokens == 1 else 's'}"


def describe_call(call: Message) -> str:
    """A call for people: the tool, and what it is given."""
    return f"-> {call.recipient}\n{shorten(call.text)}"


def describe_result(result: ToolResult) -> str:
    """A result for people: how it begins, and the files that it made."""
    failed = f" ({result.failure.value})" if result.failure is not None else ""
    files = [f"   file {describe_file(file)}" for file in result.files]
    return "\n".join([f"<-{failed}", shorten(result.text), *files])


def describe_file(file: ToolFile) -> str:
    """``plot.png, image/png, 12,345 bytes, /mnt/data/plot.png``."""
    parts = [file.name, file.mime_type, f"{file.size:,} bytes", *([file.path] if file.path else [])]
    return ", ".join(parts)


def shorten(text: str) -> str:
    """The first lines of a text, moved in, with how much is left out."""
    lines = text.rstrip().splitlines()
    kept: list[str] = []
    room = MAX_CHARS
    for line in lines[:MAX_LINES]:
        kept.append(line[: max(room, 0)])
        room -= len(line)
        if room <= 0:
            break
    num_left = len(text.rstrip()) - sum(map(len, kept)) - max(len(kept) - 1, 0)
    if num_left > 0:
        kept.append(f"[... {num_left:,} more characters]")
    return "\n".join(f"   {line}" for line in kept)
