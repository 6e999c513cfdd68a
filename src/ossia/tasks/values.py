"""How values of fields are drawn, with their JSON Schema and their text.

Values come from large lists, since copying an argument letter by letter is what a small model learns last.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from ossia.tasks.pools import draw_full_name, load_pool
from ossia.tasks.words import draw_word

NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip


DOMAINS = ("example.com", "example.org", "example.net")
ENDINGS = ("txt", "pdf", "csv", "png", "md")


class Value(NamedTuple):
    """A drawn value.

    Attributes:
        value: as JSON.
        schema: its JSON Schema, without a description.
        shown: as text.
    """

    value: Any
    schema: dict[str, Any]
    shown: str


Draw: TypeAlias = Callable[[random.Random, bool], Value]
"""Takes the generator, and whether names and words are held out."""
TextDraw: TypeAlias = Callable[[random.Random, bool], str]


def texts(draw: TextDraw) -> Draw:
    def drawn(rng: random.Random, held_out: bool) -> Value:
        value = draw(rng, held_out)
        return Value(value, {"type": "string"}, value)

    return drawn


def quoted_texts(draw: TextDraw) -> Draw:
    def drawn(rng: random.Random, held_out: bool) -> Value:
        value = draw(rng, held_out)
        return Value(value, {"type": "string"}, f'"{value}"')

    return drawn


def integers(low: int, high: int) -> Draw:
    def drawn(rng: random.Random, held_out: bool) -> Value:
        value = rng.randint(low, high)
        is_word = value < len(NUMBER_WORDS) and rng.random() < 0.15
        return Value(value, {"type": "integer"}, NUMBER_WORDS[value] if is_word else str(value))

    return drawn


def decimals(low: int, high: int, places: int) -> Draw:
    def drawn(rng: random.Random, held_out: bool) -> Value:
        units = 10**places
        whole, rest = divmod(rng.randint(low * units, high * units), units)
        if rest == 0 or rng.random() < 0.3:
            return Value(whole, {"type": "number"}, str(whole))
        text = f"{whole}.{rest:0{places}d}".rstrip("0")
        return Value(float(text), {"type": "number"}, text)

    return drawn


def choices(*options: str) -> Draw:
    def drawn(rng: random.Random, held_out: bool) -> Value:
        shown = rng.sample(options, rng.randint(2, min(4, len(options))))
        return Value((value := rng.choice(shown)), {"type": "string", "enum": shown}, value)

    return drawn


def draw_flag(rng: random.Random, held_out: bool) -> Value:
    value = rng.random() < 0.6
    return Value(value, {"type": "boolean"}, "yes" if value else "no")


def arrays(draw: Callable[[random.Random, bool], Any], schema: Mapping[str, Any]) -> Draw:
    def drawn(rng: random.Random, held_out: bool) -> Value:
        values: list[Any] = list(dict.fromkeys(draw(rng, held_out) for _ in range(rng.randint(1, 4))))
        texts = [str(value) for value in values]
        shown = texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
        return Value(values, {"type": "array", "items": dict(schema)}, shown)

    return drawn


def objects(parts: Mapping[str, Callable[[random.Random, bool], Any]], types: Mapping[str, str], text: str) -> Draw:
    def drawn(rng: random.Random, held_out: bool) -> Value:
        value = {name: draw(rng, held_out) for name, draw in parts.items()}
        properties = {name: {"type": types.get(name, "string")} for name in parts}
        schema = {"type": "object", "properties": properties, "required": list(parts)}
        return Value(value, schema, text.format(**value))

    return drawn


def draw_city(rng: random.Random, held_out: bool) -> str:
    return load_pool("cities").draw(rng, held_out=held_out)


def draw_first_name(rng: random.Random, held_out: bool) -> str:
    return load_pool("first_names").draw(rng, held_out=held_out)


def draw_person(rng: random.Random, held_out: bool) -> str:
    return draw_full_name(rng, held_out=held_out)


def draw_plain_word(rng: random.Random, held_out: bool) -> str:
    return draw_word(rng, held_out=held_out)


def draw_topic(rng: random.Random, held_out: bool) -> str:
    return load_pool("topics").draw(rng, held_out=held_out)


def draw_email(rng: random.Random, held_out: bool) -> str:
    name = draw_first_name(rng, held_out).lower()
    return f"{name}{rng.choice(('.', '_', ''))}{draw_plain_word(rng, held_out)}@{rng.choice(DOMAINS)}"


def draw_date(rng: random.Random, held_out: bool) -> str:
    return f"{rng.randint(2023, 2031)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def draw_time(rng: random.Random, held_out: bool) -> str:
    return f"{rng.randint(0, 23):02d}:{rng.choice((0, 15, 30, 45, rng.randint(0, 59))):02d}"


def draw_code(rng: random.Random, held_out: bool) -> str:
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
    return f"{letters}{rng.choice(('-', '', ''))}{rng.randint(10, 99999)}"


def draw_title(rng: random.Random, held_out: bool) -> str:
    return " ".join(draw_plain_word(rng, held_out).capitalize() for _ in range(rng.randint(1, 3)))


def draw_message(rng: random.Random, held_out: bool) -> str:
    words = [draw_plain_word(rng, held_out) for _ in range(rng.randint(2, 5))]
    return " ".join(words) if rng.random() < 0.6 else " ".join(words).capitalize()


def draw_file(rng: random.Random, held_out: bool) -> str:
    return f"{draw_plain_word(rng, held_out)}{rng.choice(('', f'_{rng.randint(1, 99)}'))}.{rng.choice(ENDINGS)}"


def draw_street(rng: random.Random, held_out: bool) -> str:
    name = load_pool("last_names").draw(rng, held_out=held_out)
    return f"{rng.randint(1, 250)} {name} {rng.choice(('Street', 'Road', 'Lane', 'Avenue'))}"


def draw_small(rng: random.Random, held_out: bool) -> int:
    return rng.randint(1, 99)
