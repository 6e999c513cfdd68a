"""JSON Schema as the TypeScript type that the models were trained to read.

The layout is openai-harmony's, byte for byte, wherever that renders a schema right; what it has no form for
(references, anyOf, allOf, const, enums that are not of text, tuples, maps, limits) is laid out in the same manner.
A type is one line unless it holds an object, or a union whose alternatives carry comments: then each alternative has a
line of its own.

References are written out in place. A definition that refers to itself is written out once, behind `/* Name */`, and
is called `Name` inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ossia.core.errors import InvalidInputError
from ossia.harmony.json_text import JsonValue, compact_json, lines
from ossia.harmony.schema_refs import References, Schema, array_of, as_schema, object_of

MAX_NESTING = 64
"""How deep types may lie in one another."""

MAX_NODES = 20_000
"""How many types one schema may come to once its references are written out."""

MAX_CHARS = 4_000_000
"""How long the texts of these types may be together; what lies inside another counts again."""

LIMITS = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minProperties",
    "maxProperties",
)
_LIMITS = frozenset(LIMITS)
_OBJECT_KEYS = frozenset({"properties", "patternProperties", "additionalProperties"})
_PRIMITIVES = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}
_PLAIN = re.compile(r'[^"\\\x00-\x1f\u2028\u2029]*')
_EMPTY: Schema = {}


def schema_to_typescript(schema: object, *, indent: str = "") -> str:
    """Renders a JSON Schema.

    Args:
        schema: any JSON value; only objects and booleans are schemas.
        indent: put before each line but the first.

    Raises:
        InvalidInputError: not a schema, a reference that leads nowhere, or one nested or grown beyond the bounds.
    """
    return _Writer(schema).root_type(indent)


class _Type(NamedTuple):
    text: str
    is_atom: bool = True  # False: needs parentheses inside an array, an intersection or a union's member
    has_null: bool = False


class _Union(NamedTuple):
    variants: Sequence[JsonValue]
    types: Sequence[_Type]
    is_tall: bool  # one alternative a line


class _Writer:
    """Writes one schema; keeps which references are being written out, and how much has been written."""

    def __init__(self, root: object) -> None:
        self._root = root
        self._refs = References(root)
        self._recursive: set[str] = set()
        self._num_nodes = 0
        self._num_chars = 0
        self._depth = 0

    def root_type(self, indent: str) -> str:
        text = self.type_of(self._root, indent).text
        return f"/* {self._refs.name('#')} */ {text}" if "#" in self._recursive else text

    # ---- types ----

    def type_of(self, schema: object, indent: str) -> _Type:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES or self._num_chars > MAX_CHARS or self._depth >= MAX_NESTING:
            raise InvalidInputError(
                f"the JSON Schema is nested deeper than {MAX_NESTING} levels, or comes to more than {MAX_NODES} types "
                f"or {MAX_CHARS} characters with its references written out; simplify it",
                param="schema",
            )
        if schema is True:
            return _Type("any")
        if schema is False:
            return _Type("never")
        self._depth += 1
        found = self._refs.resolve(as_schema(schema))
        if found.recursive is not None:
            self._recursive.add(found.recursive)
            result = _Type(self._refs.name(found.recursive))
        else:
            self._refs.active += found.pointers
            result = self._structure(found.schema, indent)
            del self._refs.active[len(self._refs.active) - len(found.pointers) :]
            for pointer in found.pointers:
                if pointer in self._recursive:
                    result = result._replace(text=f"/* {self._refs.name(pointer)} */ {result.text}")
        self._depth -= 1
        self._num_chars += len(result.text)
        return _with_null(result) if found.schema.get("nullable") is True else result

    def _structure(self, schema: Schema, indent: str) -> _Type:
        """The type of a schema without reference: what its keywords ask for, all at once."""
        if schema.get("not") in (True, _EMPTY):
            return _Type("never")
        if "const" in schema:
            return _literals([schema["const"]])
        enum = array_of(schema, "enum")
        if enum:
            return _literals(enum)
        parts: list[_Type] = []
        alternatives = [key for key in ("oneOf", "anyOf") if array_of(schema, key)]
        all_of = array_of(schema, "allOf")
        if not (alternatives or all_of) or _has_members(schema):
            parts.append(self._by_type(schema, indent))
        parts += [self.type_of(member, indent) for member in all_of]
        parts += [self._union_type(schema, key, indent) for key in alternatives]
        said = [part for part in parts if part.text != "any"]
        if not said:
            return self._by_type(schema, indent) if all_of or alternatives else _Type("any")
        if len(said) == 1:
            return said[0]
        texts = list(dict.fromkeys(part.text if part.is_atom else f"({part.text})" for part in said))
        return _Type(" & ".join(texts), is_atom=len(texts) == 1, has_null=all(part.has_null for part in said))

    def _by_type(self, schema: Schema, indent: str) -> _Type:
        kind = schema.get("type")
        if isinstance(kind, Sequence) and not isinstance(kind, str):
            types = [self._named_type(name, schema, indent) for name in kind if isinstance(name, str)]
            if types:
                return _join(types)
        if isinstance(kind, str):
            return self._named_type(kind, schema, indent)
        if _is_object(schema):
            return self._named_type("object", schema, indent)
        if "items" in schema or "prefixItems" in schema:
            return self._named_type("array", schema, indent)
        return _Type("any")

    def _named_type(self, name: str, schema: Schema, indent: str) -> _Type:
        if name == "object":
            return _Type(self._object(schema, indent))
        if name == "array":
            return _Type(self._array_type(schema, indent))
        if name == "null":
            return _Type("null", has_null=True)
        return _Type(_PRIMITIVES.get(name, "any"))

    def _array_type(self, schema: Schema, indent: str) -> str:
        items = schema.get("items")
        heads = array_of(schema, "prefixItems")
        rest: JsonValue = items
        if not heads and isinstance(items, Sequence) and not isinstance(items, str):
            heads, rest = list(items), schema.get("additionalItems")
        if heads:
            members = [self.type_of(head, indent).text for head in heads]
            if isinstance(rest, Mapping):
                members.append(f"...{self._element(rest, indent)}[]")
            return f"[{', '.join(members)}]"
        if rest is None:
            return "Array<any>"
        return f"{self._element(rest, indent)}[]"

    def _element(self, schema: JsonValue, indent: str) -> str:
        element = self.type_of(schema, indent)
        return element.text if element.is_atom else f"({element.text})"

    # ---- unions ----

    def _union(self, schema: Schema, key: str, indent: str) -> _Union | None:
        """What the alternatives come to; None if they add nothing to the type beside them, as `required` does not."""
        variants = array_of(schema, key)
        types = [self.type_of(variant, f"{indent}   ") for variant in variants]
        is_one_of = key == "oneOf"
        if all(t.text == "any" for t in types) and not (is_one_of and "type" not in schema):
            return None
        has_comments = any(_tail(self._annotations(v), with_text=True) for v in variants)
        is_tall = is_one_of or has_comments or any("\n" in t.text for t in types)
        return _Union(variants, types, is_tall=is_tall)

    def _union_type(self, schema: Schema, key: str, indent: str) -> _Type:
        """A union in the place of a type; the tall form starts on a new line."""
        union = self._union(schema, key, indent)
        if union is None:
            return _Type("any")
        if not union.is_tall:
            return _join(union.types)
        tails = [_tail(self._annotations(variant), quote_enum=True, with_text=True) for variant in union.variants]
        text = "".join(f"\n{indent} | {t.text}{tail}" for t, tail in zip(union.types, tails, strict=True))
        return _Type(text, is_atom=False, has_null=any(t.has_null for t in union.types))

    # ---- objects ----

    def _object(self, schema: Schema, indent: str) -> str:
        required = {name for name in array_of(schema, "required") if isinstance(name, str)}
        out = [_comment(schema.get("description"), indent), "{\n"]
        for key, value in object_of(schema, "properties").items():
            out.append(self._property(key, value, indent, is_required=key in required))
        for pattern, value in object_of(schema, "patternProperties").items():
            text = self.type_of(value, f"{indent}    ").text
            out.append(f"{indent}[key: string]: {text}, // keys: {_one_line(pattern)}\n")
        extra = schema.get("additionalProperties")
        if extra is True or isinstance(extra, Mapping):
            text = self.type_of(extra, f"{indent}    ").text
            out.append(f"{indent}[key: string]: {text},{_tail(self._annotations(extra))}\n")
        out.append(f"{indent}}}")
        return "".join(out)

    def _property(self, key: object, value: JsonValue, indent: str, *, is_required: bool) -> str:
        notes = self._annotations(value)
        union = self._property_union(value, indent)
        title = notes.get("title")
        out = [f"{_comment(title, indent)}{indent}//\n"] if isinstance(title, str) else []
        label = f"{indent}{_key(key)}{'' if is_required else '?'}:"
        if union is None or not union.is_tall:
            type_ = _join(union.types) if union is not None else self.type_of(value, f"{indent}    ")
            out += [_comment(notes.get("description"), indent), _examples(notes, indent)]
            out.append(f"{label} {type_.text},{_tail(notes)}\n")
            return "".join(out)
        out.append(_examples(notes, indent))
        description = notes.get("description")
        first = self._annotations(union.variants[0]).get("description")
        is_said_above = isinstance(description, str) and description != first
        if is_said_above:
            out.append(_comment(description, indent))
        out += [f"{indent}// {remark}\n" for remark in _remarks(notes)]
        out.append(f"{label}\n")
        for i, (variant, type_) in enumerate(zip(union.variants, union.types, strict=True)):
            note = self._annotations(variant)
            # As openai-harmony: the text above stands for the first alternative too.
            is_new = not (i == 0 and is_said_above) and note.get("description") != description
            out.append(f"{indent} | {type_.text}{_tail(note, with_text=is_new)}\n")
        out.append(f"{indent},\n")
        return "".join(out)

    def _property_union(self, value: JsonValue, indent: str) -> _Union | None:
        """The alternatives of a property that is a union and nothing else."""
        if not isinstance(value, Mapping):
            return None
        found = self._refs.resolve(value)
        schema = found.schema
        key = "oneOf" if array_of(schema, "oneOf") else "anyOf"
        variants = array_of(schema, key)
        is_more = _has_members(schema) or "const" in schema or any(array_of(schema, k) for k in ("enum", "allOf"))
        if not variants or found.pointers or is_more or (key == "oneOf" and array_of(schema, "anyOf")):
            return None
        if schema.get("nullable") is True:
            schema = {**schema, key: [*variants, {"type": "null"}]}
        return self._union(schema, key, indent)

    def _annotations(self, schema: JsonValue) -> Schema:
        """The keywords that become comments: the schema's own, over those of the definition that it refers to."""
        return self._refs.resolve(schema).schema if isinstance(schema, Mapping) else _EMPTY


