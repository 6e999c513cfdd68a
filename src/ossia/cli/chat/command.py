"""`ossia chat`: talk to a model, at a terminal or through a pipe, with tools if you like."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.cli import options
from ossia.cli.groups import grouped
from ossia.cli.options import examples
from ossia.cli.tool_options import ToolOptions
from ossia.core.errors import InvalidInputError

if TYPE_CHECKING:
    from ossia.cli.chat.commands import Chat
    from ossia.cli.chat.session import ChatSession


EXAMPLES = examples(
    "ossia chat",
    "ossia chat --effort high --show-reasoning",
    "echo \"How many rs are in the word 'strawberry'?\" | ossia chat",
    "ossia chat openai/gpt-oss-20b --instructions 'Answer in one sentence.'",
    "ossia chat openai/gpt-oss-20b --tools python,browser",
    "ossia chat openai/gpt-oss-20b --mcp 'files=npx -y @modelcontextprotocol/server-filesystem .'",
    "ossia chat openai/gpt-oss-20b --tools browser --search brave --search-key KEY",
)


@grouped
def command(
    model: options.Model = "nano",
    effort: options.EffortName = "medium",
    instructions: options.Instructions = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    max_tokens: options.MaxTokens = None,
    show_reasoning: options.ShowReasoning = False,
    tools: options.Tools = None,
    mcp: options.Mcp = None,
    mcp_sandbox: options.McpConfined = False,
    allow_all: Annotated[
        bool,
        typer.Option("--allow-all/--approve", help="Run tools without asking, or ask before each call at a terminal."),
    ] = False,
    *,
    tool_options: ToolOptions,
    device: options.Device = "auto",
    kv_dtype: options.KvDtype = None,
    num_drafts: options.NumDrafts = None,
) -> None:
    """Talk to a model. Without MODEL it is nano, the small one that ships with Ossia.

    At a terminal: ask, and type /help for the commands. Through a pipe all of stdin is one question, and stdout gets
    the answer alone.
    """
    from ossia.agent.turns import Sampling
    from ossia.cli.backend import open_backend
    from ossia.cli.tools import make_tools, read_servers
    from ossia.harmony.message import Effort

    level = Effort.parse(effort)
    sampling = options.check_sampling(Sampling(temperature=temperature, top_p=top_p, seed=seed, max_tokens=max_tokens))
    is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if (tools or mcp) and not is_interactive and not allow_all:
        raise InvalidInputError("nobody can be asked about calls here; give --allow-all, or no --tools and --mcp")
    # Importing torch takes most of the time to the first answer, so it happens while the question is being written.
    with ThreadPoolExecutor(max_workers=1) as background:
        loading = background.submit(
            open_backend, model, device=device, max_num_seqs=2, kv_dtype=kv_dtype, num_drafts=num_drafts
        )
        text = None if is_interactive else read_question()

        from ossia.cli.chat.approval import Approver
        from ossia.cli.chat.session import ChatSession

        session = ChatSession(
            loading.result,
            effort=level,
            date=date.today().isoformat(),
            instructions=instructions,
            sampling=sampling,
            tools=make_tools(tools, tool_options),
            approve=None if allow_all else Approver(),
        )
        with session:
            session.connect(read_servers(mcp or [], is_confined=mcp_sandbox))
            if model != "nano" and text is None:  # a name that leads nowhere, or minutes of reading: better told first
                typer.echo(f"loading {model} ...")
                loading.result()
            talk(session, model=model, text=text, shows_reasoning=show_reasoning)


def talk(session: ChatSession, *, model: str, text: str | None, shows_reasoning: bool) -> None:
    """Answer the text of a pipe, or without one whatever is typed at the terminal."""
    from ossia.cli.chat.commands import Chat
    from ossia.cli.chat.display import RunDisplay
    from ossia.cli.chat.loop import run_loop

    notes = sys.stdout if text is None else sys.stderr if sys.stderr.isatty() or shows_reasoning else None
    display = RunDisplay(out=sys.stdout, notes=notes, shows_reasoning=shows_reasoning)
    chat = Chat(session, display)
    if text is not None:
        answer_pipe(chat, text)
        return
    with_tools = f", tools {', '.join(tool.name for tool in session.tools)}" if len(session.tools) else ""
    display.note(f"{model}, effort {session.effort.value}{with_tools}; /help lists the commands")
    run_loop(chat)


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

    run = chat.ask(text)
    if run.is_stopped:
        raise KeyboardInterrupt
    if remark := remark_on(run):
        typer.echo(f"ossia: {remark}", err=True)
    if not run.answer:
        raise typer.Exit(1)
