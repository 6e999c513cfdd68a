"""`ossia chat`: talk to a model, at a terminal or through a pipe."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import TYPE_CHECKING

import typer

from ossia.cli import options
from ossia.cli.options import examples
from ossia.core.errors import InvalidInputError

if TYPE_CHECKING:
    from ossia.cli.chat.commands import Chat
    from ossia.model.loading import LoadedModel


EXAMPLES = examples(
    "ossia chat",
    "ossia chat --effort high --show-reasoning",
    "echo \"How many rs are in the word 'strawberry'?\" | ossia chat",
    "ossia chat openai/gpt-oss-20b --instructions 'Answer in one sentence.'",
)


def command(
    model: options.Model = "nano",
    effort: options.EffortName = "medium",
    instructions: options.Instructions = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    max_tokens: options.MaxTokens = None,
    show_reasoning: options.ShowReasoning = False,
    device: options.Device = "auto",
) -> None:
    """Talk to a model. Without MODEL it is nano, the small one that ships with Ossia.

    At a terminal: ask, and type /help for the commands. Through a pipe all of stdin is one question, and stdout gets
    the answer alone.
    """
    from ossia.cli.turn import SamplingChoice
    from ossia.harmony.message import Effort

    level = Effort.parse(effort)
    choice = SamplingChoice(temperature=temperature, top_p=top_p, seed=seed, max_tokens=max_tokens)
    # Importing torch takes most of the time to the first answer, so it happens while the question is being written.
    with ThreadPoolExecutor(max_workers=1) as background:
        loading = background.submit(load_in_background, model, device)
        is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
        text = "" if is_interactive else read_question()

        from ossia.cli.chat.commands import Chat
        from ossia.cli.chat.display import TurnDisplay
        from ossia.cli.chat.loop import run_loop
        from ossia.cli.chat.session import ChatSession

        session = ChatSession(
            loading.result,
            effort=level,
            date=date.today().isoformat(),
            instructions=instructions,
            choice=choice,
        )
        notes = sys.stdout if is_interactive else sys.stderr if sys.stderr.isatty() or show_reasoning else None
        display = TurnDisplay(out=sys.stdout, notes=notes, shows_reasoning=show_reasoning)
        chat = Chat(session, display)
        if not is_interactive:
            answer_pipe(chat, text)
            return
        if model != "nano":  # a name that leads nowhere, or minutes of reading: better told before the first question
            display.note(f"loading {model} ...")
            loading.result()
        display.note(f"{model}, effort {session.effort.value}; /help lists the commands")
        run_loop(chat)


def load_in_background(name: str, device: str) -> LoadedModel:
    from ossia.model.loading import load

    return load(name, device=device)


def read_question() -> str:
    """All of stdin as one question.

    Raises:
        InvalidInputError: there is nothing in it, or it is not UTF-8.
    """
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"the question is not UTF-8 ({error.reason} at byte {error.start})") from None
    if not text.strip():
        raise InvalidInputError("the question is empty; try: echo 'What is 17 + 25?' | ossia chat", param="question")
    return text


def answer_pipe(chat: Chat, text: str) -> None:
    """Answer the one question of a pipe; Ctrl-C ends the program, and no answer is exit code 1."""
    from ossia.cli.chat.loop import remark_on
    from ossia.harmony.parse import FinishReason

    turn = chat.session.start_turn(text)
    chat.display.show(turn, status=turn)
    if not turn.answer or turn.finish_reason != FinishReason.STOP:
        typer.echo(f"ossia: {remark_on(turn)}", err=True)
    if not turn.answer:
        raise typer.Exit(1)
