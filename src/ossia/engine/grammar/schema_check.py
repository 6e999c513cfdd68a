"""What of a JSON Schema can be enforced.

llguidance refuses most of what it does not enforce, without saying where. Here it is found first and named by its
place; what llguidance enforces only nearly (dates) or only in some positions (`additionalItems`) is made good or
refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import unquote

from ossia.core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

ENFORCED = (
    "type, enum, const, anyOf, oneOf, allOf, $ref, properties, required, additionalProperties, patternProperties, "
    "minProperties, maxProperties, items, prefixItems, minItems, maxItems, minLength, maxLength, pattern, format, "
    "minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf"
)
"""The keywords that a grammar enforces."""

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

_YEAR = r"(?:[1-9]\d{3}|0[1-9]\d{2}|00[1-9]\d|000[1-9])"
_LEAP_YEAR = r"(?:\d{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    rf"|02-(?:0[1-9]|1\d|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
# RFC 3339 without leap seconds (which are right only in some minutes) and without the year 0. The library's own
# patterns would let the 29th of February through in every year.
_PATTERNS = {
    "date": f"^{_DATE}$".replace(r"\d", "[0-9]"),
    "time": f"^{_TIME}$".replace(r"\d", "[0-9]"),
    "date-time": f"^{_DATE}T{_TIME}$".replace(r"\d", "[0-9]"),
}
FORMATS = (*_PATTERNS, "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
"""The values of `format` that are enforced."""

_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_APPLICATORS = ("allOf", "anyOf", "oneOf", "$ref")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = ("items", "additionalItems", "additionalProperties")
_MAX_NAMED = 5


class PreparedSchema(NamedTuple):
    """A schema without what asserts nothing, and notes on what was left out though it asserts something."""

    schema: dict[str, object]
    notes: tuple[str, ...]


def prepare_schema(schema: object, *, param: str, max_optional: int, is_strict: bool) -> PreparedSchema:
    """Readies decoded JSON for compilation. Changes `schema` in place.

    Args:
        schema: it.
        param: the request's parameter, for errors.
        max_optional: how many properties of one object may be left out.
        is_strict: see ToolGrammar.

    Raises:
        InvalidInputError: is_strict, and something in it cannot be enforced; names the places.
    """
    if schema is True:
        return PreparedSchema({}, ())
    if not isinstance(schema, dict):
        raise InvalidInputError("the JSON Schema false allows no output at all; give one that does", param=param)
    root = cast("dict[str, object]", schema)
    root.pop("x-guidance", None)  # the compiler's options are the engine's to set
    problems: list[str] = []
    for place, node in _subschemas(root):
        problems += [f"{problem} at {place}" for problem in _prepare_node(node, max_optional)]
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


def _prepare_node(node: dict[str, object], max_optional: int) -> list[str]:
    """Takes out of one schema what cannot be enforced; names what of it asserts something."""
    problems: list[str] = []
    for keyword, neutral in _UNENFORCED.items():
        if keyword in node:
            value = node.pop(keyword)
            if value != neutral or type(value) is not type(neutral):
                problems.append(repr(keyword))
    if "additionalItems" in node and any(keyword in node for keyword in _APPLICATORS):
        node.pop("additionalItems")
        problems.append("'additionalItems' beside 'allOf', 'anyOf', 'oneOf' or '$ref'")
    for keyword in _COUNTS:
        value = node.get(keyword)
        if isinstance(value, float) and value.is_integer():
            node[keyword] = int(value)  # JSON knows no difference
    properties, required = node.get("properties"), node.get("required")
    if isinstance(properties, dict):
        num_optional = len(properties) - (len(required) if isinstance(required, list) else 0)
        if num_optional > max_optional:
            node.pop("properties")
            problems.append(f"{num_optional} optional properties (at most {max_optional})")
    return problems + _prepare_format(node)


def _prepare_format(node: dict[str, object]) -> list[str]:
    name = node.get("format")
    types = node.get("type", "string")
    holds_strings = types == "string" or (isinstance(types, list) and "string" in types)
    if not isinstance(name, str) or not holds_strings:
        return []
    if name not in FORMATS:
        return [f"the format {node.pop('format')!r}"]
    pattern = _PATTERNS.get(name)
    if pattern is not None:
        node.pop("format")
        if "pattern" in node:
            rest = node.get("allOf")
            node["allOf"] = [*(rest if isinstance(rest, list) else []), {"pattern": pattern}]
        else:
            node["pattern"] = pattern
    return []


def _subschemas(root: dict[str, object]) -> Iterator[tuple[str, dict[str, object]]]:
    """Every schema within a schema, or that a `$ref` of it leads to, once, with its place as a JSON pointer."""
    stack: list[tuple[str, object]] = [("#", root)]
    seen: set[int] = set()
    while stack:
        place, node = stack.pop()
        if not isinstance(node, dict) or id(cast("object", node)) in seen:
            continue
        node = cast("dict[str, object]", node)
        seen.add(id(node))
        inner: list[tuple[str, object]] = [(f"{place}/{key}", node[key]) for key in _SINGLE if key in node]
        for key in _MAPS:
            if isinstance(node.get(key), dict):
                named = cast("dict[str, object]", node[key])
                inner += [(f"{place}/{key}/{_escape(name)}", child) for name, child in named.items()]
        for key in _LISTS:
            if isinstance(node.get(key), list):
                inner += [(f"{place}/{key}/{i}", child) for i, child in enumerate(cast("list[object]", node[key]))]
        target = node.get("$ref")
        if isinstance(target, str) and target.startswith("#/"):
            inner.append((target, _resolve(root, target)))
        stack += reversed(inner)
        yield place, node


def _resolve(root: object, pointer: str) -> object:
    """What a JSON pointer within the document leads to; None if nothing."""
    node = root
    for part in unquote(pointer[2:]).split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict):
            node = cast("dict[str, object]", node).get(name)
        elif isinstance(node, list) and name.isdigit() and int(name) < len(cast("list[object]", node)):
            node = cast("list[object]", node)[int(name)]
        else:
            return None
    return node


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
