from __future__ import annotations

import datetime
import json
from typing import Any

import jinja2
import pytest

from ossia.harmony.chat_template import nano_chat_template
from ossia.harmony.message import Conversation, DeveloperContent, Effort, FunctionTool, Message, Role, SystemContent
from ossia.harmony.render import render_for_training, render_text
from ossia.harmony.tokenizer import Tokenizer

TOKENIZER = Tokenizer.o200k_harmony()
IDENTITY = 'You are "nano" {{ 🐜 }}.\n'
DATE = "2025-06-28"
WEATHER = {
    "name": "get_weather",
    "description": "Gets the weather.\nNow.",
    "parameters": {
        "type": "object",
        "description": "Where",
        "properties": {
            "place": {"type": "string", "description": "Town or city\nor both", "title": "Place"},
            "unit": {"type": "string", "enum": ["celsius", 'it\'s "hot"'], "default": "celsius"},
            "days": {"type": ["integer", "null"], "default": None, "minimum": 1, "maximum": 7},
            "ratio": {"type": "number", "default": 1.5, "nullable": True},
            "tags": {"type": "array", "items": {"enum": ["a", 1, None]}, "default": ["a"]},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": "x"},
            "where": {
                "type": "object",
                "properties": {"lat": {"type": "number", "description": "north"}, "odd-name": {"const": True}},
                "required": ["lat"],
                "additionalProperties": False,
            },
            "more": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "boolean"}}}},
            "map": {"type": "object", "additionalProperties": {"type": "string"}, "default": {"a": [1, 2]}},
            "any": {},
            "list": {"type": "array"},
        },
        "required": ["place"],
    },
}
NOW = {"name": "now", "description": ""}
TOOLS = [WEATHER, NOW]


