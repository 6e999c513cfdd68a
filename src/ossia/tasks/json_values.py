"""Reading and comparing JSON that a model wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

INVALID = object()
"""What `read_json` returns for text that is no JSON, since null is a value."""
MAX_CHARS = 20_000


def read_json(text: str | None) -> Any:
    """The value of a text that is one JSON value, or INVALID. Keys that come twice make it invalid, and NaN does."""
    if text is None or len(text) > MAX_CHARS:
        return INVALID

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=collect, parse_constant=refuse)
    except (ValueError, RecursionError):
        return INVALID


def equal_json(a: Any, b: Any) -> bool:
    """Whether two values are the same JSON: 3 and 3.0 are, 1 and true are not; objects have no order."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        left, right = cast("Mapping[str, Any]", a), cast("Mapping[str, Any]", b)
        return left.keys() == right.keys() and all(equal_json(left[key], right[key]) for key in left)
    if isinstance(a, list) and isinstance(b, list):
        first, second = cast("list[Any]", a), cast("list[Any]", b)
        return len(first) == len(second) and all(map(equal_json, first, second))
    return type(a) is type(b) and a == b


def write_json(value: object) -> str:
    """Compact JSON, keys in their order, as the models write it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
