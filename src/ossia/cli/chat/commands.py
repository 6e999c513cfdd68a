"""The slash commands of `ossia chat`: each takes what follows its name and says what it did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ossia.agent.events import AgentEvent
from ossia.cli.chat.display import RunDisplay
from ossia.cli.chat.session import ChatSession
from ossia.cli.turn import Delta, Run
from ossia.core.errors import InvalidInputError
from ossia.harmony.message import Effort


class Leave(Exception):  # noqa: N818 - the user's wish, not an error
    """The user wants to go."""


class Chat(NamedTuple):
    """What commands act on."""

    session: ChatSession
    display: RunDisplay

    def ask(self, text: str) -> Run:
        """Answer a question on the display; raises as `ChatSession.ask`."""
        run: Run | None = None

        def show(now: Run, event: AgentEvent, deltas: list[Delta]) -> None:
            nonlocal run
            run = now
            self.display.show(now, event, deltas)

        try:
            return self.session.ask(text, show=show)
        finally:
            if run is not None:
                self.display.finish(run)


class Command(NamedTuple):
    """A command's usage, its line in /help, and what it does: (chat, argument) -> remark."""

    usage: str
    summary: str
    run: Callable[[Chat, str], str]


def set_effort(chat: Chat, argument: str) -> str:
    if argument:
        chat.session.effort = Effort.parse(argument)
    return f"reasoning effort: {chat.session.effort.value}"


def toggle_reasoning(chat: Chat, argument: str) -> str:
    chat.display.shows_reasoning = not chat.display.shows_reasoning
    return "reasoning is shown" if chat.display.shows_reasoning else "reasoning is hidden"


def start_anew(chat: Chat, argument: str) -> str:
    chat.session.clear()
    return "a new conversation"


def save(chat: Chat, argument: str) -> str:
    if not chat.session.num_questions:
        raise InvalidInputError("there is nothing to save yet; ask something first")
    path = Path(argument).expanduser() if argument else None
    return f"saved to {chat.session.save(path, with_reasoning=chat.display.shows_reasoning)}"


def list_tools(chat: Chat, argument: str) -> str:
    names = chat.session.tools.recipients()
    return f"tools: {', '.join(names)}" if names else "there are no tools; start with --tools python,browser"


def show_help(chat: Chat, argument: str) -> str:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"  {command.usage:{width}}  {command.summary}" for command in COMMANDS.values()]
    return "\n".join([*lines, "Ctrl-C stops an answer; at the prompt, twice Ctrl-C or Ctrl-D leaves."])


def leave(chat: Chat, argument: str) -> str:
    raise Leave


COMMANDS = {
    "effort": Command("/effort [low|medium|high]", "how long the model reasons", set_effort),
    "reasoning": Command("/reasoning", "show or hide the model's reasoning", toggle_reasoning),
    "new": Command("/new", "forget this conversation and start anew", start_anew),
    "save": Command("/save [FILE]", "keep this conversation as JSON (a message a line: FILE.jsonl)", save),
    "tools": Command("/tools", "what the model may call", list_tools),
    "help": Command("/help", "this list", show_help),
    "quit": Command("/quit", "leave", leave),
}


def run_command(chat: Chat, line: str) -> str:
    """Run a line that begins with a slash, and return what to tell the user.

    Raises:
        InvalidInputError: there is no such command, or its argument is wrong.
        Leave: it was /quit.
    """
    name, _, argument = line[1:].partition(" ")
    command = COMMANDS.get({"exit": "quit", "?": "help"}.get(name, name))
    if command is None:
        known = ", ".join(f"/{known}" for known in COMMANDS)
        raise InvalidInputError(f"there is no command /{name}; there are {known}", param="command")
    return command.run(chat, argument.strip())
