"""The kinds of fields, by name, and how fields are drawn."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from ossia.tasks import values
from ossia.tasks.fields import Field, Kind
from ossia.tasks.pools import load_pool

KINDS: Mapping[str, Kind] = {
    "city": Kind(
        names=(("city", "The city"), ("location", "Name of the place"), ("town", "The town"), ("place", "Where")),
        ways=("in {v}", "in {v}", "at {v}"),
        draw=values.texts(values.draw_city),
    ),
    "origin": Kind(
        names=(("origin", "Where it starts"), ("from_city", "City of departure"), ("start", "The first place")),
        ways=("from {v}", "starting from {v}", "leaving from {v}"),
        draw=values.texts(values.draw_city),
    ),
    "destination": Kind(
        names=(("destination", "Where it goes"), ("to_city", "City of arrival"), ("goal", "The last place")),
        ways=("to {v}", "going to {v}", "bound for {v}"),
        draw=values.texts(values.draw_city),
    ),
    "person": Kind(
        names=(
            ("name", "Full name"),
            ("customer", "The customer's name"),
            ("guest_name", "Name of the guest"),
            ("person", "For whom"),
            ("client", "Name of the client"),
        ),
        ways=("for {v}", "under the name {v}", "in the name of {v}"),
        draw=values.texts(values.draw_person),
    ),
    "first_name": Kind(
        names=(
            ("user", "First name of the user"),
            ("friend", "The friend's first name"),
            ("owner", "The owner"),
            ("username", "Who it belongs to"),
        ),
        ways=("owned by {v}", "that belongs to {v}"),
        draw=values.texts(values.draw_first_name),
    ),
    "assignee": Kind(
        names=(("assignee", "Who does it"), ("assigned_to", "Who is to do it"), ("helper", "Who helps")),
        ways=("assigned to {v}", "with {v} in charge", "handled by {v}"),
        draw=values.texts(values.draw_person),
    ),
    "email": Kind(
        names=(
            ("email", "E-mail address"),
            ("recipient", "E-mail address of the recipient"),
            ("contact_email", "Where to write"),
        ),
        ways=("with the e-mail {v}", "using the address {v}", "with {v} as the e-mail"),
        draw=values.texts(values.draw_email),
    ),
    "date": Kind(
        names=(("date", "Date as YYYY-MM-DD"), ("day", "Day as YYYY-MM-DD"), ("start_date", "First day, YYYY-MM-DD")),
        ways=("on {v}", "on {v}", "dated {v}"),
        draw=values.texts(values.draw_date),
    ),
    "due": Kind(
        names=(("due_date", "Last day, YYYY-MM-DD"), ("deadline", "YYYY-MM-DD"), ("until", "Last day, YYYY-MM-DD")),
        ways=("due on {v}", "until {v}", "to be ready by {v}"),
        draw=values.texts(values.draw_date),
    ),
    "time": Kind(
        names=(("time", "Time as HH:MM"), ("start_time", "When it starts, HH:MM"), ("hour", "HH:MM")),
        ways=("at {v}", "at {v}", "starting at {v}"),
        draw=values.texts(values.draw_time),
    ),
    "title": Kind(
        names=(("title", "The title"), ("headline", "Headline"), ("label", "How to call it")),
        ways=("titled {v}", "called {v}", "with the title {v}"),
        draw=values.quoted_texts(values.draw_title),
    ),
    "message": Kind(
        names=(("message", "The text"), ("note", "A note"), ("text", "What to say"), ("comment", "A comment")),
        ways=("with the text {v}", "saying {v}", "with the note {v}"),
        draw=values.quoted_texts(values.draw_message),
    ),
    "code": Kind(
        names=(
            ("code", "The code"),
            ("id", "Its number"),
            ("reference", "The reference"),
            ("order_id", "Number of the order"),
        ),
        ways=("with the code {v}", "with the number {v}", "with reference {v}"),
        draw=values.texts(values.draw_code),
    ),
    "topic": Kind(
        names=(
            ("topic", "What it is about"),
            ("subject", "The subject"),
            ("query", "What to look for"),
            ("theme", "The theme"),
        ),
        ways=("about {v}", "on the subject of {v}", "on {v}"),
        draw=values.texts(values.draw_topic),
    ),
    "word": Kind(
        names=(("keyword", "A word"), ("term", "The term"), ("word", "One word"), ("tag", "A tag")),
        ways=("for the word {v}", "tagged {v}", "with the keyword {v}"),
        draw=values.texts(values.draw_cased_word),
    ),
    "file": Kind(
        names=(
            ("file", "Name of the file"),
            ("filename", "Name of the file"),
            ("path", "Where the file is"),
            ("attachment", "A file"),
        ),
        ways=("from the file {v}", "with the file {v}", "using {v}"),
        draw=values.texts(values.draw_file),
    ),
    "street": Kind(
        names=(("address", "Street and number"), ("street", "Street and number")),
        ways=("at the address {v}", "located at {v}"),
        draw=values.texts(values.draw_street),
    ),
    "count": Kind(
        names=(("quantity", "How many"), ("count", "How many"), ("amount", "How many"), ("pieces", "Number of pieces")),
        ways=("with a quantity of {v}", "{v} times", "in a batch of {v}"),
        draw=values.integers(1, 60),
    ),
    "people": Kind(
        names=(
            ("people", "How many people"),
            ("guests", "Number of guests"),
            ("party_size", "Number of people"),
            ("seats", "Seats"),
        ),
        ways=("for {v} people", "for a group of {v}", "with seats for {v}"),
        draw=values.integers(1, 20),
    ),
    "limit": Kind(
        names=(("limit", "How many at most"), ("max_results", "How many at most"), ("top", "Only so many")),
        ways=("with at most {v} results", "limited to {v}", "showing only {v}"),
        draw=values.integers(1, 100),
    ),
    "minutes": Kind(
        names=(("minutes", "How long, in minutes"), ("duration", "Minutes"), ("length", "Length in minutes")),
        ways=("lasting {v} minutes", "for {v} minutes", "that takes {v} minutes"),
        draw=values.integers(5, 180),
    ),
    "nights": Kind(
        names=(("nights", "Number of nights"), ("num_nights", "Number of nights")),
        ways=("for {v} nights", "staying {v} nights"),
        draw=values.integers(1, 30),
    ),
    "floor": Kind(
        names=(("floor", "Which floor"), ("level", "Which level")),
        ways=("on floor {v}", "on level {v}"),
        draw=values.integers(0, 40),
    ),
    "year": Kind(
        names=(("year", "The year"),), ways=("from the year {v}", "of the year {v}"), draw=values.integers(1850, 2031)
    ),
    "age": Kind(
        names=(("age", "Age in years"), ("min_age", "Youngest age")),
        ways=("for the age of {v}", "aged {v}"),
        draw=values.integers(1, 99),
    ),
    "price": Kind(
        names=(
            ("price", "In dollars"),
            ("max_price", "Dollars at most"),
            ("budget", "In dollars"),
            ("cost", "In dollars"),
        ),
        ways=("for {v} dollars", "at a price of {v} dollars", "with a budget of {v} dollars"),
        draw=values.decimals(1, 900, 2),
    ),
    "weight": Kind(
        names=(("weight", "In kilograms"), ("weight_kg", "In kilograms")),
        ways=("weighing {v} kg", "with a weight of {v} kg"),
        draw=values.decimals(1, 90, 1),
    ),
    "distance": Kind(
        names=(("distance", "In kilometers"), ("radius", "In kilometers")),
        ways=("within {v} km", "at a distance of {v} km"),
        draw=values.decimals(1, 200, 1),
    ),
    "degrees": Kind(
        names=(("temperature", "In degrees"), ("degrees", "How warm")),
        ways=("at {v} degrees", "with {v} degrees"),
        draw=values.decimals(1, 99, 1),
    ),
    "rating": Kind(
        names=(("rating", "From 1 to 5"), ("stars", "From 1 to 5")),
        ways=("with a rating of {v}", "rated {v}"),
        draw=values.decimals(1, 5, 1),
    ),
    "color": Kind(
        names=(("color", "The color"), ("paint", "Which color")),
        ways=("in {v}", "colored {v}"),
        draw=values.choices("red", "blue", "green", "black", "white", "yellow"),
    ),
    "size": Kind(
        names=(("size", "The size"),),
        ways=("in size {v}", "of {v} size"),
        draw=values.choices("small", "medium", "large", "tiny", "huge"),
    ),
    "priority": Kind(
        names=(("priority", "How urgent"), ("urgency", "How urgent")),
        ways=("with {v} priority", "of {v} priority"),
        draw=values.choices("low", "normal", "high", "urgent"),
    ),
    "unit": Kind(
        names=(("unit", "Unit of the result"), ("units", "Unit of the result")),
        ways=("measured in {v}", "using {v}"),
        draw=values.choices("celsius", "fahrenheit", "kelvin"),
    ),
    "language": Kind(
        names=(("language", "Which language"), ("lang", "Which language")),
        ways=("in {v}", "written in {v}"),
        draw=values.choices("English", "French", "German", "Spanish", "Polish", "Hindi"),
    ),
    "currency": Kind(
        names=(("currency", "Code of the currency"),),
        ways=("paid in {v}", "in the currency {v}"),
        draw=values.choices("USD", "EUR", "GBP", "JPY", "CHF"),
    ),
    "format": Kind(
        names=(("format", "Format of the file"), ("output", "Kind of output")),
        ways=("as {v}", "in {v} format"),
        draw=values.choices("pdf", "csv", "json", "html", "text"),
    ),
    "order": Kind(
        names=(("sort_by", "What to sort by"), ("order_by", "What to sort by")),
        ways=("sorted by {v}", "ordered by {v}"),
        draw=values.choices("price", "date", "name", "rating"),
    ),
    "urgent": Kind(
        names=(("urgent", "Whether it is urgent"), ("is_urgent", "Whether it is urgent")),
        ways=("and it is not urgent", "and it is urgent"),
        draw=values.draw_flag,
    ),
    "gift": Kind(
        names=(("gift_wrap", "Wrap it as a gift"), ("is_gift", "Whether it is a gift")),
        ways=("and do not wrap it as a gift", "and wrap it as a gift"),
        draw=values.draw_flag,
    ),
    "notify": Kind(
        names=(("notify", "Send a notice"), ("send_notice", "Send a notice")),
        ways=("without a notice", "with a notice"),
        draw=values.draw_flag,
    ),
    "breakfast": Kind(
        names=(("breakfast", "With breakfast"), ("include_breakfast", "With breakfast")),
        ways=("without breakfast", "with breakfast"),
        draw=values.draw_flag,
    ),
    "insured": Kind(
        names=(("insurance", "With insurance"), ("insured", "With insurance")),
        ways=("without insurance", "with insurance"),
        draw=values.draw_flag,
    ),
    "tags": Kind(
        names=(("tags", "Tags"), ("keywords", "Words to look for"), ("labels", "Labels")),
        ways=("with the tags {v}", "with the labels {v}"),
        draw=values.arrays(values.draw_cased_word, {"type": "string"}),
    ),
    "attendees": Kind(
        names=(("attendees", "First names"), ("members", "First names"), ("guests_list", "Who comes")),
        ways=("with {v}", "together with {v}"),
        draw=values.arrays(values.draw_first_name, {"type": "string"}),
    ),
    "numbers": Kind(
        names=(("numbers", "Whole numbers"), ("values", "Whole numbers"), ("pages", "Which pages")),
        ways=("for the numbers {v}", "with the values {v}"),
        draw=values.arrays(values.draw_small, {"type": "integer"}),
    ),
    "delivery": Kind(
        names=(("delivery_address", "Where to bring it"), ("shipping", "Where to bring it")),
        ways=("delivered to {v}", "to be brought to {v}"),
        draw=values.objects({"street": values.draw_street, "city": values.draw_city}, {}, "{street} in {city}"),
    ),
    "contact": Kind(
        names=(("contact", "Whom to ask"), ("organizer", "Who organizes it")),
        ways=("with the contact {v}", "organized by {v}"),
        draw=values.objects({"name": values.draw_person, "email": values.draw_email}, {}, "{name} ({email})"),
    ),
    "box": Kind(
        names=(("dimensions", "In centimeters"), ("box", "In centimeters")),
        ways=("measuring {v}", "with dimensions {v}"),
        draw=values.objects(
            {"width": values.draw_small, "height": values.draw_small},
            {"width": "integer", "height": "integer"},
            "{width} by {height}",
        ),
    ),
}
"""All kinds by name. Two kinds of one text never share a tool or a record unless their ways to say them differ."""
CUSTOM = "custom"
"""A kind beside KINDS: a field whose name and value are any at all, so that both must be read and copied."""
CUSTOM_SHARE = 0.25
NAME_ENDS = ("name", "code", "type", "id", "key", "text", "label", "mode", "note", "format", "size", "kind")
CUSTOM_WAYS = (
    "with the {n} {v}", "with {n} {v}", "whose {n} is {v}", "with {v} as the {n}", "and the {n} {v}",
    "and with {v} for the {n}",
)  # fmt: skip
_KNOWN_NAMES = frozenset(name for kind in KINDS.values() for name, _ in kind.names)

CLASHES = (
    {"city", "color", "language", "street"},
    {"person", "people", "minutes", "nights", "price", "age"},
    {"date", "topic", "floor"},
    {"time", "degrees", "city"},
    {"file", "unit", "email"},
    {"people", "minutes", "nights", "price"},
    {"message", "title"},
    {"attendees", "file"},
)
"""Kinds that could be taken for each other beside one another."""


def draw_kinds(rng: random.Random, number: int) -> list[str]:
    """Kinds that cannot be confused: each of KINDS once at most, and CUSTOM any number of times."""
    others = iter(rng.sample(list(KINDS), len(KINDS)))
    chosen: list[str] = []
    while len(chosen) < number:
        kind = CUSTOM if rng.random() < CUSTOM_SHARE else next(others)
        if not any(kind in clash and clash & set(chosen) for clash in CLASHES):
            chosen.append(kind)
    return chosen


def draw_fields(kinds: Sequence[str], rng: random.Random, *, held_out: bool) -> list[Field]:
    """Draw one field a kind, no two of one name."""
    fields: list[Field] = []
    while len(fields) < len(kinds):
        field = draw_field(kinds[len(fields)], rng, held_out=held_out)
        if all(field.name != other.name for other in fields):
            fields.append(field)
    return fields


def draw_field(kind: str, rng: random.Random, *, held_out: bool, name: str | None = None) -> Field:
    """Draw a field of a kind of KINDS, or of CUSTOM; names, cities and words of its value are of one side.

    Args:
        kind: which.
        rng: the generator.
        held_out: which side.
        name: of a custom field, where it is known already.
    """
    if kind == CUSTOM:
        return _draw_custom(name or _draw_name(rng, held_out=held_out), rng, held_out=held_out)
    entry = KINDS[kind]
    name, description = rng.choice(entry.names)
    value, schema, shown = entry.draw(rng, held_out)
    if rng.random() < 0.6:
        schema = {**schema, "description": description}
    way = rng.choice(entry.ways)
    if isinstance(value, bool):
        way = entry.ways[int(value)]
    return Field(kind=kind, name=name, schema=schema, value=value, said=way.format(v=shown), shown=shown)


def _draw_name(rng: random.Random, *, held_out: bool) -> str:
    """A word, a noun, or two of them: ``harbor``, ``ticket_grade``."""
    while True:
        noun = load_pool("nouns").draw(rng, held_out=held_out)
        word = values.draw_plain_word(rng, held_out)
        name = rng.choice(
            (noun, word, f"{noun}_{rng.choice(NAME_ENDS)}", f"{word}_{noun}", f"{word}_{rng.choice(NAME_ENDS)}")
        )
        if name not in _KNOWN_NAMES and not values.BETWEEN_FIELDS & set(name.split("_")):
            return name


def _draw_custom(name: str, rng: random.Random, *, held_out: bool) -> Field:
    value, schema, shown = values.draw_custom(rng, held_out)
    label = name.replace("_", " ")
    if rng.random() < 0.4:
        schema = {**schema, "description": f"The {label}"}
    said = rng.choice(CUSTOM_WAYS).format(n=label, v=shown)
    return Field(kind=CUSTOM, name=name, schema=schema, value=value, said=said, shown=shown)
