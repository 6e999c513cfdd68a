"""Converting between units of one kind. Factors are exact, or the rounded ones that are told in the prompt's answer."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import NamedTuple

from ossia.harmony.message import Effort
from ossia.tasks.arithmetic import numbers_in
from ossia.tasks.base import Answer, Problem, Solution, is_held_out
from ossia.tasks.ways import Ways, asks_new, maybe_words, part_of
from ossia.tasks.written import equation, plain

TOLERANCE = Decimal("0.005")
"""Relative: where the customary factor is rounded, answers with a finer one are right too."""

PROMPTS = (
    "Convert {v} {f} to {t}.", "How many {t} are {v} {f}?", "How many {t} are in {v} {f}?", "What is {v} {f} in {t}?",
    "{v} {f} in {t}", "{v} {f} to {t}", "convert {v} {f} into {t}", "Express {v} {f} in {t}.",
    "How much is {v} {f} in {t}?",
    "Please convert {v} {f} to {t}.", "{v} {f} = ? {t}", "Change {v} {f} to {t}.",
    "I have {v} {f}. How many {t} is that?",
    "Can you convert {v} {f} to {t}?", "Turn {v} {f} into {t}.", "what's {v} {f} in {t}",
)  # fmt: skip

WAYS = Ways("convert_units", PROMPTS)


class Unit(NamedTuple):
    """A unit's names."""

    one: str
    many: str
    short: str


class Relation(NamedTuple):
    """One of the larger unit is `factor` of the smaller."""

    large: Unit
    small: Unit
    factor: str
    is_rounded: bool = False


def _unit(one: str, short: str = "", many: str = "") -> Unit:
    return Unit(one, many or f"{one}s", short or many or f"{one}s")


_KM, _M, _CM, _MM = _unit("kilometer", "km"), _unit("meter", "m"), _unit("centimeter", "cm"), _unit("millimeter", "mm")
_MILE, _YARD = _unit("mile", "mi"), _unit("yard", "yd")
_FOOT, _INCH = _unit("foot", "ft", "feet"), _unit("inch", "in", "inches")
_T, _KG, _G, _MG = _unit("tonne", "t"), _unit("kilogram", "kg"), _unit("gram", "g"), _unit("milligram", "mg")
_LB, _OZ = _unit("pound", "lb"), _unit("ounce", "oz")
_L, _DL, _ML = _unit("liter", "l"), _unit("deciliter", "dl"), _unit("milliliter", "ml")
_GAL, _QT, _PT, _CUP, _TBSP, _TSP = (_unit(n) for n in ("gallon", "quart", "pint", "cup", "tablespoon", "teaspoon"))
_YEAR, _WEEK, _DAY, _HOUR = _unit("year"), _unit("week"), _unit("day"), _unit("hour", "h")
_MIN, _S, _MS = _unit("minute", "min"), _unit("second", "s"), _unit("millisecond", "ms")
_GB, _MB, _KB, _B = _unit("gigabyte", "GB"), _unit("megabyte", "MB"), _unit("kilobyte", "kB"), _unit("byte", "B")
_HA, _SQM = _unit("hectare", "ha"), _unit("square meter", "m²")
_DOZEN, _PIECE = _unit("dozen", "", "dozen"), _unit("piece")

RELATIONS = (
    Relation(_KM, _M, "1000"), Relation(_M, _CM, "100"), Relation(_CM, _MM, "10"), Relation(_M, _MM, "1000"),
    Relation(_KM, _CM, "100000"), Relation(_T, _KG, "1000"), Relation(_KG, _G, "1000"), Relation(_G, _MG, "1000"),
    Relation(_L, _ML, "1000"), Relation(_L, _DL, "10"), Relation(_DL, _ML, "100"), Relation(_HA, _SQM, "10000"),
    Relation(_YARD, _FOOT, "3"), Relation(_FOOT, _INCH, "12"), Relation(_YARD, _INCH, "36"), Relation(_LB, _OZ, "16"),
    Relation(_GAL, _QT, "4"), Relation(_QT, _PT, "2"), Relation(_PT, _CUP, "2"), Relation(_GAL, _PT, "8"),
    Relation(_CUP, _TBSP, "16"), Relation(_TBSP, _TSP, "3"), Relation(_WEEK, _DAY, "7"), Relation(_DAY, _HOUR, "24"),
    Relation(_HOUR, _MIN, "60"), Relation(_MIN, _S, "60"), Relation(_HOUR, _S, "3600"), Relation(_S, _MS, "1000"),
    Relation(_GB, _MB, "1000"), Relation(_MB, _KB, "1000"), Relation(_KB, _B, "1000"), Relation(_DOZEN, _PIECE, "12"),
    Relation(_INCH, _CM, "2.54"), Relation(_FOOT, _CM, "30.48"), Relation(_MILE, _KM, "1.61", is_rounded=True),
    Relation(_LB, _KG, "0.45", is_rounded=True), Relation(_GAL, _L, "3.79", is_rounded=True),
    Relation(_OZ, _G, "28.35"), Relation(_YEAR, _DAY, "365"),
)  # fmt: skip


