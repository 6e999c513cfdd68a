"""Made-up functions: a verb and a noun, with parameters, and requests that call for them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from ossia.harmony.content import FunctionTool
from ossia.tasks.field_kinds import CUSTOM, draw_field, draw_fields, draw_kinds
from ossia.tasks.fields import Field
from ossia.tasks.pools import Pool, load_list

VERBS = (
    "get", "find", "fetch", "show", "read", "check", "look up", "search", "list", "count", "book", "reserve", "order",
    "buy", "rent", "create", "add", "make", "open", "start", "schedule", "plan", "register", "cancel", "delete",
    "remove", "close", "stop", "send", "share", "print", "move", "update", "change", "rename", "set", "rate", "track",
    "repair", "copy", "archive", "approve", "estimate", "compare", "export", "upload", "review", "save", "mark",
    "pay for",
)  # fmt: skip
WAYS = (
    "{R}.", "{R}.", "{R}", "{r}", "Please {r}.", "Can you {r}?", "Could you {r}?", "I want you to {r}.",
    "I'd like to {r}.",
    "I need to {r}.", "Would you {r}, please?", "{R}, please.", "Help me {r}.", "Now {r}.", "Let's {r}.",
    "I have to {r}, can you do it?", "Go ahead and {r}.",
)  # fmt: skip


class Action(NamedTuple):
    """What a function does."""

    verb: str
    noun: str

    @property
    def text(self) -> str:
        """``book the flight``."""
        return f"{self.verb} the {self.noun}"


@cache
def load_actions() -> Pool[Action]:
    """All verbs with all nouns; one in ten is held out."""
    return Pool("function", (Action(verb, noun) for verb in VERBS for noun in load_list("nouns")), key=str)


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    """A made-up function, and values for its parameters.

    Attributes:
        action: what it does.
        name: as declared.
        fields: its parameters, with values that a request may give them, in order.
        names: of the fields, as declared.
        required: which of the names must be given.
        tool: the declaration.
    """

    action: Action
    name: str
    fields: tuple[Field, ...]
    names: tuple[str, ...]
    required: tuple[str, ...]
    tool: FunctionTool


def draw_function(
    rng: random.Random,
    *,
    held_out: bool,
    max_fields: int = 4,
    taken: Sequence[Action] = (),
    is_drill: bool = False,
) -> Function:
    """Draw a function of one side, whose verb and noun differ from those of the functions beside it.

    Args:
        rng: the generator.
        held_out: which side.
        max_fields: how many parameters it has at most.
        taken: what the functions beside it do.
        is_drill: whether all its parameters are of the kind CUSTOM, to be copied without knowing what they mean.
    """
    while True:
        action = load_actions().draw(rng, held_out=held_out)
        if not any(action.noun == other.noun or action.verb == other.verb for other in taken):
            break
    is_camel = rng.random() < 0.2
    number = rng.randint(1, max_fields)
    kinds = [CUSTOM] * number if is_drill else draw_kinds(rng, number)
    fields = tuple(draw_fields(kinds, rng, held_out=held_out))
    names = tuple(_camel(field.name) if is_camel else field.name for field in fields)
    num_required = rng.randint(1, len(fields))
    required = tuple(name for place, name in enumerate(names) if place < num_required)
    name = f"{action.verb} {action.noun}".replace(" ", "_")
    return _declare(action, _camel(name) if is_camel else name, fields=fields, names=names, required=required, rng=rng)


def _declare(
    action: Action,
    name: str,
    *,
    fields: tuple[Field, ...],
    names: tuple[str, ...],
    required: tuple[str, ...],
    rng: random.Random,
) -> Function:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: dict(field.schema) for name, field in zip(names, fields, strict=True)},
        "required": list(required),
    }
    if rng.random() < 0.3:
        schema["additionalProperties"] = False
    verb = action.verb.capitalize()
    description = rng.choice((f"{verb} the {action.noun}.", f"{verb} one {action.noun}", f"Used to {action.text}.", ""))
    tool = FunctionTool(name, description=description, parameters=schema)
    return Function(action=action, name=name, fields=fields, names=names, required=required, tool=tool)


def redraw_values(function: Function, rng: random.Random, *, held_out: bool) -> Function:
    """The same function with other values; the declared schema stays."""
    fields: list[Field] = []
    for field in function.fields:
        if "enum" in field.schema:
            value = rng.choice([option for option in field.schema["enum"] if option != field.value])
            said = field.said[::-1].replace(field.value[::-1], value[::-1], 1)[::-1]
            fields.append(Field(**{**_as_dict(field), "value": value, "said": said, "shown": value}))
            continue
        if field.schema.get("type") == "boolean":
            fields.append(field)
            continue
        while True:
            other = draw_field(field.kind, rng, held_out=held_out, name=field.name)
            if other.value != field.value and other.schema.get("type") == field.schema.get("type"):
                break
        fields.append(Field(**{**_as_dict(other), "name": field.name, "schema": field.schema}))
    return Function(
        action=function.action,
        name=function.name,
        fields=tuple(fields),
        names=function.names,
        required=function.required,
        tool=function.tool,
    )


def _as_dict(field: Field) -> dict[str, Any]:
    return {name: getattr(field, name) for name in ("kind", "name", "schema", "value", "said", "shown")}


class Request(NamedTuple):
    """A request in words.

    Attributes:
        text: the words.
        arguments: what they give.
        shown: the arguments' values as they stand in the text.
    """

    text: str
    arguments: dict[str, Any]
    shown: dict[str, str]


def draw_arguments(function: Function, rng: random.Random, *, without: str | None = None) -> list[int]:
    """Places of the fields that a request gives: all that are required but one, and some of the others."""
    return [
        place
        for place, name in enumerate(function.names)
        if name != without and (name in function.required or rng.random() < 0.6)
    ]


def word_request(function: Function, given: Sequence[int], rng: random.Random) -> Request:
    """Say a request: as a sentence, or with a list of values."""
    arguments = {function.names[place]: function.fields[place].value for place in given}
    shown = {function.names[place]: function.fields[place].shown for place in given}
    spoken = rng.sample(given, len(given))
    action = function.action
    noun = rng.choice(("the", "a", "my", "the", "this")) + f" {action.noun}"
    noun = noun.replace("a ", "an ", 1) if noun.startswith("a ") and action.noun[0] in "aeiou" else noun
    kind = rng.random()
    if kind < 0.12 and given:
        listed = ", ".join(f"{function.fields[place].label}: {function.fields[place].shown}" for place in spoken)
        return Request(f"{action.verb} {noun} ({listed})", arguments, shown)
    if kind < 0.2 and given:
        listed = ", ".join(f"{function.fields[place].label} {function.fields[place].shown}" for place in spoken)
        return Request(f"use {function.name} with {listed}", arguments, shown)
    # What begins with "and" or "with" reads better behind the rest.
    spoken.sort(key=lambda place: function.fields[place].said.startswith(("and ", "with ", "without ")))
    return Request(" ".join([action.verb, noun, *(function.fields[place].said for place in spoken)]), arguments, shown)


def wrap_request(text: str, rng: random.Random) -> str:
    """A request as a whole message."""
    return rng.choice(WAYS).format(r=text, R=text[0].upper() + text[1:])


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
