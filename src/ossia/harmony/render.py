"""A conversation as the token ids that the model reads.

Text and control tokens stay apart: every field of a message is encoded as data, and control tokens come only from the
layout here, from the marker `<|constrain|>` at the start of a content type, and from ids that the model itself sampled.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Sequence
from itertools import chain
from typing import Literal, NamedTuple, TypeAlias

from ossia.core.errors import InvalidInputError
from ossia.harmony.content import FUNCTIONS, DeveloperContent, ResponseFormat, SystemContent, ToolNamespace
from ossia.harmony.json_text import lines
from ossia.harmony.message import Channel, Conversation, Message, Part, Role
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.vocab import ControlToken

DropAnalysis: TypeAlias = bool | Literal["earlier"]

_MAX_CACHED_TEXT = 65_536
_MAX_CACHED_HEADER = 256


class TrainingTokens(NamedTuple):
    """Ids, and for each whether the assistant would have sampled it."""

    ids: list[int]
    mask: list[bool]


class SampledExample(NamedTuple):
    """A stretch of conversation to learn from, as the assistant met it; three lists of one length.

    Attributes:
        ids: what the model reads.
        sampled: what the assistant samples at each place; None where nothing is. It differs from `ids` where history
            holds the `<|end|>` of an answer that was ended by sampling `<|return|>`.
        messages: which message of the conversation each place is counted to.
    """

    ids: list[int]
    sampled: list[int | None]
    messages: list[int]


def render(
    conversation: Conversation,
    *,
    tokenizer: Tokenizer,
    next_role: Role | str | None = Role.ASSISTANT,
    drop_analysis: bool = True,
) -> list[int]:
    """Renders a conversation as a prompt.

    Args:
        conversation: the messages so far.
        tokenizer: any with harmony's control tokens.
        next_role: who speaks next; the prompt ends in the start of that message's header. None: ends where the
            conversation does.
        drop_analysis: leave out the chain of thought of turns that are over (see `_first_of_turn_in_progress`).

    Raises:
        InvalidInputError: an unknown role, or token ids that are not of this tokenizer.
    """
    messages = conversation.messages
    cut = _first_of_turn_in_progress(messages, num_said=len(messages)) if drop_analysis else 0
    has_functions = _has_function_tools(messages)
    ids: list[int] = []
    for i, message in enumerate(messages):
        if i >= cut or message.channel != "analysis":
            _extend(ids, message, tokenizer, has_functions=has_functions)
    if next_role is not None:
        ids += _encode_header(tokenizer, Role.parse(next_role).value, None, None, None)
    return ids


def render_text(
    conversation: Conversation,
    *,
    tokenizer: Tokenizer,
    next_role: Role | str | None = Role.ASSISTANT,
    drop_analysis: bool = True,
) -> str:
    """The prompt as text, control tokens by their names, for people to read. Encoding it again is not safe."""
    return tokenizer.decode(render(conversation, tokenizer=tokenizer, next_role=next_role, drop_analysis=drop_analysis))


def render_for_training(
    conversation: Conversation, *, tokenizer: Tokenizer, drop_analysis: DropAnalysis = "earlier"
) -> TrainingTokens:
    """Renders a conversation to learn from: a last message on `final` ends in `<|return|>`, as the model must.

    The mask marks what the assistant samples: its messages from behind `<|start|>assistant` to their stop tokens, and
    `<|start|>assistant` as well where one message follows another without a pause. Not marked, since nothing like it
    is ever sampled: the `<|end|>` that stands in history for a `<|return|>`, and the messages of a turn whose chain of
    thought has been left out.

    Args:
        conversation: the messages, the assistant's last turn included.
        tokenizer: any with harmony's control tokens.
        drop_analysis: "earlier" keeps the chain of thought of the last turn, which is what is to be learnt; True
            drops it there too once that turn has ended, as openai-harmony does; False keeps all.

    Raises:
        InvalidInputError: token ids that are not of this tokenizer.
    """
    messages = conversation.messages
    has_functions = _has_function_tools(messages)
    cut = 0
    if drop_analysis:
        # "earlier": the last message, which may be a final one, is still to be said.
        num_said = len(messages) - 1 if drop_analysis == "earlier" else len(messages)
        cut = _first_of_turn_in_progress(messages, num_said=num_said)
    without_thought = _without_thought(messages, cut)
    ids: list[int] = []
    mask: list[bool] = []
    is_speaking = False  # the assistant goes on without a pause
    for i, message in enumerate(messages):
        if i < cut and message.channel == "analysis":
            continue
        start = len(ids)
        _extend(ids, message, tokenizer, has_functions=has_functions)
        is_sampled = message.role is Role.ASSISTANT and i not in without_thought
        mask += [is_sampled] * (len(ids) - start)
        if is_sampled and not is_speaking:
            opening = len(_encode_header(tokenizer, Role.ASSISTANT.value, None, None, None))
            mask[start : start + opening] = [False] * opening
        ends_turn = _ends_turn(messages, i)
        if ends_turn and i == len(messages) - 1:
            ids[-1] = tokenizer.return_
        elif ends_turn:
            mask[-1] = False
        is_speaking = is_sampled and not ends_turn and ids[-1] == tokenizer.end
    return TrainingTokens(ids, mask)


def render_examples(
    conversation: Conversation, *, tokenizer: Tokenizer, learned: Container[int] | None = None
) -> list[SampledExample]:
    """Renders all that the assistant says in a conversation as examples, each message in the context of inference.

    What is sampled: the assistant's messages from behind `<|start|>assistant` to their stop tokens;
    `<|start|>assistant` too where it goes on by itself, to another message or another call; and behind a call that
    waits for its result, the `<|start|>` and first token of the tool's name, by which an engine that allows several
    calls is told that no other comes.

    A turn's chain of thought is left out once the turn is over, so a turn that thinks is the last of its example, and
    the next turn begins another, with that thought gone. Turns without thought share one. Each message is sampled in
    one example at most; together the examples hold all.

    Args:
        conversation: messages; what follows the assistant's last one is left out.
        tokenizer: any with harmony's control tokens.
        learned: places of the messages to learn; the others are history. None: all of the assistant's.

    Raises:
        InvalidInputError: token ids that are not of this tokenizer.
    """
    messages = conversation.messages
    chosen = [
        i for i, message in enumerate(messages) if message.role is Role.ASSISTANT and (learned is None or i in learned)
    ]
    examples: list[SampledExample] = []
    start = 0
    for end in _ends_of_examples(messages):
        if here := frozenset(i for i in chosen if start <= i < end):
            examples.append(_render_example(messages[:end], chosen=here, tokenizer=tokenizer))
        start = end
    return examples


def _ends_of_examples(messages: Sequence[Message]) -> list[int]:
    """Where examples end (exclusive): behind each turn that later turns see otherwise, and behind the last message."""
    last = max((i for i, message in enumerate(messages) if message.role is Role.ASSISTANT), default=-1)
    has_functions = _has_function_tools(messages[: last + 1])
    ends: list[int] = []
    start = 0
    for i in range(last):
        if _ends_turn(messages, i):
            is_seen_otherwise = any(message.channel == "analysis" for message in messages[start : i + 1])
            # A line of the system message says where functions are called; before they are declared it is not there.
            if is_seen_otherwise or _has_function_tools(messages[: i + 1]) != has_functions:
                ends.append(i + 1)
            start = i + 1
    return [*ends, last + 1]


def _render_example(messages: Sequence[Message], *, chosen: Container[int], tokenizer: Tokenizer) -> SampledExample:
    cut = _first_of_turn_in_progress(messages, num_said=len(messages) - 1)
    has_functions = _has_function_tools(messages)
    example = SampledExample([], [], [])
    is_speaking = False  # the assistant goes on without a pause
    for i, message in enumerate(messages):
        if i < cut and message.channel == "analysis":
            continue
        start = len(example.ids)
        _extend(example.ids, message, tokenizer, has_functions=has_functions)
        is_answer = message.role is Role.ASSISTANT and message.channel == "final" and not message.is_call
        if is_answer and i == len(messages) - 1:
            example.ids[-1] = tokenizer.return_
        said: list[int | None] = [None] * (len(example.ids) - start)
        source = i
        if i in chosen:
            opening = 0 if is_speaking else len(_encode_header(tokenizer, Role.ASSISTANT.value, None, None, None))
            said[opening:] = example.ids[start + opening :]
            if is_answer:
                said[-1] = tokenizer.return_
        elif message.role is Role.TOOL and i - 1 in chosen and messages[i - 1].is_call:
            said[:2] = example.ids[start : start + 2]
            source = i - 1
        example.sampled.extend(said)
        example.messages.extend([source] * len(said))
        is_speaking = message.role is Role.ASSISTANT and not is_answer
    return example


# ---- which messages ----


def _first_of_turn_in_progress(messages: Sequence[Message], *, num_said: int) -> int:
    """Where the turn in progress begins: the one rule of what chain of thought is dropped.

    A turn is over with a message of the assistant on `final` that neither the assistant nor a tool goes on from.
    Whatever lies before the last such message and is on `analysis`, calls made there and their results included, is
    left out. So while a turn is in progress nothing before its end changes: the prompt only grows.
    """
    for i in range(num_said - 1, -1, -1):
        if _ends_turn(messages, i):
            return i
    return 0


def _ends_turn(messages: Sequence[Message], i: int) -> bool:
    message = messages[i]
    if message.channel != "final" or message.role is not Role.ASSISTANT or message.is_call:
        return False
    return i + 1 == len(messages) or messages[i + 1].role not in (Role.ASSISTANT, Role.TOOL)


def _without_thought(messages: Sequence[Message], cut: int) -> set[int]:
    """Messages of the turns before `cut` that lose chain of thought: a turn runs to the message that ends it."""
    found: set[int] = set()
    start = 0
    for i in range(cut + 1 if messages else 0):
        if _ends_turn(messages, i):
            turn = range(start, i + 1)
            if any(messages[j].channel == "analysis" for j in turn if j < cut):
                found.update(turn)
            start = i + 1
    return found


def _has_function_tools(messages: Sequence[Message]) -> bool:
    """Whether the system message must say where calls of functions go."""
    for message in messages:
        if message.role is Role.SYSTEM or message.role is Role.DEVELOPER:
            for part in message.parts:
                if not isinstance(part, str) and any(space.name == FUNCTIONS and space.tools for space in part.tools):
                    return True
    return False


# ---- one message ----


def _extend(ids: list[int], message: Message, tokenizer: Tokenizer, *, has_functions: bool) -> None:
    if message.token_ids:
        _extend_sampled(ids, message, message.token_ids, tokenizer)
        return
    if message.role is Role.TOOL:
        author = message.name or ""
    else:
        author = message.role.value if message.name is None else f"{message.role.value}:{message.name}"
    recipient = None if message.recipient == "all" else message.recipient
    size = len(author) + len(recipient or "") + len(message.channel or "") + len(message.content_type or "")
    header = _encode_header if size <= _MAX_CACHED_HEADER else _encode_header.__wrapped__
    ids += header(tokenizer, author, recipient, message.channel, message.content_type)
    ids.append(tokenizer.message)
    content = message.content
    if isinstance(content, str):
        ids += tokenizer.encode(content)
    else:
        for part in message.parts:
            if isinstance(part, str):
                ids += tokenizer.encode(part)
            else:
                text = _content_text(part, has_functions=has_functions)
                ids += _encode_text(tokenizer, text) if len(text) <= _MAX_CACHED_TEXT else tokenizer.encode(text)
    ids.append(tokenizer.call if message.is_call else tokenizer.end)


def _extend_sampled(ids: list[int], message: Message, sampled: Sequence[int], tokenizer: Tokenizer) -> None:
    """Replays what the model sampled, completed to one whole message of history."""
    if not 0 <= min(sampled) <= max(sampled) < tokenizer.vocab_size:
        raise InvalidInputError(
            f"a message holds token ids outside this vocabulary, whose ids run from 0 to {tokenizer.vocab_size - 1}; "
            "leave token_ids out to render it from its text",
            param="token_ids",
        )
    if sampled[0] != tokenizer.start:
        ids += _encode_header(tokenizer, Role.ASSISTANT.value, None, None, None)
    ids += sampled
    last = sampled[-1]
    if last in (tokenizer.return_, tokenizer.endoftext):
        ids[-1] = tokenizer.end  # the format guide: those stop the sampling, and stand in no history
    elif last not in (tokenizer.end, tokenizer.call):
        ids.append(tokenizer.call if message.is_call else tokenizer.end)


@functools.lru_cache(maxsize=1024)
def _encode_header(
    tokenizer: Tokenizer, author: str, recipient: str | None, channel: str | None, content_type: str | None
) -> tuple[int, ...]:
    """Up to `<|message|>`, without it. The pieces are encoded one by one, as the model was taught."""
    ids = [tokenizer.start, *tokenizer.encode(author)]
    if recipient is not None:
        ids += tokenizer.encode(f" to={recipient}")
    if channel is not None:
        ids += [tokenizer.channel, *tokenizer.encode(channel)]
    if content_type is not None:
        marker = ControlToken.CONSTRAIN.value
        if content_type.startswith(marker):
            ids += [*tokenizer.encode(" "), tokenizer.constrain, *tokenizer.encode(content_type[len(marker) :])]
        else:
            ids += tokenizer.encode(f" {content_type}")
    return tuple(ids)


@functools.lru_cache(maxsize=64)
def _encode_text(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """For the long texts that conversations share: system messages, tools."""
    return tuple(tokenizer.encode(text))


# ---- system and developer contents ----


def _content_text(part: Part, *, has_functions: bool) -> str:
    if isinstance(part, SystemContent):
        return _system_text(part, has_functions=has_functions)
    return _developer_text(part) if isinstance(part, DeveloperContent) else part


def _system_text(system: SystemContent, *, has_functions: bool) -> str:
    top = [system.model_identity] if system.model_identity is not None else []
    if system.knowledge_cutoff is not None:
        top.append(f"Knowledge cutoff: {system.knowledge_cutoff}")
    if system.date is not None:
        top.append(f"Current date: {system.date}")
    sections = ["\n".join(top)] if top else []
    if system.effort is not None:
        sections.append(f"Reasoning: {system.effort.value}")
    if system.tools:
        sections.append(_tools_text(system.tools))
    if system.channels:
        line = f"# Valid channels: {', '.join(system.channels)}."
        if system.is_channel_required:
            line += " Channel must be included for every message."
        if has_functions:
            line += f"\nCalls to these tools must go to the {Channel.COMMENTARY} channel: '{FUNCTIONS}'."
        sections.append(line)
    return "\n\n".join(sections)


def _developer_text(developer: DeveloperContent) -> str:
    sections = ["# Instructions", developer.instructions] if developer.instructions is not None else []
    if developer.tools:
        sections.append(_tools_text(developer.tools))
    if developer.response_formats:
        sections.append("# Response Formats")
        sections += [_response_format_text(response_format) for response_format in developer.response_formats]
    return "\n\n".join(sections)


def _response_format_text(response_format: ResponseFormat) -> str:
    comments = [f"// {line}" for line in lines(response_format.description or "")]
    return "\n".join([f"## {response_format.name}", "", *comments, response_format.schema_json])


def _tools_text(spaces: Sequence[ToolNamespace]) -> str:
    ordered = sorted(spaces, key=lambda space: space.name)
    return "\n\n".join(["# Tools", *map(_namespace_text, ordered)])


def _namespace_text(space: ToolNamespace) -> str:
    head = [f"## {space.name}\n"]
    description = lines(space.description or "")
    if not space.tools:
        return "\n".join([*head, *description])
    head += [f"// {line}" for line in description]
    head.append(f"namespace {space.name} {{\n")
    body = chain.from_iterable(
        (*(f"// {line}" for line in lines(tool.description)), f"{tool.declaration}\n") for tool in space.tools
    )
    return "\n".join([*head, *body, f"}} // namespace {space.name}"])