# ---- pieces of text ----


def _literals(values: Sequence[JsonValue]) -> _Type:
    texts = list(dict.fromkeys(compact_json(value) for value in values))
    return _Type(" | ".join(texts), is_atom=len(texts) == 1, has_null="null" in texts)


def _join(types: Iterable[_Type]) -> _Type:
    members = {t.text: t for t in types}
    return _Type(" | ".join(members), is_atom=len(members) == 1, has_null=any(t.has_null for t in members.values()))


def _with_null(type_: _Type) -> _Type:
    if type_.has_null or type_.text == "any":
        return type_
    return _Type(f"{type_.text} | null", is_atom=False, has_null=True)


def _comment(text: object, indent: str) -> str:
    return "".join(f"{indent}// {line}\n" for line in lines(text)) if isinstance(text, str) else ""


def _one_line(text: str) -> str:
    return " ".join(lines(text))


def _key(name: object) -> str:
    if not isinstance(name, str):
        raise InvalidInputError(f"{name!r} names a property in the JSON Schema; names are text", param="schema")
    return name if name.replace("$", "_").isidentifier() else compact_json(name)


def _examples(schema: Schema, indent: str) -> str:
    examples = array_of(schema, "examples")
    if not examples:
        return ""
    return "".join([f"{indent}// Examples:\n", *(f"{indent}// - {compact_json(example)}\n" for example in examples)])


