"""How values of fields are drawn, with their JSON Schema and their text.

Values come from large lists, since copying an argument letter by letter is what a small model learns last.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from ossia.tasks.base import is_held_out
from ossia.tasks.pools import draw_full_name, load_pool
from ossia.tasks.words import draw_word, load_common_words, vary_case

NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip


DOMAINS = ("example.com", "example.org", "example.net")
PLACE_STARTS = (
    "Port", "San", "Santa", "Lake", "Mount", "New", "Old", "Fort", "North", "South", "East", "West", "Saint", "Upper",
    "El", "La",
)  # fmt: skip
PLACE_ENDS = (
    "City", "Falls", "Bay", "Hill", "Beach", "Springs", "Valley", "Park", "Bridge", "Harbor", "Island", "Creek",
    "Grove",
)  # fmt: skip
ONSETS = (
    "b", "br", "c", "ch", "d", "dr", "f", "g", "gr", "h", "j", "k", "kl", "l", "m", "n", "p", "qu", "r", "s", "sh",
    "st", "t", "th", "tr", "v", "w", "y", "z",
)  # fmt: skip
VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "ai", "ea", "ia", "ou")
CODAS = ("", "", "n", "r", "s", "l", "ck", "m", "nd", "th")
MEASURES = (
    "mg", "g", "kg", "ml", "l", "mm", "cm", "m", "km", "km/h", "W", "kW", "V", "GB", "MB", "%", "°C", "Hz", "min", "s",
)  # fmt: skip
CAPITALS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
BETWEEN_FIELDS = frozenset(
    (
        "and", "at", "about", "aged", "assigned", "bound", "called", "colored", "dated", "due", "for", "from",
        "going", "handled", "leaving", "limited", "located", "lasting", "measured", "measuring", "named", "ordered",
        "organized", "owned", "paid", "rated", "saying", "showing", "sorted", "starting", "staying", "tagged", "that",
        "the", "titled", "together", "under", "until", "using", "weighing", "whose", "with", "within", "without",
        "written",
    )
)  # fmt: skip
"""Words that begin the next field of a sentence."""
COMMON_SHARE = 0.35
LISTED_SHARE = 0.6
"""Of names, places and topics, so many come from the lists; the others are invented, so that they have to be copied."""
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
    """A city of the list, or an invented place: ``Port Elmwick``, ``Abacus Falls``."""
    if rng.random() < LISTED_SHARE:
        return load_pool("cities").draw(rng, held_out=held_out)
    name = (
        draw_plain_word(rng, held_out) if rng.random() < 0.7 else load_pool("last_names").draw(rng, held_out=held_out)
    )
    name = name.capitalize() if name.islower() else name
    kind = rng.random()
    if kind < 0.4:
        return f"{rng.choice(PLACE_STARTS)} {name}"
    return f"{name} {rng.choice(PLACE_ENDS)}" if kind < 0.7 else name


def draw_first_name(rng: random.Random, held_out: bool) -> str:
    """A first name of the list, or an invented one: ``Velmora``."""
    if rng.random() < LISTED_SHARE:
        return load_pool("first_names").draw(rng, held_out=held_out)
    return draw_invented_name(rng, held_out)


def draw_invented_name(rng: random.Random, held_out: bool) -> str:
    """Two to four syllables that no list holds, with a capital."""
    while True:
        syllables = (rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.randint(2, 4)))
        name = ("".join(syllables) + rng.choice(CODAS)).capitalize()
        if is_held_out(f"name {name}") == held_out:
            return name


def draw_person(rng: random.Random, held_out: bool) -> str:
    """A first and a last name; now and then invented, double, or with an initial."""
    kind = rng.random()
    if kind < LISTED_SHARE:
        return draw_full_name(rng, held_out=held_out)
    first, last = (draw_first_name(rng, held_out) for _ in range(2))
    last = last if rng.random() < 0.5 else load_pool("last_names").draw(rng, held_out=held_out)
    if kind < 0.75:
        return f"{first} {rng.choice('ABCDEFGHJKLMNPRSTVW')}. {last}"
    return f"{first}-{draw_first_name(rng, held_out)} {last}" if kind < 0.85 else f"{first} {last}"


def draw_plain_word(rng: random.Random, held_out: bool) -> str:
    """A word of the list; in training, more often one that is a single token after a space."""
    if not held_out and rng.random() < COMMON_SHARE:
        return rng.choice(load_common_words())
    return draw_word(rng, held_out=held_out)


def draw_cased_word(rng: random.Random, held_out: bool) -> str:
    """A word in lower case, Capitalized or in CAPITALS: each has tokens of its own."""
    return vary_case(draw_plain_word(rng, held_out), rng)


def draw_topic(rng: random.Random, held_out: bool) -> str:
    """A topic of the list, or one or two words that could not be taken for a word between fields."""
    if rng.random() < LISTED_SHARE:
        return load_pool("topics").draw(rng, held_out=held_out)
    words: list[str] = []
    while len(words) < 1 or (len(words) < 2 and rng.random() < 0.3):
        word = draw_plain_word(rng, held_out)
        if word not in BETWEEN_FIELDS:
            words.append(word)
    return " ".join(words)


def draw_phrase(rng: random.Random, held_out: bool) -> str:
    """One to six words, each in a case of its own."""
    return " ".join(draw_cased_word(rng, held_out) for _ in range(rng.randint(1, 6)))


def draw_measure(rng: random.Random, held_out: bool) -> str:
    """A number with its unit, as text: ``12.5 mg``."""
    number = f"{rng.randint(1, 999)}{rng.choice(('', '', f'.{rng.randint(1, 9)}'))}"
    return f"{number}{rng.choice((' ', ' ', ''))}{rng.choice(MEASURES)}"


def draw_custom(rng: random.Random, held_out: bool) -> Value:
    """A value of any sort: what a field with a name of its own may hold."""
    kind = rng.random()
    if kind < 0.08:
        return integers(0, 9999)(rng, held_out)
    if kind < 0.2:
        options = list(dict.fromkeys(draw_plain_word(rng, held_out) for _ in range(rng.randint(2, 4))))
        return choices(*options)(rng, held_out) if len(options) > 1 else draw_custom(rng, held_out)
    draw = rng.choices(
        (draw_cased_word, draw_phrase, draw_person, draw_city, draw_code, draw_measure, draw_email),
        (8, 6, 3, 3, 3, 2, 1),
    )[0]
    value = draw(rng, held_out)
    is_quoted = " " in value if draw is draw_phrase else rng.random() < 0.25
    return Value(value, {"type": "string"}, f'"{value}"' if is_quoted else value)


def draw_email(rng: random.Random, held_out: bool) -> str:
    name = draw_first_name(rng, held_out).lower()
    return f"{name}{rng.choice(('.', '_', ''))}{draw_plain_word(rng, held_out)}@{rng.choice(DOMAINS)}"


def draw_date(rng: random.Random, held_out: bool) -> str:
    return f"{rng.randint(2023, 2031)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def draw_time(rng: random.Random, held_out: bool) -> str:
    return f"{rng.randint(0, 23):02d}:{rng.choice((0, 15, 30, 45, rng.randint(0, 59))):02d}"


def draw_code(rng: random.Random, held_out: bool) -> str:
    """``AB-1234``, ``7f3a9c``, ``K2-9XQ-41``, or digits alone."""
    kind = rng.random()
    if kind < 0.6:
        letters = "".join(rng.choice(CAPITALS) for _ in range(rng.randint(1, 3)))
        return f"{letters}{rng.choice(('-', '', ''))}{rng.randint(10, 99999)}"
    if kind < 0.75:
        return rng.choice("abcdef") + "".join(rng.choice("0123456789abcdef") for _ in range(rng.randint(5, 11)))
    groups = ("".join(rng.choice(CAPITALS + "23456789") for _ in range(rng.randint(2, 4))) for _ in range(3))
    return "-".join(groups) if kind < 0.9 else str(rng.randint(10**5, 10**10))


def draw_title(rng: random.Random, held_out: bool) -> str:
    return " ".join(draw_plain_word(rng, held_out).capitalize() for _ in range(rng.randint(1, 4)))


def draw_message(rng: random.Random, held_out: bool) -> str:
    words = [draw_plain_word(rng, held_out) for _ in range(rng.randint(2, 8))]
    return " ".join(words) if rng.random() < 0.6 else " ".join(words).capitalize()


def draw_file(rng: random.Random, held_out: bool) -> str:
    return f"{draw_plain_word(rng, held_out)}{rng.choice(('', f'_{rng.randint(1, 99)}'))}.{rng.choice(ENDINGS)}"


def draw_street(rng: random.Random, held_out: bool) -> str:
    name = load_pool("last_names").draw(rng, held_out=held_out)
    if rng.random() < 0.4:
        name = draw_plain_word(rng, held_out).capitalize()
    return f"{rng.randint(1, 250)} {name} {rng.choice(('Street', 'Road', 'Lane', 'Avenue'))}"


def draw_small(rng: random.Random, held_out: bool) -> int:
    return rng.randint(1, 99)
