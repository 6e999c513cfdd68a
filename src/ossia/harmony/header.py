"""What a header says: a pure function from its pieces of text to role, channel, recipient and content type.

A header is what stands between `<|start|>` (or the prompt's `<|start|>assistant`) and `<|message|>`:

    assistant<|channel|>commentary to=functions.f <|constrain|>json
    assistant to=functions.f<|channel|>commentary json
    functions.f to=assistant<|channel|>commentary

Control tokens cut it into sections, so no name reaches over one. Each reader below takes its part out of a section
and leaves the rest; what nobody takes is free text, which becomes a repair note, or the content where the model
forgot `<|message|>`.
"""

from __future__ import annotations

import difflib
import re
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from ossia.harmony.events import Repair, RepairKind, repair
from ossia.harmony.message import Channel, Role
from ossia.harmony.vocab import ControlToken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ossia.harmony.tool_match import ToolNames


class Opening(Enum):
    """How a header was opened."""

    IMPLIED = auto()
    """The prompt ended in `<|start|>assistant`."""
    STARTED = auto()
    """By `<|start|>`."""
    MISSING = auto()
    """Not at all: `<|start|>` is missing."""


class Section(NamedTuple):
    """A control token of a header (None: its beginning) and the text up to the next one."""

    marker: ControlToken | None
    text: str


class Header(NamedTuple):
    """What a header says.

    Attributes:
        channel: None only for roles other than assistant, which need none.
        names_channel: whether the header itself named that channel, however spelled.
        text: free text.
    """

    role: Role
    name: str | None
    channel: Channel | None
    names_channel: bool
    recipient: str | None
    content_type: str | None
    text: str
    repairs: tuple[Repair, ...]


class RoleReading(NamedTuple):
    """Whose message it is, and what else stood in that section."""

    role: Role
    name: str | None
    rest: str
    is_repeated: bool = False


_NOT_TOOLS = frozenset({"", "assistant", "user", "all"})
_CHANNELS = {channel.value: channel for channel in Channel}
_SYNONYMS = {
    "thinking": Channel.ANALYSIS,
    "thought": Channel.ANALYSIS,
    "reasoning": Channel.ANALYSIS,
    "answer": Channel.FINAL,
    "response": Channel.FINAL,
}
_MAX_CHANNEL_WORDS = 8  # models stutter a few times; a bound keeps the reading linear
_TYPES = frozenset({"json", "code", "text"})

_RECIPIENT_MARK = re.compile(r"(?<![^\W_])to=|to=(?=functions\.)")
_ASSISTANTS = re.compile(r"\s*((?:assistant)+)(?![a-z])|\s*((?:assistant)+)(?=analysis|commentary|final|to=)")
_ROLE_WORD = re.compile(r"\s*(system|developer|user)(?::(\S*))?(?!\w)")
_TOOL_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[\w-]+)+")
_CHANNEL_WORD = re.compile(
    r"[\W_]*((?i:analysis|commentary|final))(?=[^a-z]|$|analysis|commentary|final|json|code|to=)"
)
_TYPE_WORD = re.compile(r"[A-Za-z][\w.+/-]*")
_CONSTRAINT = re.compile(_TYPE_WORD.pattern + r"(?=[\s{\[]|$)")


