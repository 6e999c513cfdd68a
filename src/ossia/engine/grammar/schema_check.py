"""What of a JSON Schema can be enforced: finds, by place, the keywords that cannot, before llguidance sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from ossia.core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

ENFORCED = (
    "type, enum, const, anyOf, oneOf, allOf, $ref, properties, required, additionalProperties, patternProperties, "
    "minProperties, maxProperties, items, prefixItems, minItems, maxItems, minLength, maxLength, pattern, format, "
    "minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf"
)
"""The keywords that a grammar enforces."""
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
"""The values of `format` that are enforced."""

# Assertions that no grammar of the engine expresses, with the value at which each asserts nothing.
_UNENFORCED: dict[str, object] = {
    "uniqueItems": False,
    "not": False,
    "if": None,
    "then": None,
    "else": None,
    "contains": None,
    "minContains": None,
    "maxContains": None,
    "propertyNames": True,
    "dependencies": {},
    "dependentRequired": {},
    "dependentSchemas": {},
    "unevaluatedItems": True,
    "unevaluatedProperties": True,
    "$dynamicRef": None,
    "$recursiveRef": None,
}
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalItems", "additionalProperties")
_MAX_NAMED = 5


class PreparedSchema(NamedTuple):
    """A schema without what asserts nothing, and notes on what was left out though it asserts something."""

    schema: dict[str, object]
    notes: tuple[str, ...]


def prepare_schema(schema: object, *, param: str, is_strict: bool) -> PreparedSchema:
    """Readies decoded JSON for compilation. Changes `schema` in place.

    Raises:
        InvalidInputError: is_strict, and a keyword or format in it cannot be enforced; names all such places.
    """
    if schema is True:
        return PreparedSchema({}, ())
    if not isinstance(schema, dict):
        raise InvalidInputError("the JSON Schema false allows no output at all; give one that does", param=param)
    root = cast("dict[str, object]", schema)
    root.pop("x-guidance", None)  # the compiler's options are the engine's to set
    problems: list[str] = []
    for place, node in _subschemas(root):
        for keyword, neutral in _UNENFORCED.items():
            if keyword in node:
                value = node.pop(keyword)
                if value != neutral or type(value) is not type(neutral):
                    problems.append(f"{keyword!r} at {place}")
        if isinstance(node.get("format"), str) and _holds_strings(node) and node["format"] not in FORMATS:
            problems.append(f"the format {node.pop('format')!r} at {place}")
    if not problems:
        return PreparedSchema(root, ())
    named = ", ".join(problems[:_MAX_NAMED]) + (", ..." if len(problems) > _MAX_NAMED else "")
    if is_strict:
        raise InvalidInputError(
            f"the JSON Schema cannot be enforced: {named}. Enforced are the keywords {ENFORCED}, and the formats "
            f"{', '.join(FORMATS)}",
            param=param,
        )
    return PreparedSchema(root, (f"not enforced: {named}",))


def _holds_strings(node: dict[str, object]) -> bool:
    types = node.get("type", "string")
    return types == "string" or (isinstance(types, list) and "string" in types)


def _subschemas(root: dict[str, object]) -> Iterator[tuple[str, dict[str, object]]]:
    """Every schema within a schema, with its place as a JSON pointer. References may lead to further places."""
    stack: list[tuple[str, object]] = [("#", root)]
    while stack:
        place, node = stack.pop()
        if not isinstance(node, dict):
            continue
        node = cast("dict[str, object]", node)
        yield place, node
        inner: list[tuple[str, object]] = [(f"{place}/{key}", node[key]) for key in _SINGLE if key in node]
        for key in _MAPS:
            if isinstance(node.get(key), dict):
                named = cast("dict[str, object]", node[key])
                inner += [(f"{place}/{key}/{_escape(name)}", child) for name, child in named.items()]
        for key in (*_LISTS, "items"):
            if isinstance(node.get(key), list):
                inner += [(f"{place}/{key}/{i}", child) for i, child in enumerate(cast("list[object]", node[key]))]
        stack += reversed(inner)


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