class Drawn(NamedTuple):
    """A conversion: so much of one unit in the other."""

    value: Decimal
    relation: Relation
    is_down: bool
    """From the larger unit to the smaller."""


def _draw(rng: random.Random) -> Drawn:
    """Draw values whose results have few digits: any going down, whole multiples going up."""
    relation = rng.choice(RELATIONS)
    factor = Decimal(relation.factor)
    is_power = relation.factor.strip("0") == "1"
    is_down = rng.random() < 0.6
    if is_power:
        value = Decimal(rng.randint(1, 10 ** rng.randint(1, 4) - 1))
        if rng.random() < 0.4:
            value /= 10
        return Drawn(value, relation, is_down)
    count = Decimal(rng.randint(1, 12 if rng.random() < 0.4 else 99))
    if "." in relation.factor:
        return Drawn(count, relation, is_down=True)
    return Drawn(count if is_down else count * factor, relation, is_down)


class ConvertUnits:
    """Lengths, weights, volumes, times, data, areas."""

    name = "convert_units"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        while True:
            value, relation, is_down = _draw(rng)
            source, target = (relation.large, relation.small) if is_down else (relation.small, relation.large)
            shown = plain(value)
            if is_held_out(f"unit {shown} {source.one} {target.one}") == held_out:
                break
        factor = Decimal(relation.factor)
        result = plain(value * factor if is_down else value / factor)
        is_short = rng.random() < 0.35
        name = source.short if is_short else source.one if value == 1 else source.many
        written = f"{int(value):,}" if value >= 1000 and value == int(value) and rng.random() < 0.15 else shown
        new = asks_new(rng, held_out=held_out)
        way = WAYS.draw(rng, new=new)
        if value == int(value) and not is_short:
            written = maybe_words(int(value), written, way, rng)
        prompt = way.format(v=written, f=name, t=target.short if is_short else target.many)
        facts = {
            "value": shown,
            "from": source.one if value == 1 else source.many,
            "to": target.one if result == "1" else target.many,
            "factor": relation.factor,
            "down": "yes" if is_down else "",
            "rounded": "yes" if relation.is_rounded else "",
            "line": f"1 {relation.large.one} = {relation.factor} {relation.small.many}",
        }
        return Problem(
            task=self.name,
            prompt=prompt,
            answer=result,
            facts=facts,
            part=part_of(f"{relation.large.one}, {relation.small.one}", new=new),
        )

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        facts = problem.facts
        if effort is Effort.LOW:
            return Solution(analysis="", final=(f"{problem.answer} {facts['to']}",))
        value, factor = facts["value"], facts["factor"]
        lines = [facts["line"], scaled(value, "x" if facts["down"] else "/", factor)]
        if effort is Effort.HIGH:
            lines = [f"known: {value} {facts['from']}", f"asked: {facts['to']}", *lines]
            back = scaled(problem.answer, "/" if facts["down"] else "x", factor)
            lines.append(f"check: {back.rpartition('so ')[2]} ok")
        final = f"{value} {facts['from']} = {problem.answer} {facts['to']}"
        return Solution(analysis="\n".join(lines), final=(final,))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        found = numbers_in(answer.final or "")
        if not found or len(found) > 4:
            return False
        said, wanted = Decimal(found[-1]), Decimal(problem.answer)
        return said == wanted or (problem.facts["rounded"] == "yes" and abs(said - wanted) <= TOLERANCE * wanted)


def scaled(value: str, operator: str, factor: str) -> str:
    """A decimal times or by a factor, worked with whole numbers: ``12 x 254 ..., so 12 x 2.54 = 30.48``."""
    number, other = Decimal(value), Decimal(factor)
    result = plain(number * other if operator == "x" else number / other)
    line = f"{value} {operator} {factor} = {result}"
    whole = other * 100 if other != int(other) else other
    if operator == "/" and other != int(other):
        return line
    if factor.strip("0") == "1" or number != int(number):
        return line
    worked = equation(int(number), operator, int(whole)).text
    return worked if whole == other else f"{worked}, so {line}"
