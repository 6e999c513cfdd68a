"""Asking at a terminal, again and again, until the user leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ossia.cli.chat.commands import Chat, Leave, run_command
from ossia.cli.turn import Turn
from ossia.core.errors import ContextLengthError, OssiaError
from ossia.harmony.parse import FinishReason

PROMPT = "> "


def run_loop(chat: Chat, *, read_line: Callable[[str], str] = input) -> None:
    """Read a line, answer it, until /quit, Ctrl-D or a second Ctrl-C. Errors are told, and the conversation goes on."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - importing it gives input() line editing and a history
    was_interrupted = False
    while True:
        try:
            line = read_line(PROMPT).strip()
            was_interrupted = False
            if line:
                answer_line(chat, line)
        except KeyboardInterrupt:  # at the prompt: during an answer it is caught there
            chat.display.note("")
            if was_interrupted:
                return
            was_interrupted = True
            chat.display.note("(Ctrl-C again or Ctrl-D leaves)")
        except EOFError:
            chat.display.note("")
            return
        except Leave:
            return


def answer_line(chat: Chat, line: str) -> None:
    """Run a command or answer a question."""
    try:
        if line.startswith("/"):
            chat.display.note(run_command(chat, line))
        else:
            answer(chat, line)
    except ContextLengthError as error:
        chat.display.note(
            f"this conversation has {error.num_tokens} tokens and the model's context holds {error.limit}; "
            "/new starts a new one"
        )
    except OssiaError as error:
        chat.display.note(str(error))


def answer(chat: Chat, text: str) -> Turn | None:
    """Answer a question on the display and keep it; None if the user stopped it before it began.

    Raises:
        OssiaError: the question cannot be asked, or the model cannot be loaded.
    """
    turn: Turn | None = None
    try:
        turn = chat.session.start_turn(text)
        chat.display.show(turn, status=turn)
    except KeyboardInterrupt:
        chat.display.note("(stopped)")
        if turn is not None:
            chat.session.keep(text, turn)
        return turn
    chat.session.keep(text, turn)
    if remark := remark_on(turn):
        chat.display.note(f"({remark})")
    return turn


def remark_on(turn: Turn) -> str:
    """What the user should know of a turn that did not end in an answer."""
    if turn.finish_reason == FinishReason.LENGTH:
        return "cut off: the token limit or the end of the context is reached"
    if turn.finish_reason == FinishReason.TOOL_CALL:
        return "the model asked for a tool; chat has none"
    return "" if turn.answer else "the model ended its turn without an answer"
