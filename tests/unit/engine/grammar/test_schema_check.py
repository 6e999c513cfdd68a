from __future__ import annotations

import copy
import datetime
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError
from ossia.engine.grammar.schema_check import prepare_schema


def prepare(schema: Any, *, is_strict: bool = True) -> Any:
    return prepare_schema(copy.deepcopy(schema), param="schema", max_optional=20, is_strict=is_strict)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"not": {}}, "'not' at #"),
        ({"properties": {"a/b": {"items": {"uniqueItems": True}}}}, "'uniqueItems' at #/properties/a~1b/items"),
        ({"anyOf": [{}, {"if": {}}]}, "'if' at #/anyOf/1"),
        ({"$defs": {"x": {"contains": {}}}, "$ref": "#/$defs/x"}, "'contains' at #/$defs/x"),
        ({"parts": {"x": [{"propertyNames": False}]}, "$ref": "#/parts/x/0"}, "'propertyNames' at #/parts/x/0"),
        ({"type": ["string", "null"], "format": "color"}, "the format 'color' at #"),
        ({"allOf": [{}], "additionalItems": False}, "'additionalItems' beside 'allOf'"),
        ({"properties": {f"p{i}": {} for i in range(21)}}, "21 optional properties"),
        ({"patternProperties": {"^a": {"dependentRequired": {"a": ["b"]}}}}, "#/patternProperties/^a"),
    ],
)
def test_what_cannot_be_enforced_is_named_by_its_place(schema: Any, place: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        prepare(schema)
    assert place in str(caught.value)
    assert caught.value.param == "schema"
    assert place in prepare(schema, is_strict=False).notes[0]


@pytest.mark.parametrize(
    ("schema", "left"),
    [
        ({"uniqueItems": False, "type": "array"}, {"type": "array"}),
        ({"not": False}, {}),
        ({"unevaluatedProperties": True}, {}),
        ({"dependentRequired": {}}, {}),
        ({"minLength": 2.0, "maxItems": 3.5}, {"minLength": 2, "maxItems": 3.5}),
        ({"type": "integer", "format": "int32"}, {"type": "integer", "format": "int32"}),
        ({"x-guidance": {"lenient": True}}, {}),
        (True, {}),
        # The names of properties are no keywords, nor is what an enum lists.
        ({"properties": {"not": {}}, "enum": [{"not": 1}]}, {"properties": {"not": {}}, "enum": [{"not": 1}]}),
    ],
)
def test_what_asserts_nothing_is_left_out(schema: Any, left: Any) -> None:
    assert prepare(schema) == (left, ())


def test_many_problems_are_cut_short() -> None:
    with pytest.raises(InvalidInputError, match=r", \.\.\.\. Enforced"):
        prepare({"anyOf": [{"not": {}}] * 1 + [{"if": i} for i in range(9)]})


def test_a_schema_that_contains_itself_is_walked_once() -> None:
    schema = {"properties": {"child": {"$ref": "#"}, "again": {"$ref": "#/properties/child"}}}
    assert prepare(schema).schema == schema


def test_a_pattern_beside_a_date_is_kept() -> None:
    prepared = prepare({"type": "string", "format": "date", "pattern": "^2", "allOf": [{"minLength": 1}]}).schema
    assert prepared["pattern"] == "^2"
    assert prepared["allOf"][0] == {"minLength": 1}
    assert "02-29" in prepared["allOf"][1]["pattern"]


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(prepare({"type": "string", "format": name}).schema["pattern"])


@given(year=st.integers(0, 9999), month=st.integers(0, 13), day=st.integers(0, 32))
def test_dates_are_those_of_the_calendar(year: int, month: int, day: int) -> None:
    text = f"{year:04}-{month:02}-{day:02}"
    try:
        datetime.date.fromisoformat(text)
        is_date = True
    except ValueError:
        is_date = False
    assert bool(_pattern("date").match(text)) == is_date
    assert bool(_pattern("date-time").match(f"{text}T23:59:59Z")) == is_date


@pytest.mark.parametrize("year", [*range(1, 500), *range(1896, 2004), 2096, 2100, 2400, 9996])
def test_leap_years(year: int) -> None:
    is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    assert bool(_pattern("date").match(f"{year:04}-02-29")) == is_leap


@pytest.mark.parametrize(
    ("text", "is_time"),
    [
        ("00:00:00Z", True),
        ("23:59:59.123456789+23:59", True),
        ("12:30:45-08:00", True),
        ("24:00:00Z", False),
        ("12:60:00Z", False),
        ("23:59:60Z", False),
        ("12:30:45", False),
        ("12:30Z", False),
        ("12:30:45.Z", False),
        ("12:30:45+24:00", False),
    ],
)
def test_times(text: str, is_time: bool) -> None:
    assert bool(_pattern("time").match(text)) == is_time
