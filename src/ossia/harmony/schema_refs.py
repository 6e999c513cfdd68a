"""References inside a JSON Schema: following them, and naming the definitions that refer to themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias, cast
from urllib.parse import unquote

from ossia.core.errors import InvalidInputError
from ossia.harmony.json_text import JsonValue

Schema: TypeAlias = Mapping[str, JsonValue]

_STRUCTURE = (
    "properties",
    "required",
    "patternProperties",
    "additionalProperties",
    "items",
    "prefixItems",
    "allOf",
    "anyOf",
    "oneOf",
    "$ref",
)


class Resolved(NamedTuple):
    schema: Schema  # without $ref: the definition, overlaid with what stood beside the reference
    pointers: tuple[str, ...]  # the references followed
    recursive: str | None  # the reference that is being written out already, if it came to one


class References:
    """Follows the references of one schema.

    Attributes:
        active: references being written out, outermost first. The whole schema counts as one from the start.
    """

    def __init__(self, root: object) -> None:
        self.active = ["#"]
        self._root = root
        self._names: dict[str, str] = {}

    def resolve(self, schema: Schema) -> Resolved:
        """Follows `$ref`, and an `allOf` of one member, which is how older writers put text beside a reference."""
        if "$ref" not in schema and "allOf" not in schema:
            return Resolved(schema, (), None)
        pointers: list[str] = []
        while True:
            all_of = array_of(schema, "allOf")
            if isinstance(pointer := schema.get("$ref"), str):
                beside = {key: value for key, value in schema.items() if key not in ("$ref", "$defs", "definitions")}
                if pointer in self.active:
                    return Resolved(beside, tuple(pointers), pointer)
                if pointer in pointers:
                    raise InvalidInputError(f"the reference {pointer!r} leads back to itself", param="schema")
                target = self._look_up(pointer)
                if isinstance(target, Mapping) and _clash(target, beside):
                    notes = {key: value for key, value in beside.items() if key not in _STRUCTURE}
                    return Resolved({**notes, "allOf": [{"$ref": pointer}, beside]}, tuple(pointers), None)
                pointers.append(pointer)
            elif len(all_of) == 1 and isinstance(all_of[0], Mapping):
                beside = {key: value for key, value in schema.items() if key != "allOf"}
                target = all_of[0]
                if _clash(target, beside):
                    return Resolved(schema, tuple(pointers), None)
            else:
                return Resolved(schema, tuple(pointers), None)
            if isinstance(target, bool):
                return Resolved(beside if target else {**beside, "not": True}, tuple(pointers), None)
            schema = {**as_schema(target), **beside}

    def _look_up(self, pointer: str) -> JsonValue:
        missing = InvalidInputError(
            f"the reference {pointer!r} leads nowhere in this schema; put the definition under $defs and refer to it "
            "as '#/$defs/Name'",
            param="schema",
        )
        if not pointer.startswith("#"):
            raise missing
        fragment = unquote(pointer[1:])
        place = cast("JsonValue", self._root)
        if fragment and not fragment.startswith("/"):
            return self._anchor(fragment, missing)
        for raw in fragment.split("/")[1:]:
            step = raw.replace("~1", "/").replace("~0", "~")
            if isinstance(place, Mapping) and step in place:
                place = place[step]
            elif isinstance(place, list | tuple) and step.isdecimal() and int(step) < len(place):
                place = place[int(step)]
            else:
                raise missing
        return place

    def _anchor(self, name: str, missing: InvalidInputError) -> JsonValue:
        root = as_schema(self._root)
        for key in ("$defs", "definitions"):
            for value in object_of(root, key).values():
                if isinstance(value, Mapping) and value.get("$anchor") == name:
                    return value
        raise missing

    def name(self, pointer: str) -> str:
        if pointer not in self._names:
            last = unquote(pointer).rstrip("/").rsplit("/", 1)[-1].lstrip("#")
            stem = re.sub(r"\W", "_", last) or "Arguments"
            stem = f"_{stem}" if stem[0].isdigit() else stem
            taken = set(self._names.values())
            name, n = stem, 2
            while name in taken:
                name, n = f"{stem}{n}", n + 1
            self._names[pointer] = name
        return self._names[pointer]


def as_schema(value: object) -> Schema:
    if isinstance(value, Mapping):
        return cast("Schema", value)
    raise InvalidInputError(
        f"{type(value).__name__} stands where a JSON Schema should; use an object, true or false", param="schema"
    )


def array_of(schema: Schema, key: str) -> Sequence[JsonValue]:
    value = schema.get(key)
    return value if value is not None and isinstance(value, list | tuple) else ()


def object_of(schema: Schema, key: str) -> Mapping[str, JsonValue]:
    value = schema.get(key)
    return value if isinstance(value, Mapping) else {}


def _clash(target: Schema, beside: Schema) -> bool:
    """Whether both ask for something of the same kind, so that one cannot just be laid over the other."""
    return any(key in target and key in beside for key in _STRUCTURE)
