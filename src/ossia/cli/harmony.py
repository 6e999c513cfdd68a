"""`ossia harmony`: tokenizer, renderer and parser as filters from JSON lines to JSON lines.

Each line is answered before the next is read, so a test suite in any language can keep one process as its server.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import typer

from ossia.cli.options import examples
from ossia.core.errors import InvalidInputError

if TYPE_CHECKING:
    from ossia.harmony.tokenizer import Tokenizer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Encode, decode, render, parse: JSON lines in and out.",
)

TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer", metavar="FOLDER", help="A model folder whose tokenizer to use instead of o200k_harmony."
    ),
]
Record = dict[str, Any]
Handler = Callable[[Record], Record]


@app.command(epilog=examples("""echo '{"text": "Hello"}' | ossia harmony encode"""))
def encode(tokenizer: TokenizerOption = None) -> None:
    """{text} -> {ids}. Names of control tokens in the text stay plain text.

    Fields that are not named here pass through. A line that cannot be taken gives {error}, and the next goes on.
    """
    codec = load(tokenizer)
    filter_lines(lambda record: {"ids": codec.encode(text_of(record, "text"))}, consumed=("text",))


@app.command(epilog=examples("""echo '{"ids": [13225]}' | ossia harmony decode"""))
def decode(tokenizer: TokenizerOption = None) -> None:
    """{ids} -> {text}. Bytes that are not UTF-8 become U+FFFD.

    Fields that are not named here pass through. A line that cannot be taken gives {error}, and the next goes on.
    """
    codec = load(tokenizer)
    filter_lines(lambda record: {"text": codec.decode(ids_of(record))}, consumed=("ids",))


@app.command(
    epilog=examples(
        """echo '{"conversation": {"messages": [{"role": "user", "content": "Hi"}]}}' | ossia harmony render"""
    )
)
def render(tokenizer: TokenizerOption = None) -> None:
    """{conversation, next_role} -> {ids, text}.

    next_role is "assistant" unless given; null ends the prompt after the last message. Fields that are not named here
    pass through. A line that cannot be taken gives {error}, and the next goes on.
    """
    from ossia.harmony.message import conversation_from_dict
    from ossia.harmony.render import render as render_ids

    codec = load(tokenizer)

    def handle(record: Record) -> Record:
        conversation = conversation_from_dict(required(record, "conversation", dict, "an object with messages"))
        ids = render_ids(conversation, tokenizer=codec, next_role=role_of(record, "next_role"))
        return {"ids": ids, "text": codec.decode(ids)}

    filter_lines(handle, consumed=("conversation", "next_role"))


@app.command(epilog=examples("""echo '{"ids": [200005, 17196, 200008, 12194, 200002]}' | ossia harmony parse"""))
def parse(tokenizer: TokenizerOption = None) -> None:
    """{ids, role, tools} -> {messages, repairs, finish}.

    ids are what a model sampled, tools the names of the declared ones. role is whose header the prompt ended with:
    "assistant" unless given, null if the ids begin with <|start|> themselves. Each message has role, name, channel,
    recipient, content_type and content. Fields that are not named here pass through. A line that cannot be taken gives
    {error}, and the next goes on.
    """
    from ossia.harmony.parse import parse as parse_ids

    codec = load(tokenizer)

    def handle(record: Record) -> Record:
        result = parse_ids(ids_of(record), tokenizer=codec, role=speaker_of(record), tools=tools_of(record))
        messages = [
            {
                "role": message.role,
                "name": message.name,
                "channel": message.channel,
                "recipient": message.recipient,
                "content_type": message.content_type,
                "content": message.text,
            }
            for message in result.messages
        ]
        repairs = [repair.kind for repair in result.repairs]
        return {"messages": messages, "repairs": repairs, "finish": result.finish}

    filter_lines(handle, consumed=("ids", "role", "tools"))


def load(folder: Path | None) -> Tokenizer:
    """The tokenizer of a model folder, or that of the published models."""
    from ossia.harmony.hf_tokenizer import load_tokenizer
    from ossia.harmony.tokenizer import Tokenizer

    return Tokenizer.o200k_harmony() if folder is None else load_tokenizer(folder)


def filter_lines(handle: Handler, *, consumed: tuple[str, ...]) -> None:
    """Answer each JSON line of stdin with one on stdout; blank lines are skipped, bad ones counted on stderr."""
    source: BinaryIO = sys.stdin.buffer
    num_bad = 0
    for line in source:
        if line.isspace():
            continue
        answer = answer_line(line, handle, consumed=consumed)
        num_bad += "error" in answer
        # ASCII: other characters are escaped, so that half surrogates survive and any reader's line splitting works.
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    if num_bad:
        typer.echo(f"ossia: {num_bad} line{'s' if num_bad > 1 else ''} could not be taken; see their error", err=True)


def answer_line(line: bytes, handle: Handler, *, consumed: tuple[str, ...]) -> Record:
    """The record to answer with: what `handle` gives, or {error}, and either way the fields that passed through."""
    rest: Record = {}
    try:
        record = read_record(line)
        rest = {key: value for key, value in record.items() if key not in consumed}
        return {**rest, **handle(record)}
    except InvalidInputError as error:
        return {**rest, "error": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one line must not cost the caller the others
        return {**rest, "error": f"{type(error).__name__}: {error}"}


def read_record(line: bytes) -> Record:
    """One JSON object from one line.

    Raises:
        InvalidInputError: the line is not UTF-8, not JSON, or another kind of value.
    """
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=reject_constant)
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"the line is not UTF-8 ({error.reason} at byte {error.start})") from None
    except RecursionError:
        raise InvalidInputError("the line is nested too deeply") from None
    except ValueError as error:
        raise InvalidInputError(f"the line is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise InvalidInputError(f"the line holds {kind_of(record)}, expected a JSON object")
    return record


def reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def required(record: Mapping[str, Any], field: str, kind: type, wanted: str) -> Any:
    """A field of the given type.

    Raises:
        InvalidInputError: it is absent or of another type.
    """
    if field not in record:
        raise InvalidInputError(f"the field '{field}' is missing; expected {wanted}", param=field)
    value = record[field]
    if not isinstance(value, kind):
        raise InvalidInputError(f"the field '{field}' is {kind_of(value)}, expected {wanted}", param=field)
    return value


def text_of(record: Record, field: str) -> str:
    return required(record, field, str, "a string")


def ids_of(record: Record) -> list[int]:
    ids = required(record, "ids", list, "a list of token ids")
    for position, value in enumerate(ids):
        if type(value) is not int:
            raise InvalidInputError(f"ids[{position}] is {kind_of(value)}, expected an integer", param="ids")
    return ids


def role_of(record: Record, field: str) -> str | None:
    role = record.get(field, "assistant")
    if role is not None and not isinstance(role, str):
        raise InvalidInputError(f"the field '{field}' is {kind_of(role)}, expected a role's name or null", param=field)
    return role


def speaker_of(record: Record) -> Literal["assistant"] | None:
    role = record.get("role", "assistant")
    if role not in ("assistant", None):
        raise InvalidInputError(f"the field 'role' is {role!r}, expected \"assistant\" or null", param="role")
    return role


def tools_of(record: Record) -> tuple[str, ...]:
    tools = record.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, str) for tool in tools):
        raise InvalidInputError("the field 'tools' must be a list of the declared tools' names", param="tools")
    return tuple(tools)


def kind_of(value: object) -> str:
    """What JSON calls a value's type, with an article."""
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
