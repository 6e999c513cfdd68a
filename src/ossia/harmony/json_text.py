"""JSON values as text inside a prompt: compact, and total over what a JSON reader can give."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

from ossia.core.errors import InvalidInputError

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"

MAX_DEPTH = 64
"""Arrays and objects may lie this deep in one another."""

_LINE_END = re.compile("\r\n|[\n\r\u2028\u2029]")


def compact_json(value: object, *, depth: int = MAX_DEPTH) -> str:
    """Writes JSON without spaces, keys in their order, Unicode as it is, and floats as serde_json does.

    Raises:
        InvalidInputError: the value is not JSON, or lies deeper than `depth`.
    """
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return _int_text(value)
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, Mapping | list | tuple):
        if depth == 0:
            raise InvalidInputError(f"JSON is nested deeper than {MAX_DEPTH} levels; flatten it", param="schema")
        if isinstance(value, Mapping):
            items = cast("Mapping[object, object]", value).items()
            body = ",".join(f"{_key_text(key)}:{compact_json(item, depth=depth - 1)}" for key, item in items)
            return f"{{{body}}}"
        elements = cast("Sequence[object]", value)
        return f"[{','.join(compact_json(item, depth=depth - 1) for item in elements)}]"
    raise InvalidInputError(
        f"a {type(value).__name__} is not JSON; use null, booleans, numbers, text, arrays and objects", param="schema"
    )


def lines(text: str) -> list[str]:
    """The lines of a text. TypeScript's line ends count, so that each line can be made a comment of its own."""
    found = _LINE_END.split(text)
    return found if found[-1] else found[:-1]


def _key_text(key: object) -> str:
    if not isinstance(key, str):
        raise InvalidInputError(f"{key!r} cannot be a key in JSON; use text", param="schema")
    return json.dumps(key, ensure_ascii=False)


def _int_text(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # Python writes no more than sys.get_int_max_str_digits() digits
        raise InvalidInputError("a number in JSON has thousands of digits; use a shorter one", param="schema") from None


def _float_text(value: float) -> str:
    """Shortest digits that read back as the same number; 1e21 where Python would write 1e+21."""
    if not math.isfinite(value):
        raise InvalidInputError(f"{value} is not a number that JSON can hold; use a finite one", param="schema")
    digits, e, exponent = repr(value).partition("e")
    if not e:
        return digits
    if exponent == "-05":  # Python changes to exponents one power of ten before serde_json does.
        sign, digits = ("-", digits[1:]) if digits[0] == "-" else ("", digits)
        return f"{sign}0.0000{digits.replace('.', '')}"
    return f"{digits}e{int(exponent)}"
