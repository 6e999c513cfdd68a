"""`ossia generate`: one prompt, one completion; for scripts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli import options
from ossia.cli.options import examples
from ossia.cli.terminal import strip_controls
from ossia.core.errors import InvalidInputError

if TYPE_CHECKING:
    from ossia.cli.turn import SamplingChoice, Turn
    from ossia.model.loading import LoadedModel

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
) -> None:
    """Answer one prompt. The answer streams to stdout; with --json everything comes at the end, in one object."""
    text = sys.stdin.buffer.read().decode("utf-8", errors="replace") if prompt is None else prompt
    if not text.strip():
        raise InvalidInputError("the prompt is empty; give --prompt TEXT or write it to stdin", param="prompt")

    from ossia.cli.chat.display import TurnDisplay
    from ossia.cli.turn import SamplingChoice, Turn
    from ossia.harmony.message import Conversation, Effort, Message, Role
    from ossia.model.loading import load

    choice = SamplingChoice(
        temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed, max_tokens=max_tokens
    )
    level = Effort.parse(effort)
    start = time.perf_counter()
    loaded = load(model, device=device)
    load_seconds = time.perf_counter() - start
    if raw:
        record = continue_raw(loaded, text, choice=choice, write=discard if as_json else write_out)
    else:
        first = loaded.opening(effort=level, date=date.today().isoformat(), instructions=instructions)
        conversation = Conversation(messages=(*first, Message(role=Role.USER, content=text.strip())))
        turn = Turn(loaded, conversation, choice=choice)
        if as_json:
            turn.run()
        else:
            notes = sys.stderr if show_reasoning else None
            TurnDisplay(out=sys.stdout, notes=notes, shows_reasoning=show_reasoning).show(turn, status=turn)
        record = describe(turn, with_reasoning=show_reasoning)
    if as_json:
        record["timing"]["load_seconds"] = round(load_seconds, 4)
        typer.echo(json.dumps(record))
    elif raw:
        typer.echo()


def describe(turn: Turn, *, with_reasoning: bool) -> Record:
    """What came of a turn, as JSON types."""
    from ossia.cli.turn import Kind

    reasoning = {"reasoning": turn.text_of(Kind.REASONING)} if with_reasoning else {}
    calls = [
        {"recipient": message.recipient, "arguments": message.text} for message in turn.messages if message.is_call
    ]
    return {
        "text": turn.answer,
        **reasoning,
        **({"calls": calls} if calls else {}),
        "tokens": {
            "prompt": turn.num_prompt_tokens,
            "completion": turn.num_tokens,
            "reasoning": turn.num_reasoning_tokens,
        },
        "finish_reason": turn.finish_reason,
        "timing": timing(first=turn.seconds_to_first, total=turn.seconds, num_tokens=turn.num_tokens),
    }


def continue_raw(loaded: LoadedModel, prompt: str, *, choice: SamplingChoice, write: Callable[[str], None]) -> Record:
    """Continue a text without any format, writing it as it comes; a stop token ends it and is not part of it.

    Raises:
        ContextLengthError: the prompt does not fit the model's context.
    """
    from ossia.cli.turn import check_length, sample
    from ossia.harmony.tokenizer import Detokenizer

    prompt_ids = loaded.tokenizer.encode(prompt)
    check_length(prompt_ids, limit=loaded.context_length)
    stops = loaded.stop_ids
    detokenizer = Detokenizer(loaded.tokenizer)
    text: list[str] = []
    num_tokens = 0
    first = seconds = 0.0
    finish_reason = "length"
    start = time.perf_counter()
    for token in sample(loaded, prompt_ids, choice=choice):
        num_tokens += 1
        seconds = time.perf_counter() - start
        first = first or seconds
        if token in stops:
            finish_reason = "stop"
            break
        text.append(detokenizer.push(token))
        write(text[-1])
    text.append(detokenizer.finish())
    write(text[-1])
    return {
        "text": "".join(text),
        "tokens": {"prompt": len(prompt_ids), "completion": num_tokens},
        "finish_reason": finish_reason,
        "timing": timing(first=first, total=seconds, num_tokens=num_tokens),
    }


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