def interpret_header(
    sections: Sequence[Section], *, opening: Opening, tools: ToolNames, is_conversation: bool = False
) -> Header:
    """Reads a header, whatever it says.

    Args:
        sections: at least one; the first has no marker.
        opening: how it was opened; only behind `<|start|>` (written or missing) can it name a role.
        tools: the declared tools.
        is_conversation: whether an unknown role is a tool's name; in a completion it is free text.
    """
    repairs: list[Repair] = []
    texts, recipient, written = _take_recipients(sections, tools, repairs)
    role = read_role(
        texts[0], opening=opening, tools=tools, is_conversation=is_conversation, to_assistant="assistant" in written
    )
    texts[0] = role.rest
    if role.is_repeated:
        repairs.append(repair(RepairKind.REPEATED_ROLE, sections[0].text))
    is_assistant = role.role is Role.ASSISTANT
    if is_assistant and written and recipient in _NOT_TOOLS:
        repairs.append(repair(RepairKind.NO_TOOL_RECIPIENT, f"to={recipient}"))
        recipient = None
    channel, prose = _take_channel(sections, texts, repairs, opening=opening)
    names_channel = channel is not None
    content_type = _take_content_type(sections, texts, prose=prose, has_recipient=recipient is not None)
    repairs += [
        repair(RepairKind.STRAY_TOKEN, section.marker)
        for section in sections
        if section.marker not in (None, ControlToken.CHANNEL, ControlToken.CONSTRAIN)
    ]
    text = " ".join(filter(None, (part.strip() for part in texts)))
    if channel is None and is_assistant:
        channel = _default_channel(recipient, prose=text)
        repairs.append(repair(RepairKind.MISSING_CHANNEL, f"taken as {channel}"))
    return Header(role.role, role.name, channel, names_channel, recipient or None, content_type, text, tuple(repairs))


def read_role(
    text: str, *, opening: Opening, tools: ToolNames, is_conversation: bool = False, to_assistant: bool = False
) -> RoleReading:
    """Reads a header's first section, its recipients taken out.

    A tool's message opens with its name. In a completion a word counts as a name only if it looks like one or speaks
    `to=assistant`; otherwise the model has most likely forgotten the header.
    """
    assistants = _ASSISTANTS.match(text)
    if assistants is not None:
        written = assistants.group(1) or assistants.group(2)
        allowed = 0 if opening is Opening.IMPLIED else 1
        return RoleReading(
            Role.ASSISTANT, None, text[assistants.end() :], len(written) > allowed * len(Role.ASSISTANT.value)
        )
    words = text.strip()
    if opening is Opening.IMPLIED or not words or words in _CHANNELS:
        return RoleReading(Role.ASSISTANT, None, text)
    known = _ROLE_WORD.match(text)
    if known is not None:
        return RoleReading(Role(known.group(1)), known.group(2) or None, text[known.end() :])
    if to_assistant or (is_conversation and opening is Opening.STARTED) or tools.knows(words):
        return RoleReading(Role.TOOL, words, "")
    name = words.split()[0]
    if opening is Opening.STARTED and (_TOOL_NAME.fullmatch(name) or name in ("python", "tool")):
        return RoleReading(Role.TOOL, name, words[len(name) :])
    return RoleReading(Role.ASSISTANT, None, text)


def _take_recipients(
    sections: Sequence[Section], tools: ToolNames, repairs: list[Repair]
) -> tuple[list[str], str | None, list[str]]:
    """Takes every `to=...` out: the texts without them, the one that counts, and all of them."""
    texts: list[str] = []
    found: list[str] = []
    for section in sections:
        first, *others = _RECIPIENT_MARK.split(section.text)
        parts = [first]
        for other in others:
            reading = tools.read(other.lstrip())
            found.append(reading.recipient)
            if reading.is_matched or (reading.recipient and other[:1].isspace()):
                repairs.append(repair(RepairKind.RECIPIENT_MATCHED, f"to={other.strip()} read as {reading.recipient}"))
            parts.append(reading.rest)
        texts.append(" ".join(parts))
    if not found:
        return texts, None, found
    candidates = [name for name in found if name not in _NOT_TOOLS] or found
    recipient = next((name for name in candidates if name in tools), candidates[0])
    if len(set(found)) > 1:
        repairs.append(repair(RepairKind.REPEATED_RECIPIENT, f"{', '.join(found)} read as {recipient}"))
    return texts, recipient, found


