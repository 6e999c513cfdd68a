from __future__ import annotations

from typing import Any

import pytest

from ossia.core.errors import InvalidInputError
from ossia.engine.constraint import (
    MAX_CALLS,
    Choice,
    FreeText,
    JsonSchema,
    Lark,
    Reasoning,
    Regex,
    ToolChoice,
    ToolGrammar,
    TurnConstraint,
)
from ossia.harmony.message import Channel

F = ToolGrammar.function("f", parameters={"type": "object"})
G = ToolGrammar.function("g")


def test_schemas_are_equal_by_what_they_say() -> None:
    schema = {"type": "object", "properties": {"a": {}, "b": {}}}
    assert JsonSchema(schema) == JsonSchema(dict(schema))
    assert hash(JsonSchema(schema)) == hash(JsonSchema(dict(schema)))
    # The order of properties is that of the output.
    assert JsonSchema(schema) != JsonSchema({"type": "object", "properties": {"b": {}, "a": {}}})


def test_a_turn_is_hashable() -> None:
    first, second = (TurnConstraint(tools=(F, G), response_format=JsonSchema({})) for _ in range(2))
    assert {first: 1}[second] == 1


@pytest.mark.parametrize("schema", [{"a": object()}, {"a": float("nan")}, [], "text", None])
def test_what_is_no_schema(schema: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        JsonSchema(schema)
    assert caught.value.param == "schema"


@pytest.mark.parametrize(
    ("make", "param"),
    [
        (lambda: Regex(""), "regex"),
        (lambda: Lark(""), "lark"),
        (lambda: Choice(()), "choice"),
        (lambda: Choice("text"), "choice"),  # type: ignore[arg-type]
        (lambda: Choice(("a", "")), "choice"),
        (lambda: Regex("\ud800"), "regex"),
    ],
)
def test_empty_and_broken_texts(make: Any, param: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert caught.value.param == param


def test_functions_are_called_on_commentary_with_json() -> None:
    tool = ToolGrammar.function("f", parameters={"type": "object"})
    assert tool.recipient == "functions.f"
    assert tool.channels == (Channel.COMMENTARY,)
    assert ToolGrammar.function("functions.f", parameters={"type": "object"}) == tool
    assert isinstance(ToolGrammar.function("f").arguments, JsonSchema)


def test_python_takes_raw_code() -> None:
    tool = ToolGrammar.builtin("python")
    assert tool.arguments == FreeText()
    assert Channel.ANALYSIS in tool.channels


def test_arguments_under_functions_are_json() -> None:
    with pytest.raises(InvalidInputError, match=r"custom\.f"):
        ToolGrammar.custom("functions.f", grammar=Regex("a"))
    assert ToolGrammar.custom("custom.f", grammar=Regex("a")).arguments == Regex("a")


@pytest.mark.parametrize("name", ["", "functions.a b", "functions.{", "a\nb", "functions.<|call|>"])
def test_names_that_no_header_can_hold(name: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        ToolGrammar.builtin(name)
    assert caught.value.param == "tools"


@pytest.mark.parametrize(
    "changes", [{"channels": (Channel.FINAL,)}, {"channels": ()}, {"content_types": ("xml",)}, {"content_types": ()}]
)
def test_headers_of_another_form(changes: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"channels": (Channel.ANALYSIS,), "content_types": (None,), **changes}
    with pytest.raises(InvalidInputError):
        ToolGrammar(recipient="python", arguments=FreeText(), **fields)


def test_choices_are_read_as_the_api_writes_them() -> None:
    constraint = TurnConstraint(tools=(F,), tool_choice="required", reasoning="none")  # type: ignore[arg-type]
    assert constraint.tool_choice is ToolChoice.REQUIRED
    assert constraint.reasoning is Reasoning.NONE
    with pytest.raises(InvalidInputError, match="'auto'"):
        TurnConstraint(tool_choice="any")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": (F, F)}, "tools"),
        ({"tools": (F,), "allowed_tools": ("functions.g",)}, "tool_choice"),
        ({"tool_choice": ToolChoice.REQUIRED}, "tool_choice"),
        ({"tools": (F,), "tool_choice": ToolChoice.REQUIRED, "allowed_tools": ()}, "tool_choice"),
        ({"tools": (F,), "max_calls": 0}, "max_calls"),
        ({"tools": (F,), "max_calls": MAX_CALLS + 1}, "max_calls"),
    ],
)
def test_turns_that_make_no_sense(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        TurnConstraint(**fields)
    assert caught.value.param == param


def test_which_tools_may_be_called_and_how_often() -> None:
    assert TurnConstraint(tools=(F, G)).callable_tools == (F, G)
    assert TurnConstraint(tools=(F, G), allowed_tools=("functions.g",)).callable_tools == (G,)
    assert TurnConstraint(tools=(F, G), tool_choice=ToolChoice.NONE).callable_tools == ()
    assert TurnConstraint(tools=(F,)).num_calls == 1
    assert TurnConstraint(tools=(F,), max_calls=3).num_calls == 1
    assert TurnConstraint(tools=(F,), max_calls=3, parallel_calls=True).num_calls == 3
    assert TurnConstraint(tools=(F,), parallel_calls=True).num_calls == MAX_CALLS
    assert TurnConstraint(parallel_calls=True).num_calls == 0
