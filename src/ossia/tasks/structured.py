"""Structured output: what a sentence says, as JSON by a schema that the developer message gives.

The engine's constraint makes every answer valid; right is one whose values equal the reference's.
"""

from __future__ import annotations

import json
import random
from typing import Any

from ossia.harmony.content import DeveloperContent, ResponseFormat
from ossia.harmony.message import Effort
from ossia.tasks.base import Answer, Problem, Solution
from ossia.tasks.field_kinds import CUSTOM, draw_fields, draw_kinds
from ossia.tasks.fields import Field
from ossia.tasks.functions import name_arguments
from ossia.tasks.json_values import equal_json, read_json, write_json
from ossia.tasks.pools import load_pool

INSTRUCTIONS = (
    None, "Extract the data.", "Answer with JSON.", "Fill in the format from the user's text.",
    "Take the values from the message. What is not said is null.", "Return the record.",
)  # fmt: skip
OPENINGS = (
    "", "", "Extract: ", "Get the data from this: ", "Please read this: ", "Text: ", "Put this into the format: ",
    "Turn this into a record: ", "Note: ", "FYI: ", "From an e-mail: ",
)  # fmt: skip
DRILL_SHARE = 0.12
"""Of so many records, all fields have invented names and values, to be copied."""


class StructuredOutput:
    """One record from one text."""

    name = "structured_output"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        noun = load_pool("nouns").draw(rng, held_out=held_out)
        number = rng.randint(2, 6)
        kinds = [CUSTOM] * number if rng.random() < DRILL_SHARE else draw_kinds(rng, number)
        fields = draw_fields(kinds, rng, held_out=held_out)
        properties: dict[str, Any] = {}
        record: dict[str, Any] = {}
        said: list[Field] = []
        has_null = rng.random() < 0.25
        for place, field in enumerate(fields):
            schema = dict(field.schema)
            is_optional = has_null and place > 0 and "enum" not in schema and rng.random() < 0.5
            is_said = not is_optional or rng.random() < 0.5
            if is_optional:
                schema["type"] = [schema["type"], "null"]
            properties[field.name] = schema
            record[field.name] = field.value if is_said else None
            if is_said:
                said.append(field)
        schema = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        answer = write_json(record)
        developer = DeveloperContent(
            instructions=rng.choice(INSTRUCTIONS),
            response_formats=(
                ResponseFormat(f"{noun}_{rng.choice(('record', 'data', 'entry', 'info'))}", schema=schema),
            ),
        )
        return Problem(
            task=self.name,
            prompt=rng.choice(OPENINGS) + tell(noun, said, rng),
            answer=answer,
            facts={
                "names": ", ".join(properties),
                "shown": write_json({field.name: field.shown for field in said}),
            },
            developer=developer,
            part="with nulls" if None in record.values() else "all said",
        )

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        analysis = "" if effort is Effort.LOW else f"I take {problem.facts['names']} from the text."
        if effort is Effort.HIGH:
            analysis += f"\n{name_arguments(problem.answer, shown=problem.facts['shown'])}"
        return Solution(analysis=analysis, final=(problem.answer,))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        return equal_json(read_json(answer.final), json.loads(problem.answer))


def tell(noun: str, fields: list[Field], rng: random.Random) -> str:
    """A text that says the values: a sentence or two, or a list."""
    spoken = rng.sample(fields, len(fields))
    kind = rng.random()
    if kind < 0.2:
        joint = rng.choice((", ", "; ", "\n"))
        return f"{noun}{rng.choice((':', ' -'))} " + joint.join(f"{field.label}: {field.shown}" for field in spoken)
    if kind < 0.35:
        return " ".join(f"The {field.label} is {field.shown}." for field in spoken)
    spoken.sort(key=lambda field: field.said.startswith(("and ", "with ", "without ")))
    article = "an" if noun[0] in "aeiou" else "a"
    opening = rng.choice(
        (
            f"There is {article} {noun}",
            f"{article.capitalize()} {noun}",
            f"We have {article} {noun}",
            f"I want {article} {noun}",
            f"New {noun}",
        )
    )
    if len(spoken) > 3 and rng.random() < 0.5:
        cut = rng.randint(1, len(spoken) - 1)
        first, second = (" ".join(field.said for field in part) for part in (spoken[:cut], spoken[cut:]))
        return f"{opening} {first}. It is {second}."
    return f"{opening} {' '.join(field.said for field in spoken)}."