def _default(schema: Schema, *, quote_enum: bool) -> str:
    value = schema["default"]
    if isinstance(value, str) and array_of(schema, "enum") and not quote_enum and _PLAIN.fullmatch(value):
        return f"default: {value}"
    return f"default: {compact_json(value)}"


def _remarks(schema: Schema, *, quote_enum: bool = False) -> list[str]:
    """Default, then limits; those of an array's elements too."""
    found = [_default(schema, quote_enum=quote_enum)] if "default" in schema else []
    found += _limits(schema)
    items = schema.get("items")
    if isinstance(items, Mapping) and (inner := _limits(items)):
        found.append(f"each item: {', '.join(inner)}")
    return found


def _limits(schema: Schema) -> list[str]:
    if _LIMITS.isdisjoint(schema):
        return []
    found: list[str] = []
    for key in LIMITS:
        value = schema.get(key)
        if value is None or value is False:
            continue
        text = value if isinstance(value, str) and _PLAIN.fullmatch(value) else compact_json(value)
        found.append(f"{key}: {text}")
    return found


def _tail(schema: Schema, *, quote_enum: bool = False, with_text: bool = False) -> str:
    """The comment behind a type: its description if asked for, default and limits."""
    remarks = ", ".join(_remarks(schema, quote_enum=quote_enum))
    description = schema.get("description") if with_text else None
    said = [_one_line(description)] if isinstance(description, str) else []
    said += [remarks] if remarks else []
    return f" // {' '.join(said)}" if said else ""


def _is_object(schema: Schema) -> bool:
    return not _OBJECT_KEYS.isdisjoint(schema) and any(isinstance(schema.get(key), Mapping) for key in _OBJECT_KEYS)


def _has_members(schema: Schema) -> bool:
    return _is_object(schema) or "items" in schema or "prefixItems" in schema
