"""Asking at a terminal, again and again, until the user leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ossia.agent.events import StopReason
from ossia.cli.chat.commands import Chat, Leave, run_command
from ossia.cli.turn import Run
from ossia.core.errors import ContextLengthError, OssiaError

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


def answer(chat: Chat, text: str) -> Run | None:
    """Answer a question on the display; None if the user stopped it before it began.

    Raises:
        OssiaError: the question cannot be asked, or the model cannot be loaded.
    """
    try:
        run = chat.ask(text)
    except KeyboardInterrupt:
        chat.display.note("(stopped)")
        return None
    if remark := remark_on(run):
        chat.display.note(f"({remark})")
    return run


def remark_on(run: Run) -> str:
    """What the user should know of a run that did not end in an answer."""
    if run.end is None:
        return "stopped"
    match run.end.reason:
        case StopReason.ANSWERED:
            return "" if run.answer else "the model ended its turn without an answer"
        case StopReason.MAX_TOKENS:
            return "cut off: the token limit or the end of the context is reached"
        case StopReason.MAX_TURNS | StopReason.MAX_CALLS:
            return f"the model called tools for {run.end.num_turns} turns and did not answer"
        case _:
            return f"no answer: {run.end.error or run.end.reason.value}"
