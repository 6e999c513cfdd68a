"""`ossia generate`: one prompt, one completion; for scripts."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli import options
from ossia.cli.options import examples
from ossia.cli.terminal import strip_controls
from ossia.core.errors import ContextLengthError, InvalidInputError

if TYPE_CHECKING:
    from ossia.agent.turns import Sampling
    from ossia.cli.backend import Backend
    from ossia.cli.chat.display import RunDisplay
    from ossia.cli.turn import Run
    from ossia.harmony.message import Conversation, Effort

EXAMPLES = examples(
    "ossia generate -p 'What is 17 + 25?'",
    "ossia generate -p 'What is 17 + 25?' --json --effort high",
    "ossia generate --raw -p 'Once upon a time' --max-tokens 50 --temperature 0.8 --seed 1",
    "ossia generate openai/gpt-oss-20b < question.txt",
)


Record = dict[str, Any]


def command(
    model: options.Model = "nano",
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt. Default: all of stdin.", show_default=False),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as plain text, without harmony's messages.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: text, tokens, finish_reason, timing.")
    ] = False,
    effort: options.EffortName = "medium",
    instructions: options.Instructions = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    seed: options.Seed = None,
    max_tokens: options.MaxTokens = None,
    show_reasoning: options.ShowReasoning = False,
    device: options.Device = "auto",
    kv_dtype: options.KvDtype = None,
    num_drafts: options.NumDrafts = None,
) -> None:
    """Answer one prompt. The answer streams to stdout; with --json everything comes at the end, in one object."""
    text = sys.stdin.buffer.read().decode("utf-8", errors="replace") if prompt is None else prompt
    if not text.strip():
        raise InvalidInputError("the prompt is empty; give --prompt TEXT or write it to stdin", param="prompt")

    from ossia.agent.turns import Sampling
    from ossia.cli.backend import open_backend, run_with
    from ossia.harmony.message import Effort

    sampling = options.check_sampling(
        Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed, max_tokens=max_tokens)
    )
    level = Effort.parse(effort)
    start = time.perf_counter()
    backend = open_backend(model, device=device, max_num_seqs=1, kv_dtype=kv_dtype, num_drafts=num_drafts)
    load_seconds = time.perf_counter() - start
    if raw:
        write = discard if as_json else write_out
        record = run_with(backend, continue_raw(backend, text, sampling=sampling, write=write))
    else:
        show = None if as_json else make_display(show_reasoning)
        conversation = open_question(backend, text, effort=level, instructions=instructions)
        run = run_with(backend, answer(backend, conversation, sampling=sampling, display=show))
        record = describe(run, with_reasoning=show_reasoning)
    if as_json:
        record["timing"]["load_seconds"] = round(load_seconds, 4)
        typer.echo(json.dumps(record))
    elif raw:
        typer.echo()


def open_question(backend: Backend, text: str, *, effort: Effort, instructions: str | None) -> Conversation:
    """A conversation of one question."""
    from ossia.harmony.message import Conversation, Message, Role

    first = backend.loaded.opening(effort=effort, date=date.today().isoformat(), instructions=instructions)
    return Conversation(messages=(*first, Message(role=Role.USER, content=text.strip())))


def make_display(show_reasoning: bool) -> RunDisplay:
    """Answers on stdout; the reasoning, if it is wanted, on stderr."""
    from ossia.cli.chat.display import RunDisplay

    return RunDisplay(out=sys.stdout, notes=sys.stderr if show_reasoning else None, shows_reasoning=show_reasoning)


async def answer(
    backend: Backend, conversation: Conversation, *, sampling: Sampling, display: RunDisplay | None = None
) -> Run:
    """Take one turn, and show it if there is a display.

    Raises:
        ContextLengthError: the conversation does not fit the model's context.
    """
    from ossia.agent.loop import AgentLoop, Limits
    from ossia.cli.turn import Run
    from ossia.tools.registry import ToolSet

    run = Run()
    loop = AgentLoop(backend.turns, tools=ToolSet(), sampling=sampling, limits=Limits(max_turns=1))
    async with contextlib.aclosing(loop.run(conversation)) as events:
        try:
            async for event in events:
                deltas = run.take(event)
                if display is not None:
                    display.show(run, event, deltas)
        finally:
            if display is not None:
                display.finish(run)
    return run


def describe(run: Run, *, with_reasoning: bool) -> Record:
    """What came of a turn, as JSON types."""
    from ossia.cli.turn import Kind

    reasoning = {"reasoning": run.text_of(Kind.REASONING)} if with_reasoning else {}
    calls = [{"recipient": message.recipient, "arguments": message.text} for message in run.messages if message.is_call]
    return {
        "text": run.answer,
        **reasoning,
        **({"calls": calls} if calls else {}),
        "tokens": {
            "prompt": run.num_prompt_tokens,
            "completion": run.num_tokens,
            "reasoning": run.num_reasoning_tokens,
        },
        "finish_reason": run.finish_reason,
        "timing": timing(first=run.seconds_to_first, total=run.seconds, num_tokens=run.num_tokens),
    }


async def continue_raw(backend: Backend, prompt: str, *, sampling: Sampling, write: Callable[[str], None]) -> Record:
    """Continue a text without any format, writing it as it comes; a stop token ends it and is not part of it.

    Raises:
        ContextLengthError: the prompt does not fit the model's context.
    """
    ids = tuple(backend.loaded.tokenizer.encode(prompt))
    check_length(ids, limit=backend.loaded.context_length)
    request = backend.turns.request(ids, sampling=sampling, owner="", request_id="raw")
    text: list[str] = []
    num_tokens = 0
    first = seconds = 0.0
    finish_reason = None
    start = time.perf_counter()
    stream = await backend.engine.submit(request)
    try:
        async for event in stream:
            num_tokens += len(event.token_ids)
            seconds = time.perf_counter() - start
            first = first or seconds
            text.append(event.text)
            write(event.text)
            finish_reason = event.finish_reason
    finally:
        stream.cancel()
    return {
        "text": "".join(text),
        "tokens": {"prompt": len(ids), "completion": num_tokens},
        "finish_reason": finish_reason,
        "timing": timing(first=first, total=seconds, num_tokens=num_tokens),
    }


def check_length(prompt_ids: Sequence[int], *, limit: int) -> None:
    """Raises:
    ContextLengthError: the prompt leaves no place for a token of an answer.
    """
    if len(prompt_ids) >= limit:
        raise ContextLengthError(num_tokens=len(prompt_ids), limit=limit - 1, param="prompt")


def timing(*, first: float, total: float, num_tokens: int) -> Record:
    """Seconds to the first token and to the last, and the rate between the two, which leaves the prompt out."""
    rate = (num_tokens - 1) / (total - first) if num_tokens > 1 and total > first else None
    return {
        "first_token_seconds": round(first, 4),
        "total_seconds": round(total, 4),
        "tokens_per_second": None if rate is None else round(rate, 1),
    }


def write_out(text: str) -> None:
    sys.stdout.write(strip_controls(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def discard(text: str) -> None:
    """What --json does with the pieces: the object at the end has the text."""
