from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.tasks.json_values import INVALID, equal_json, read_json, write_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert equal_json(read_json(write_json(value)), value)


@given(VALUES, VALUES)
def test_equality_is_that_of_sorted_texts(a: Any, b: Any) -> None:
    def text(value: Any) -> str:
        return json.dumps(json.loads(json.dumps(value), parse_int=float), sort_keys=True)

    assert equal_json(a, b) == (text(a) == text(b)) or _is_large(a) or _is_large(b)


def _is_large(value: Any) -> bool:
    """Integers past 2^53 have no float of their own, and minus zero is written with its sign."""
    if isinstance(value, dict):
        return any(map(_is_large, value.values()))
    if isinstance(value, list):
        return any(map(_is_large, value))
    return isinstance(value, int | float) and (abs(value) > 2**53 or value == 0)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (3, 3.0, True),
        (1, True, False),
        (0, False, False),
        ("3", 3, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ([1, 2], [2, 1], False),
        (None, False, False),
    ],
)
def test_equality_of_types(a: Any, b: Any, same: bool) -> None:
    assert equal_json(a, b) is same


@pytest.mark.parametrize("text", [None, "", "{", '{"a":1}x', '{"a":1,"a":2}', "NaN", "[" * 5000, "1" * 30_000])
def test_what_is_no_json_is_invalid(text: str | None) -> None:
    assert read_json(text) is INVALID
