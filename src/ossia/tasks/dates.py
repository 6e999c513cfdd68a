"""Dates: the day of the week, the days between two, and the day so many days away."""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Mapping

from ossia.harmony.message import Effort
from ossia.tasks.arithmetic import numbers_in
from ossia.tasks.base import Answer, Problem, Solution, is_held_out
from ossia.tasks.ways import Ways, asks_new, maybe_words, part_of

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_SHORT_MONTHS: tuple[str, ...] = tuple(month[:3] for month in MONTHS)
MONTH_CODES = (0, 3, 3, 6, 1, 4, 6, 2, 5, 0, 3, 5)
"""Days before each month of a common year, modulo 7."""
CENTURY_CODES = {17: 4, 18: 2, 19: 0, 20: 6, 21: 4}
DAYS_BEFORE = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)

WEEKDAY_PROMPTS = (
    "What day of the week is {d}?", "What day of the week was {d}?", "Which weekday is {d}?", "What weekday is {d}?",
    "Tell me the day of the week for {d}.", "On which day of the week does {d} fall?", "{d} is what day of the week?",
    "what day is {d}", "Is {d} a Monday, or which day is it?", "Find the weekday of {d}.", "Day of the week for {d}?",
)  # fmt: skip
BETWEEN_PROMPTS = (
    "How many days are between {a} and {b}?", "How many days are there from {a} to {b}?",
    "How many days is it from {a} to {b}?",
    "How many days lie between {a} and {b}?", "Days between {a} and {b}?", "days from {a} to {b}",
    "Count the days from {a} to {b}.", "What is the number of days from {a} to {b}?",
    "How long is it from {a} to {b}, in days?",
)  # fmt: skip
ADD_PROMPTS = (
    "What date is {n} days after {d}?", "What is the date {n} days after {d}?", "Which date is {n} days after {d}?",
    "Add {n} days to {d}.", "{n} days after {d} is what date?", "What date do I get if I add {n} days to {d}?",
    "what date is {n} days from {d}", "If it is {d}, what date will it be in {n} days?",
    "Give me the date {n} days later than {d}.",
)  # fmt: skip
LATER_PROMPTS = (
    "If today is {w}, what day will it be in {n} days?", "Today is {w}. What day is it in {n} days?",
    "It is {w}. What day of the week will it be {n} days from now?", "What day comes {n} days after {w}?",
    "Which weekday is {n} days after {w}?", "{n} days after {w} is what day?",
    "Starting on {w}, what day is it after {n} days?",
)  # fmt: skip

WEEKDAY_WAYS, BETWEEN_WAYS = Ways("weekday", WEEKDAY_PROMPTS), Ways("between", BETWEEN_PROMPTS)
ADD_WAYS, LATER_WAYS = Ways("add_days", ADD_PROMPTS), Ways("later", LATER_PROMPTS)


