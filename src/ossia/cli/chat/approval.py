"""Asking the user whether a tool may be called."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

QUESTION = "   allow {name}? [y]es, [n]o, [a]lways: "


class Approver:
    """Asks at the terminal before each call. `always` holds for a tool until the program ends.

    The call itself is on the screen already. While the user thinks, nothing else of the conversation runs but the
    engine; calls of one turn are asked about one after the other. Ctrl-C stops the answer.

    Args:
        read_line: shows a prompt and gives what was typed.
    """

    def __init__(self, *, read_line: Callable[[str], str] = input) -> None:
        self._read_line = read_line
        self._always: set[str] = set()

    async def __call__(self, name: str, arguments: dict[str, object]) -> bool:
        if name in self._always:
            return True
        try:
            answer = self._ask(QUESTION.format(name=name))
        except EOFError:
            return False
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)  # for whoever runs the answer, as if it had come a moment later
            return False
        if answer.startswith("a"):
            self._always.add(name)
        return answer[:1] in ("y", "a")

    def _ask(self, question: str) -> str:
        """Read a line with Ctrl-C as the interpreter has it: asyncio's own way does not end a wait for a key."""
        if threading.current_thread() is not threading.main_thread():
            return self._read_line(question).strip().lower()
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return self._read_line(question).strip().lower()
        finally:
            signal.signal(signal.SIGINT, before)