def _take_channel(
    sections: Sequence[Section], texts: list[str], repairs: list[Repair], *, opening: Opening
) -> tuple[Channel | None, set[int]]:
    """Takes the channels out of `texts`. The last one counts: it is what the model wrote before the content.

    The indices that come with it are those of sections that ought to open with a channel and do not.
    """
    channel: Channel | None = None
    prose: set[int] = set()
    marked = [i for i, section in enumerate(sections) if section.marker is ControlToken.CHANNEL]
    for i in marked:
        reading, texts[i] = _read_channel(texts[i], repairs)
        channel = reading or channel
        if reading is None and texts[i] not in _TYPES:
            prose.add(i)
    if len(marked) > 1:
        repairs.append(repair(RepairKind.REPEATED_CHANNEL, " ".join(sections[i].text.strip() for i in marked)))
    opening_word, _, behind = texts[0].strip().partition(" ")
    if opening_word in _CHANNELS and (marked or not behind or behind in _TYPES):
        # `<|start|>final<|message|>`, or filler in front of a header without its `<|start|>`.
        texts[0] = behind
        is_filler = opening is Opening.MISSING and channel is not None
        kind = RepairKind.TEXT_BETWEEN_MESSAGES if is_filler else RepairKind.ROLE_IS_CHANNEL
        repairs.append(repair(kind, opening_word))
        channel = channel or _CHANNELS[opening_word]
    return channel, prose


def _read_channel(text: str, repairs: list[Repair]) -> tuple[Channel | None, str]:
    """The channel that opens a section, and the rest of the section."""
    text = text.strip()
    channel: Channel | None = None
    rest = text
    for _ in range(_MAX_CHANNEL_WORDS):
        match = _CHANNEL_WORD.match(rest)
        if match is None:
            break
        if channel is not None and rest[:1].isalpha() and rest[match.end() :].strip():
            break  # prose such as `final analysis of ...`, not a second channel
        channel = _CHANNELS[match.group(1).lower()]
        rest = rest[match.end() :].lstrip()
    if channel is not None:
        rest = rest if re.search(r"\w", rest) or rest.startswith("{") else ""
        spelled = text[: len(text) - len(rest)].strip()
        if spelled != channel:
            repairs.append(repair(RepairKind.UNKNOWN_CHANNEL, f"{spelled} read as {channel}"))
        return channel, rest
    word, _, behind = text.partition(" ")
    nearest = _nearest_channel(word) if not behind or behind.strip() in _TYPES else None
    if nearest is None:
        return None, text
    repairs.append(repair(RepairKind.UNKNOWN_CHANNEL, f"{word} read as {nearest}"))
    return nearest, behind


def _nearest_channel(word: str) -> Channel | None:
    letters = "".join(filter(str.isalpha, word.casefold()))
    if not letters:
        return None
    for name, channel in _CHANNELS.items():
        if name.startswith(letters):
            return channel
    close = difflib.get_close_matches(letters[:20], [*_CHANNELS, *_SYNONYMS], n=1)
    return (_CHANNELS | _SYNONYMS)[close[0]] if close else None


def _take_content_type(
    sections: Sequence[Section], texts: list[str], *, prose: set[int], has_recipient: bool
) -> str | None:
    """Takes the content type out: the word behind `<|constrain|>`, else a lone or well-known word that is left."""
    for i, section in enumerate(sections):
        if section.marker is ControlToken.CONSTRAIN:
            text = texts[i].lstrip()
            match = _CONSTRAINT.match(text)
            if match is not None:
                texts[i] = text[match.end() :]
                return f"{ControlToken.CONSTRAIN}{match.group()}"
    for i, section in enumerate(sections):
        text = texts[i].strip()
        is_candidate = section.marker is ControlToken.CHANNEL or (section.marker is None and has_recipient)
        match = _TYPE_WORD.match(text) if is_candidate and i not in prose else None
        if match is None:
            continue
        is_alone = match.end() == len(text)
        if (match.group() in _TYPES and (has_recipient or is_alone)) or (has_recipient and is_alone):
            texts[i] = text[match.end() :]
            return match.group()
    return None


def _default_channel(recipient: str | None, *, prose: str) -> Channel:
    if recipient:
        return Channel.COMMENTARY
    # Prose where the channel belongs is the model thinking aloud: what may be private is not shown.
    return Channel.ANALYSIS if " " in prose else Channel.FINAL
