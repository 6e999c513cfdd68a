"""Arguments of built-in tools: defaults, slips of type, and what cannot be mended."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.harmony.message import Message, Role
from ossia.tools.arguments import parse_object, read_arguments
from ossia.tools.base import FailureKind, ToolError

SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": ["number", "string"], "default": -1},
        "loc": {"type": "number", "default": -1},
        "count": {"type": "integer"},
        "flag": {"type": "boolean", "default": False},
        "words": {"type": "array", "items": {"type": "string"}},
        "kind": {"type": "string", "enum": ["a", "b"]},
        "name": {"type": "string"},
    },
    "required": ["name"],
}


def read(text: str) -> dict[str, Any]:
    return read_arguments(Message(Role.ASSISTANT, content=text, recipient="t.f"), SCHEMA)


def test_defaults() -> None:
    assert read('{"name": "x"}') == {"name": "x", "id": -1, "loc": -1, "flag": False}
    assert read('{"name": "x", "loc": null}')["loc"] == -1


@pytest.mark.parametrize(
    ("key", "value", "result"),
    [
        ("id", "5", "5"), ("id", 5.0, 5), ("loc", "7", 7), ("loc", "7.5", 7.5), ("count", 3.0, 3), ("count", "3", 3),
        ("flag", "True", True), ("words", "one", ["one"]), ("words", [1], ["1"]), ("name", 5, "5"), ("extra", 1, None),
    ],
)  # fmt: skip
def test_slips_are_mended(key: str, value: object, result: object) -> None:
    assert read(json.dumps({"name": "x", key: value})).get(key) == result


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "'name' is missing"),
        ('{"name": null}', "name"),
        ('{"name": "x", "loc": "far"}', "'loc' is text; it must be number"),
        ('{"name": "x", "loc": "nan"}', "loc"),
        ('{"name": "x", "loc": true}', "a boolean"),
        ('{"name": "x", "count": 1.5}', "count"),
        ('{"name": "x", "words": {}}', "an object"),
        ('{"name": "x", "kind": "c"}', "one of"),
        ('{"name": NaN}', "not valid JSON"),
        ("3", "a number"),
    ],
)
def test_the_rest_is_told(text: str, said: str) -> None:
    with pytest.raises(ToolError, match=said) as caught:
        read(text)
    assert caught.value.kind is FailureKind.INVALID_ARGUMENTS


@given(st.text(max_size=50))
def test_any_text_gives_an_object_or_one_kind_of_error(text: str) -> None:
    with contextlib.suppress(ToolError):
        assert isinstance(parse_object(Message(Role.ASSISTANT, content=text, recipient="t.f")), dict)


def test_large_arguments_are_refused() -> None:
    with pytest.raises(ToolError, match="characters"):
        read('"' + "x" * 1_000_001 + '"')
