from __future__ import annotations

import json

import pytest

from ossia.engine.build import EngineConfig
from ossia.engine.constraint import FreeText, JsonSchema
from ossia.engine.declared import constraint_of
from ossia.engine.llm import LLM
from ossia.engine.request import SamplingParams
from ossia.harmony.builtin_tools import BROWSER, PYTHON
from ossia.harmony.content import DeveloperContent, FunctionTool, ResponseFormat, SystemContent
from ossia.harmony.message import Conversation, Message, Role
from ossia.model.loading import LoadedModel

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def conversation(*, system: SystemContent | None = None, developer: DeveloperContent | None = None) -> Conversation:
    messages = [Message(Role.SYSTEM, content=system or SystemContent())]
    if developer is not None:
        messages.append(Message(Role.DEVELOPER, content=developer))
    return Conversation((*messages, Message(Role.USER, content="Hi")))


def test_a_conversation_that_declares_nothing_is_free() -> None:
    assert constraint_of(conversation()) is None
    assert constraint_of(conversation(developer=DeveloperContent(instructions="Be kind."))) is None


def test_tools_of_both_messages_may_be_called() -> None:
    declared = conversation(
        system=SystemContent(tools=(BROWSER, PYTHON)),
        developer=DeveloperContent.with_functions([FunctionTool("f"), FunctionTool("g", parameters=SCHEMA)]),
    )
    rules = constraint_of(declared)
    assert rules is not None
    names = [tool.recipient for tool in rules.tools]
    assert names == ["browser.search", "browser.open", "browser.find", "python", "functions.f", "functions.g"]
    assert rules.tools[-1].arguments == JsonSchema(SCHEMA)


@pytest.mark.parametrize(("count", "kind"), [(1, JsonSchema), (2, FreeText)])
def test_one_response_format_binds_the_answer_and_several_do_not(count: int, kind: type) -> None:
    formats = tuple(ResponseFormat(f"format{i}", schema=SCHEMA) for i in range(count))
    rules = constraint_of(conversation(developer=DeveloperContent(response_formats=formats)))
    assert rules is not None
    assert isinstance(rules.response_format, kind)


def test_chat_holds_a_random_model_to_what_is_declared(loaded: LoadedModel) -> None:
    """Nothing but the constraint could make random weights write well-formed turns."""
    llm = LLM(loaded, config=EngineConfig(num_pages=512, page_size=4))
    asked = conversation(developer=DeveloperContent(response_formats=(ResponseFormat("place", schema=SCHEMA),)))
    params = [SamplingParams(temperature=1.0, seed=seed, max_tokens=120) for seed in range(6)]
    turns = llm.chat([asked] * 6, params, progress=False)
    answered = [turn for turn in turns if turn.text]
    for turn in answered:
        assert json.loads(turn.text)["city"] in ("Oslo", "Rome")
    assert all(repair.kind.value in ("truncated_header",) for turn in turns for repair in turn.repairs)


def test_a_constraint_of_ones_own_stays(loaded: LoadedModel) -> None:
    llm = LLM(loaded, config=EngineConfig(num_pages=512, page_size=4))
    asked = conversation(developer=DeveloperContent(response_formats=(ResponseFormat("place", schema=SCHEMA),)))
    own = SamplingParams(temperature=1.0, seed=1, max_tokens=60, constraint=JsonSchema({"const": 7}))
    (turn,) = llm.chat([asked], own, progress=False)
    assert turn.text == "7"
