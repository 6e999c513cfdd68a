"""A call's arguments: JSON text checked against the JSON Schema that the prompt declared.

Models write `"5"` for 5 and 5.0 for 5; such slips are mended here, anything else is answered with what was wrong.
Only the keywords that built-in declarations use are read: type, properties, required, items, enum, default.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from ossia.harmony.message import Message
from ossia.tools.base import FailureKind, ToolError

MAX_ARGUMENT_CHARS = 1_000_000


def parse_object(message: Message) -> dict[str, Any]:
    """The arguments as an object; an empty body is `{}`.

    Raises:
        ToolError: not JSON, or JSON of another kind.
    """
    text = message.text.strip()
    if not text:
        return {}
    if len(text) > MAX_ARGUMENT_CHARS:
        raise _invalid(message, f"the arguments have {len(text)} characters; at most {MAX_ARGUMENT_CHARS} are allowed")
    try:
        value = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise _invalid(message, f"the arguments are not valid JSON ({error}); send one JSON object") from error
    if not isinstance(value, dict):
        raise _invalid(message, f"the arguments are {_kind(value)}; send one JSON object")
    return cast("dict[str, Any]", value)


def read_arguments(message: Message, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with defaults filled in and slips of type mended.

    Unknown keys are dropped: the models invent harmless ones (`top_n` beside `topn`).

    Raises:
        ToolError: naming the argument, what was got and what is allowed.
    """
    given = parse_object(message)
    properties = cast("Mapping[str, Mapping[str, Any]]", schema.get("properties", {}))
    required = cast("Sequence[str]", schema.get("required", ()))
    values: dict[str, Any] = {}
    for name, rule in properties.items():
        value = given.get(name)
        if value is None and (name not in given or name not in required):
            if name in required:
                known = ", ".join(properties)
                raise _invalid(message, f"the argument '{name}' is missing; the arguments are: {known}")
            if "default" in rule:
                values[name] = rule["default"]
            continue
        try:
            values[name] = _coerce(value, rule)
        except ValueError as error:
            raise _invalid(message, f"the argument '{name}' {error}") from None
    return values


def _coerce(value: object, rule: Mapping[str, Any]) -> object:
    kinds = rule.get("type", ())
    names = (kinds,) if isinstance(kinds, str) else tuple(cast("Sequence[str]", kinds))
    if not names:
        return value
    # An exact fit first, so that ["number", "string"] keeps "5" as text.
    for pass_ in (_EXACT, _MENDED):
        for kind in names:
            ok, result = pass_[kind](value)
            if ok:
                if kind == "array" and "items" in rule:
                    result = [_coerce(item, rule["items"]) for item in cast("list[object]", result)]
                if "enum" in rule and result not in rule["enum"]:
                    raise ValueError(f"is {value!r}; it must be one of {list(rule['enum'])}")
                return result
    raise ValueError(f"is {_kind(value)}; it must be {' or '.join(names)}")


_Check = Callable[[object], tuple[bool, object]]


def _is_number(value: object) -> tuple[bool, object]:
    if isinstance(value, float) and value.is_integer():
        return True, int(value)
    return isinstance(value, int | float) and not isinstance(value, bool), value


def _mend_number(value: object) -> tuple[bool, object]:
    if isinstance(value, str) and len(value) < 40:
        try:
            number = float(value)
        except ValueError:
            return False, value
        if number == number and abs(number) != float("inf"):
            return True, int(number) if number.is_integer() else number
    return False, value


def _mend_boolean(value: object) -> tuple[bool, object]:
    words = {"true": True, "false": False}
    return (True, words[value.lower()]) if isinstance(value, str) and value.lower() in words else (False, value)


def _is_integer(value: object) -> tuple[bool, object]:
    ok, number = _is_number(value)
    return ok and isinstance(number, int), number


def _mend_integer(value: object) -> tuple[bool, object]:
    ok, number = _mend_number(value)
    return ok and isinstance(number, int), number


_EXACT: Mapping[str, _Check] = {
    "string": lambda value: (isinstance(value, str), value),
    "number": _is_number,
    "integer": _is_integer,
    "boolean": lambda value: (isinstance(value, bool), value),
    "array": lambda value: (isinstance(value, list), value),
    "object": lambda value: (isinstance(value, dict), value),
    "null": lambda value: (value is None, value),
}
_MENDED: Mapping[str, _Check] = {
    "string": lambda value: (isinstance(value, int | float) and not isinstance(value, bool), str(value)),
    "number": _mend_number,
    "integer": _mend_integer,
    "boolean": _mend_boolean,
    "array": lambda value: (isinstance(value, str), [value]),
    "object": lambda value: (False, value),
    "null": lambda value: (False, value),
}


def _kind(value: object) -> str:
    names: dict[type, str] = {dict: "an object", list: "an array", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _reject_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


def _invalid(message: Message, text: str) -> ToolError:
    return ToolError(f"Invalid arguments for {message.recipient}: {text}.", kind=FailureKind.INVALID_ARGUMENTS)
