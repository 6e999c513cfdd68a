"""Python functions as tools."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import importlib
import threading
from typing import Annotated, Any, Literal

import pytest

from ossia.core.errors import InvalidInputError, MissingExtraError
from ossia.tools import extras
from ossia.tools.base import FailureKind, ToolResult
from ossia.tools.functions import MAX_RESULT_CHARS, FunctionsTool, describe_function, result_text

pydantic = pytest.importorskip("pydantic", reason="the extra ossia[tools] is not installed")


class Unit(enum.Enum):
    C = "c"
    F = "f"


class Place(pydantic.BaseModel):
    city: str
    title: str = "t"


Days = Annotated[int, pydantic.Field(description="How many", ge=1)]


def weather(place: Place, unit: Unit = Unit.C, days: Days = 1) -> dict[str, Any]:
    """Tells the weather.

    In two paragraphs.

    Args:
        place: left out of the description.
    """
    return {"city": place.city, "unit": unit.value, "days": days}


@pytest.fixture
def ask(call: Any) -> Any:
    def ask_tool(function: Any, text: str, **options: Any) -> ToolResult:
        tool = FunctionsTool([function], **options)
        name = tool.declaration().tools[0].name
        return asyncio.run(call(tool, f"{tool.name}.{name}", text))

    return ask_tool


def test_the_declaration_has_types_defaults_and_descriptions() -> None:
    tool = describe_function(weather).tool
    assert tool.description == "Tells the weather.\n\nIn two paragraphs."
    assert "// How many" in tool.declaration
    assert "city: string" in tool.declaration
    assert "title?: string" in tool.declaration, "a property called title is no title"
    assert "days?: number" in tool.declaration


def test_arguments_become_what_the_hints_say(ask: Any) -> None:
    assert ask(weather, '{"place": {"city": "Rome"}, "unit": "f"}').text == '{"city": "Rome", "unit": "f", "days": 1}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "place: Field required"),
        ('{"place": 3}', "place: "),
        ('{"place": {"city": "x"}, "days": 0}', "days: "),
        ('{"place": {"city": "x"}, "more": 1}', "more: Extra"),
        ("[]", "an array"),
        ("{", "not valid JSON"),
        ("NaN", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_wrong_arguments_are_answered(ask: Any, text: str, said: str) -> None:
    result = ask(weather, text)
    assert result.failure is FailureKind.INVALID_ARGUMENTS
    assert said in result.text


def test_sync_functions_run_in_a_thread_and_async_ones_in_the_loop(ask: Any) -> None:
    def sync() -> bool:
        return threading.current_thread() is threading.main_thread()

    async def native() -> bool:
        return threading.current_thread() is threading.main_thread()

    class Callable:
        __name__ = "callable"

        async def __call__(self, x: int = 3) -> int:
            return x

    assert ask(sync, "").text == "false"
    assert ask(native, "").text == "true"
    assert ask(Callable(), "").text == "3"


def test_exceptions_and_timeouts_are_answered(ask: Any) -> None:
    def fail() -> None:
        raise KeyError("gone")

    async def slow() -> None:
        await asyncio.sleep(60)

    assert ask(fail, "").text == "fail raised KeyError: 'gone'"
    assert ask(fail, "").failure is FailureKind.FAILED
    assert ask(slow, "", timeout_s=0.01).failure is FailureKind.TIMEOUT


def test_odd_parameter_names(ask: Any) -> None:
    def odd(schema: int, model_config: int, _x: int = 3, json: str = "j") -> list[object]:
        return [schema, model_config, _x, json]

    assert ask(odd, '{"schema": 1, "model_config": 2}').text == '[1, 2, 3, "j"]'


def test_what_cannot_be_a_tool_is_told() -> None:
    def no_hint(x) -> None:  # type: ignore[no-untyped-def]  # what is tested
        return None

    def variadic(*x: int) -> None:
        return None

    def positional(x: int, /) -> None:
        return None

    def no_schema(x: threading.Thread) -> None:
        return None

    for function in (no_hint, variadic, positional, no_schema, lambda: None):
        with pytest.raises(InvalidInputError):
            describe_function(function)


def test_results_as_text() -> None:
    @dataclasses.dataclass
    class Point:
        x: int

    assert result_text("é") == "é"
    assert result_text(None) == "null"
    value = {"a": Point(1), "b": Place(city="x"), "c": {1}}
    assert result_text(value) == '{"a": {"x": 1}, "b": {"city": "x", "title": "t"}, "c": [1]}'
    assert "left out" in result_text("x" * (MAX_RESULT_CHARS + 5))


def test_literal_types_stay_narrow() -> None:
    def pick(x: Literal["a", "b"]) -> str:
        return x

    assert 'x: "a" | "b"' in describe_function(pick).tool.declaration


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(MissingExtraError, match=r"ossia\[tools\]"):
        describe_function(weather)
    with pytest.raises(MissingExtraError, match="httpx2"):
        extras.need("httpcore2", package="httpx2")
