"""Headers as a pure function from sections of text."""

from __future__ import annotations

import pytest

from ossia.harmony.events import RepairKind
from ossia.harmony.header import Header, Opening, Section, interpret_header, read_role
from ossia.harmony.message import Channel, Role
from ossia.harmony.tool_match import ToolNames
from ossia.harmony.vocab import ControlToken

TOOLS = ToolNames(["functions.f"])


def read(*texts: str, opening: Opening = Opening.IMPLIED, is_conversation: bool = False) -> Header:
    """A header of a first section, then `<|channel|>` sections; a text that begins with ! is a `<|constrain|>` one."""
    sections = [Section(None, texts[0])]
    for text in texts[1:]:
        marker = ControlToken.CONSTRAIN if text.startswith("!") else ControlToken.CHANNEL
        sections.append(Section(marker, text.removeprefix("!")))
    return interpret_header(sections, opening=opening, tools=TOOLS, is_conversation=is_conversation)


def test_a_whole_header() -> None:
    assert read("assistant to=functions.f", "commentary ", "!json", opening=Opening.STARTED) == Header(
        role=Role.ASSISTANT,
        name=None,
        channel=Channel.COMMENTARY,
        names_channel=True,
        recipient="functions.f",
        content_type="<|constrain|>json",
        text="",
        repairs=(),
    )


@pytest.mark.parametrize(
    ("text", "channel", "rest"),
    [
        ("final", Channel.FINAL, ""),
        (" Final ", Channel.FINAL, ""),
        ("finalWe", Channel.FINAL, "We"),
        ("finally", Channel.FINAL, ""),
        ("final analysis of it", Channel.FINAL, "analysis of it"),
        ("commentary?commentary?", Channel.COMMENTARY, ""),
        ("analysis ––commentary", Channel.COMMENTARY, ""),
        ("thinking", Channel.ANALYSIS, ""),
        ("fnal", Channel.FINAL, ""),
        ("Sorry, no", Channel.ANALYSIS, "Sorry, no"),
        ("xyz", Channel.FINAL, "xyz"),
        ("", Channel.FINAL, ""),
    ],
)
def test_channels(text: str, channel: Channel, rest: str) -> None:
    header = read("", text)
    assert (header.channel, header.text) == (channel, rest)
    assert header.names_channel == (rest != text)


@pytest.mark.parametrize(
    ("text", "content_type", "rest"),
    [
        ("final json", "json", ""),
        ("final yaml", None, "yaml"),
        ("commentary to=functions.f yaml", "yaml", ""),
        ("commentary to=functions.f code", "code", ""),
        ('commentary to=functions.f json{"a":1}', "json", '{"a":1}'),
        ('commentary to=functions.f {"a":1}', None, '{"a":1}'),
        ("commentary to=functions.f two words", None, "two words"),
    ],
)
def test_content_types(text: str, content_type: str | None, rest: str) -> None:
    header = read("", text)
    assert (header.content_type, header.text) == (content_type, rest)


def test_constraint_words_and_prose() -> None:
    assert read("", "commentary", "!json extra").content_type == "<|constrain|>json"
    assert read("", "commentary", "!json extra").text == "extra"
    assert read("", "commentary", "!write: edit").content_type is None


@pytest.mark.parametrize("nobody", ["", "assistant", "user", "all"])
def test_nobody_is_no_recipient(nobody: str) -> None:
    header = read("", f"commentary to={nobody}")
    assert header.recipient is None
    assert [repair.kind for repair in header.repairs] == [RepairKind.NO_TOOL_RECIPIENT]


@pytest.mark.parametrize(
    ("text", "opening", "is_conversation", "role", "name"),
    [
        ("user", Opening.STARTED, False, Role.USER, None),
        ("user", Opening.MISSING, False, Role.USER, None),
        ("user", Opening.IMPLIED, False, Role.ASSISTANT, None),
        ("user:ann", Opening.STARTED, True, Role.USER, "ann"),
        ("users", Opening.STARTED, False, Role.ASSISTANT, None),
        ("assistant", Opening.STARTED, False, Role.ASSISTANT, None),
        ("final", Opening.STARTED, True, Role.ASSISTANT, None),
        ("functions.other", Opening.STARTED, False, Role.TOOL, "functions.other"),
        ("f", Opening.STARTED, False, Role.TOOL, "f"),
        ("Sorry.", Opening.STARTED, False, Role.ASSISTANT, None),
        ("my tool", Opening.STARTED, True, Role.TOOL, "my tool"),
        ("", Opening.STARTED, True, Role.ASSISTANT, None),
    ],
)
def test_roles(text: str, opening: Opening, is_conversation: bool, role: Role, name: str | None) -> None:
    reading = read_role(text, opening=opening, tools=TOOLS, is_conversation=is_conversation)
    assert (reading.role, reading.name) == (role, name)


def test_other_roles_need_no_channel() -> None:
    header = read("user", opening=Opening.STARTED, is_conversation=True)
    assert (header.channel, header.repairs) == (None, ())