def jinja_text(messages: list[dict[str, Any]], *, identity: str = IDENTITY, **options: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    options = {"add_generation_prompt": True, "current_date": DATE, **options}
    texts, _ = render_jinja_template([messages], chat_template=nano_chat_template(identity), **options)
    return texts[0]


def conversation(
    *messages: Message, tools: bool = False, instructions: str | None = None, **system: Any
) -> Conversation:
    head = [Message(Role.SYSTEM, content=SystemContent(**{"model_identity": IDENTITY, "date": DATE, **system}))]
    functions = [
        FunctionTool(t["name"], description=t["description"], parameters=t.get("parameters")) for t in TOOLS if tools
    ]
    if functions or instructions:
        head.append(
            Message(Role.DEVELOPER, content=DeveloperContent.with_functions(functions, instructions=instructions))
        )
    return Conversation((*head, *messages))


def text(*messages: Message, **options: Any) -> str:
    return render_text(conversation(*messages, **options), tokenizer=TOKENIZER)


def user(content: str) -> Message:
    return Message(Role.USER, content=content)


def says(channel: str, content: str) -> Message:
    return Message(Role.ASSISTANT, channel=channel, content=content)


def call(arguments: str, name: str = "get_weather") -> Message:
    return Message(
        Role.ASSISTANT,
        channel="commentary",
        recipient=f"functions.{name}",
        content_type="<|constrain|>json",
        content=arguments,
    )


def result(content: str, name: str = "get_weather") -> Message:
    return Message(Role.TOOL, name=f"functions.{name}", channel="commentary", recipient="assistant", content=content)


def call_dict(name: str, arguments: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **fields}


HI = [{"role": "user", "content": "hi"}]


def test_a_question() -> None:
    assert jinja_text(HI) == text(user("hi"))


@pytest.mark.parametrize("effort", Effort)
def test_efforts(effort: Effort) -> None:
    assert jinja_text(HI, reasoning_effort=effort.value) == text(user("hi"), effort=effort)


def test_an_unknown_effort_names_the_three() -> None:
    with pytest.raises(jinja2.TemplateError, match="use 'low', 'medium' or 'high'"):
        jinja_text(HI, reasoning_effort="extreme")


def test_identity_cutoff_and_date_are_options() -> None:
    assert jinja_text(HI, model_identity="You are Quill.") == text(user("hi"), model_identity="You are Quill.")
    assert jinja_text(HI, knowledge_cutoff=None) == text(user("hi"), knowledge_cutoff=None)
    assert jinja_text(HI, current_date=None) == text(user("hi"), date=None)


def test_defaults_are_those_of_the_model() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = nano_chat_template("You are Ant.", knowledge_cutoff=None)
    before = datetime.date.today()
    texts, _ = render_jinja_template([HI], chat_template=template, add_generation_prompt=True)
    days = {before.isoformat(), datetime.date.today().isoformat()}
    own = {"model_identity": "You are Ant.", "knowledge_cutoff": None}
    assert texts[0] in {text(user("hi"), date=day, **own) for day in days}


@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions(role: str) -> None:
    messages = [{"role": role, "content": "Be brief."}, *HI, {"role": role, "content": "Late rule."}, *HI]
    late = Message(Role.DEVELOPER, content=DeveloperContent(instructions="Late rule."))
    assert jinja_text(messages) == text(user("hi"), late, user("hi"), instructions="Be brief.")


def test_tools_alone_and_with_instructions() -> None:
    tools = [{"type": "function", "function": tool} for tool in TOOLS]
    assert jinja_text(HI, tools=tools) == text(user("hi"), tools=True)
    messages = [{"role": "system", "content": "Be brief."}, *HI]
    assert jinja_text(messages, tools=tools) == text(user("hi"), tools=True, instructions="Be brief.")


def test_calls_and_results() -> None:
    messages = [
        *HI,
        {
            "role": "assistant",
            "reasoning_content": "hm",
            "content": "I will look.",
            "tool_calls": [call_dict("get_weather", {"place": "東京"}, id="1"), call_dict("now", "{}", id="2")],
        },
        {"role": "tool", "tool_call_id": "1", "content": "20 °C"},
        {"role": "tool", "tool_call_id": "2", "content": {"h": 9}},
        {"role": "tool", "name": "now", "content": [{"type": "text", "text": "9"}, {"type": "text", "text": "h"}]},
    ]
    expected = text(
        user("hi"),
        says("analysis", "hm"),
        says("commentary", "I will look."),
        call(json.dumps({"place": "東京"}, ensure_ascii=False)),
        call("{}", "now"),
        result("20 °C"),
        result('{"h": 9}', "now"),
        result("9h", "now"),
    )
    assert jinja_text(messages) == expected


def test_a_result_without_a_call() -> None:
    with pytest.raises(jinja2.TemplateError, match="follows no call"):
        jinja_text([{"role": "tool", "content": "1"}])


def test_an_unknown_role() -> None:
    with pytest.raises(jinja2.TemplateError, match="unknown role"):
        jinja_text([{"role": "boss", "content": "1"}])


TURN = [*HI, {"role": "assistant", "thinking": "hm", "content": "a"}]
CALL_TURN = [
    *HI,
    {"role": "assistant", "thinking": "hm", "tool_calls": [call_dict("now", {})]},
    {"role": "tool", "content": "9"},
]


@pytest.mark.parametrize("messages", [[*TURN, *HI], [*TURN, *TURN, *HI], [*TURN, *CALL_TURN], CALL_TURN, TURN])
def test_chain_of_thought_goes_as_in_the_renderer(messages: list[dict[str, Any]]) -> None:
    assert jinja_text(messages) == text(*_messages(messages))


@pytest.mark.parametrize("messages", [TURN, [*TURN, *TURN], [*TURN, *HI], CALL_TURN])
def test_without_generation_prompt_it_is_the_training_text(messages: list[dict[str, Any]]) -> None:
    ids = render_for_training(conversation(*_messages(messages)), tokenizer=TOKENIZER).ids
    assert jinja_text(messages, add_generation_prompt=False) == TOKENIZER.decode(ids)


def _messages(dicts: list[dict[str, Any]]) -> list[Message]:
    found: list[Message] = []
    for d in dicts:
        if d["role"] == "user":
            found.append(user(d["content"]))
        elif d["role"] == "tool":
            found.append(result(d["content"], "now"))
        else:
            found.append(says("analysis", d["thinking"]))
            found.append(says("final", d["content"]) if "content" in d else call("{}", "now"))
    return found
