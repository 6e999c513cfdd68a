"""Frozen dataclasses from the tables of TOML and JSON files, with their types checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ossia.core.errors import InvalidInputError

T = TypeVar("T")


def build_config(kind: type[T], raw: object, *, section: str) -> T:
    """Build a dataclass from a table of a TOML or JSON file; lists become tuples.

    Args:
        kind: the dataclass. Its annotations say what is allowed: numbers, strings, tuples, mappings, and unions.
        raw: the table.
        section: its name, for messages.

    Raises:
        InvalidInputError: a key is unknown, absent though it has no default, or of a wrong type.
    """
    if not isinstance(raw, Mapping):
        raise InvalidInputError(f"[{section}] must be a table, got {raw!r}", param=section)
    table = cast("Mapping[str, object]", raw)
    known = {field.name for field in dataclasses.fields(cast("Any", kind))}
    unknown = set(table) - known
    if unknown:
        raise InvalidInputError(
            f"unknown key in [{section}]: {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}",
            param=section,
        )
    values = {
        key: tuple(cast("list[object]", value)) if isinstance(value, list) else value for key, value in table.items()
    }
    hints = get_type_hints(kind)
    for key, value in values.items():
        if not _fits(value, hints[key]):
            raise InvalidInputError(
                f"{section}.{key} must be of type {getattr(hints[key], '__name__', hints[key])}, got {value!r}",
                param=f"{section}.{key}",
            )
    try:
        return kind(**cast("dict[str, Any]", values))
    except TypeError as error:
        raise InvalidInputError(f"[{section}]: {error}", param=section) from error


def _fits(value: object, hint: Any) -> bool:
    """Whether a TOML value fits the annotation of a field; whole numbers do as fractions, True is no number."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Union or origin is UnionType:
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = cast("tuple[object, ...]", value)
        if arguments[1:] == (...,):
            return all(_fits(item, arguments[0]) for item in items)
        return len(items) == len(arguments) and all(map(_fits, items, arguments))
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(item, arguments[1]) for item in cast("Mapping[str, object]", value).values()
        )
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint)