def is_leap(year: int) -> bool:
    """Whether a year has 366 days."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def write_date(date: datetime.date, style: int) -> str:
    """One of four ways to write a date."""
    month = MONTHS[date.month - 1]
    match style:
        case 0:
            return date.isoformat()
        case 1:
            return f"{month} {date.day}, {date.year}"
        case 2:
            return f"{date.day} {month} {date.year}"
        case _:
            return f"{month[:3]} {date.day}, {date.year}"


def read_dates(text: str) -> list[datetime.date]:
    """All dates in a text, in any of the ways that `write_date` knows."""
    names = "|".join(_SHORT_MONTHS)
    patterns = (
        (r"\b(?P<y>\d{4})-(?P<m>\d{1,2})-(?P<d>\d{1,2})\b", False),
        (rf"\b(?P<m>{names})[a-z]*\.? (?P<d>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<y>\d{{4}})\b", True),
        (rf"\b(?P<d>\d{{1,2}})(?:st|nd|rd|th)? (?P<m>{names})[a-z]*\.?,? (?P<y>\d{{4}})\b", True),
    )
    found: list[tuple[int, datetime.date]] = []
    for pattern, is_named in patterns:
        for match in re.finditer(pattern, text, re.IGNORECASE):
            month = _SHORT_MONTHS.index(match["m"].capitalize()) + 1 if is_named else int(match["m"])
            try:
                found.append((match.start(), datetime.date(int(match["y"]), month, int(match["d"]))))
            except ValueError:
                continue
    return [date for _, date in sorted(found)]


def weekday_steps(date: datetime.date) -> str:
    """The weekday by codes: year and its quarter, century, month, day, less one in January and February of leap years.

    ``year 24, quarter 24+6=30, century 30+6=36, March 36+3=39, day 39+15=54, 54-49=5 -> Friday``
    """
    two = date.year % 100
    century = CENTURY_CODES[date.year // 100]
    code, day = MONTH_CODES[date.month - 1], date.day
    total = two
    text = f"year {two}"
    for name, number in (("quarter", two // 4), ("century", century), (MONTHS[date.month - 1], code), ("day", day)):
        text += f", {name} {total}+{number}={total + number}"
        total += number
    if is_leap(date.year) and date.month <= 2:
        text += f", leap year: {total}-1={total - 1}"
        total -= 1
    return f"{text}, {total}-{total // 7 * 7}={total % 7} -> {WEEKDAYS[total % 7 - 1]}"


def short_weekday_steps(date: datetime.date) -> str:
    """`weekday_steps` with the sums and the remainder in the head: ``24, 6, 6, 3, 15: 54 -> Friday``."""
    two = date.year % 100
    century, code = CENTURY_CODES[date.year // 100], MONTH_CODES[date.month - 1]
    total = two + two // 4 + century + code + date.day - (is_leap(date.year) and date.month <= 2)
    return f"{two}, {two // 4}, {century}, {code}, {date.day}: {total} -> {WEEKDAYS[total % 7 - 1]}"


def day_of_year(date: datetime.date) -> int:
    """1 for the first of January."""
    return date.timetuple().tm_yday


def day_of_year_steps(date: datetime.date) -> str:
    """``March 5: 59+5+1=65`` in a leap year."""
    month = MONTHS[date.month - 1]
    leap = "+1" if is_leap(date.year) and date.month > 2 else ""
    return f"{month} {date.day}: {DAYS_BEFORE[date.month - 1]}+{date.day}{leap}={day_of_year(date)}"


def between_steps(a: datetime.date, b: datetime.date) -> str:
    """The days from `a` to a later `b` of the same year or the next, by the days of the year."""
    first, second = day_of_year(a), day_of_year(b)
    text = f"{day_of_year_steps(a)}\n{day_of_year_steps(b)}"
    if a.year == b.year:
        return f"{text}\n{second}-{first}={second - first}"
    length = 366 if is_leap(a.year) else 365
    left = length - first
    return f"{text}\n{a.year} has {length}: {length}-{first}={left}\n{left}+{second}={left + second}"


def add_steps(date: datetime.date, days: int) -> str:
    """The date so many days on, month by month: ``January 20: 31-20=11 left, 40-11=29\\nFebruary: 29``."""
    lines: list[str] = []
    year, month, day = date.year, date.month, date.day
    rest = days
    while True:
        length = (
            29 if month == 2 and is_leap(year) else 31 if month == 12 else (DAYS_BEFORE[month] - DAYS_BEFORE[month - 1])
        )
        left = length - day
        if rest <= left:
            lines.append(f"{MONTHS[month - 1]} has {length}: {day}+{rest}={day + rest}")
            break
        lines.append(f"{MONTHS[month - 1]} has {length}: {length}-{day}={left}, {rest}-{left}={rest - left}")
        rest -= left
        month, day = month + 1, 0
        if month == 13:
            month, year = 1, year + 1
    return "\n".join(lines)


def _draw_date(rng: random.Random) -> datetime.date:
    first = datetime.date(1900, 1, 1) if rng.random() < 0.3 else datetime.date(1995, 1, 1)
    last = datetime.date(2099, 12, 31) if rng.random() < 0.3 else datetime.date(2035, 12, 31)
    return first + datetime.timedelta(days=rng.randrange((last - first).days))


def _short_steps(facts: Mapping[str, str], date: datetime.date, other: datetime.date, answer: str) -> str:
    """The reasoning at medium effort: what is looked up is written, most of what is computed stays in the head."""
    match facts["kind"]:
        case "weekday":
            return short_weekday_steps(date)
        case "between":
            return f"{day_of_year_steps(date)}\n{day_of_year_steps(other)}\n-> {facts['days']}"
        case "add":
            return f"{add_steps(date, int(facts['days']))}\n-> {answer}"
        case _:
            weeks, rest = divmod(int(facts["days"]), 7)
            return f"{facts['days']} = {weeks}x7+{rest} -> {answer}"


def _steps_and_check(
    facts: Mapping[str, str], date: datetime.date, other: datetime.date, answer: str
) -> tuple[str, str]:
    """The reasoning at high effort, every step written, and another way to the same answer."""
    days = int(facts["days"])
    match facts["kind"]:
        case "weekday":
            earlier = date - datetime.timedelta(days=7)
            return weekday_steps(date), f"a week before, {earlier.isoformat()}: {weekday_steps(earlier)}"
        case "between":
            return between_steps(date, other), add_steps(date, days).replace("\n", "; ")
        case "add":
            return f"{add_steps(date, days)}\n-> {answer}", between_steps(date, other).replace("\n", "; ")
        case _:
            weeks, rest = divmod(days, 7)
            place = WEEKDAYS.index(facts["weekday"])
            names = ", ".join(WEEKDAYS[(place + step) % 7] for step in range(1, rest + 1))
            steps = f"{days} = {weeks}x7+{rest}\n{facts['weekday']} and {rest} days: {names or 'the same'} -> {answer}"
            return steps, f"{weeks}x7={weeks * 7}, {weeks * 7}+{rest}={days}"


class Dates:
    """Four questions about dates of the Gregorian calendar, 1900 to 2100."""

    name = "dates"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        while True:
            kind = rng.choice(("weekday", "between", "add", "later"))
            date, style = _draw_date(rng), rng.choice((0, 0, 1, 1, 2, 3))
            days = rng.randint(2, 60 if rng.random() < 0.7 else 300)
            weekday = rng.choice(WEEKDAYS)
            key = f"{weekday} {days}" if kind == "later" else f"{date}" if kind == "weekday" else f"{date} {days}"
            if is_held_out(f"{kind} {key}") == held_out:
                break
        other = date + datetime.timedelta(days=days)
        facts = {"kind": kind, "date": date.isoformat(), "days": str(days), "style": str(style), "weekday": weekday}
        shown, new = write_date(date, style), asks_new(rng, held_out=held_out)
        match kind:
            case "weekday":
                prompt, answer = WEEKDAY_WAYS.draw(rng, new=new).format(d=shown), WEEKDAYS[date.weekday()]
            case "between":
                prompt = BETWEEN_WAYS.draw(rng, new=new).format(a=shown, b=write_date(other, style))
                answer = str(days)
            case "add":
                way = ADD_WAYS.draw(rng, new=new)
                prompt = way.format(n=maybe_words(days, str(days), way, rng), d=shown)
                answer = write_date(other, style)
            case _:
                way = LATER_WAYS.draw(rng, new=new)
                prompt = way.format(n=maybe_words(days, str(days), way, rng), w=weekday)
                answer = WEEKDAYS[(WEEKDAYS.index(weekday) + days) % 7]
        return Problem(task=self.name, prompt=prompt, answer=answer, facts=facts, part=part_of(kind, new=new))

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        facts, answer = problem.facts, problem.answer
        if effort is Effort.LOW:
            return Solution(analysis="", final=(answer,))
        date, days = datetime.date.fromisoformat(facts["date"]), int(facts["days"])
        other = date + datetime.timedelta(days=days)
        shown = write_date(date, int(facts["style"]))
        match facts["kind"]:
            case "weekday":
                final = f"{shown} is a {answer}."
            case "between":
                final = f"{days} days"
            case "add":
                final = answer
            case _:
                final = f"It will be {answer}."
        if effort is Effort.MEDIUM:
            return Solution(analysis=_short_steps(facts, date, other, answer), final=(final,))
        analysis, check = _steps_and_check(facts, date, other, answer)
        known = facts["weekday"] if facts["kind"] == "later" else shown
        analysis = f"known: {known}\nasked: {facts['kind']}\n{analysis}\ncheck: {check} ok"
        return Solution(analysis=analysis, final=(final,))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        final = answer.final or ""
        match problem.facts["kind"]:
            case "between":
                return numbers_in(final)[-1:] == [problem.answer]
            case "add":
                date = datetime.date.fromisoformat(problem.facts["date"])
                return read_dates(final)[-1:] == [date + datetime.timedelta(days=int(problem.facts["days"]))]
            case _:
                return re.findall("|".join(WEEKDAYS), final, re.IGNORECASE)[-1:] == [problem.answer]
