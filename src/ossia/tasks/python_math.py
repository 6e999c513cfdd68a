"""Hard arithmetic, done with the python tool: the model writes code that prints, reads the result, and answers.

The reference computes each result itself, with integers or decimals; nothing that a model wrote is evaluated here.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Decimal
from typing import NamedTuple

from ossia.harmony.content import Channel
from ossia.harmony.message import Effort
from ossia.tasks.arithmetic import numbers_in
from ossia.tasks.base import Answer, Call, Problem, Solution, is_held_out

PYTHON = "python"
CODE = "code"
WAYS = (
    "What is {q}?", "Calculate {q}.", "Compute {q}.", "{q}", "How much is {q}?", "Work out {q}.", "What's {q}?",
    "Please calculate {q}.", "Can you compute {q}?", "Find {q}.", "Give me {q}.", "I need {q}.", "what is {q}",
    "Use Python to compute {q}.", "Use your python tool: what is {q}?", "Tell me {q}.", "Determine {q}.",
)  # fmt: skip


class Sum(NamedTuple):
    """A drawn computation.

    Attributes:
        kind: which kind, for reports.
        question: a noun phrase, or an expression.
        code: what to run.
        result: what the code prints.
        about: the size of the result, as an estimate; empty where none is made.
    """

    kind: str
    question: str
    code: str
    result: str
    about: str


def _number(rng: random.Random, low: int, high: int) -> int:
    """A number of `low` to `high` digits."""
    digits = rng.randint(low, high)
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def magnitude(number: int) -> str:
    """``123456`` is about ``1e5``."""
    return f"{str(abs(number))[0]}e{len(str(abs(number))) - 1}"


def _sum(rng: random.Random) -> Sum:
    numbers = [_number(rng, 7, 20) for _ in range(rng.choice((2, 2, 2, 3, 4)))]
    text = " + ".join(map(str, numbers))
    about = f"the largest is {magnitude(max(numbers))}, so a little more than that"
    return Sum("sum", text, f"print({text})", str(sum(numbers)), about)


def _difference(rng: random.Random) -> Sum:
    a, b = _number(rng, 7, 20), _number(rng, 7, 20)
    return Sum("difference", f"{a} - {b}", f"print({a} - {b})", str(a - b), f"{magnitude(a)} - {magnitude(b)}")


def _product(rng: random.Random) -> Sum:
    a, b = _number(rng, 3, 9), _number(rng, 3, 9)
    sign = rng.choice(("*", "*", "x", "times", "×"))
    about = f"{magnitude(a)} x {magnitude(b)}"
    return Sum("product", f"{a} {sign} {b}", f"print({a} * {b})", str(a * b), about)


def _power(rng: random.Random) -> Sum:
    a, b = rng.randint(2, 99), rng.randint(3, 20)
    text = rng.choice(("{a} ^ {b}", "{a} to the power of {b}", "{a}**{b}", "{a} raised to {b}")).format(a=a, b=b)
    return Sum("power", text, f"print({a}**{b})", str(a**b), f"about {b * len(str(a))} digits or fewer")


def _remainder(rng: random.Random) -> Sum:
    a, b = _number(rng, 5, 12), _number(rng, 2, 4)
    phrases = ("{a} mod {b}", "the remainder of {a} divided by {b}", "the rest when {a} is divided by {b}", "{a} % {b}")
    return Sum("remainder", rng.choice(phrases).format(a=a, b=b), f"print({a} % {b})", str(a % b), f"below {b}")


def _quotient(rng: random.Random) -> Sum:
    a, b, places = _number(rng, 3, 8), _number(rng, 2, 4), rng.randint(2, 4)
    phrases = (
        "{a} / {b} to {p} decimal places",
        "{a} divided by {b}, rounded to {p} decimals",
        "{a} / {b} with {p} decimals",
    )
    # A binary quotient is printed right to so few places; half-way cases would need b to divide a power of ten.
    value = (Decimal(a) / b).quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)
    code = f'print(f"{{{a} / {b}:.{places}f}}")'
    question = rng.choice(phrases).format(a=a, b=b, p=places)
    return Sum("quotient", question, code, str(value), f"{magnitude(a)} / {magnitude(b)}")


def _root(rng: random.Random) -> Sum:
    a, places = _number(rng, 3, 8), rng.randint(2, 3)
    value = Decimal(a).sqrt().quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)
    phrases = ("the square root of {a} to {p} decimal places", "sqrt({a}) rounded to {p} decimals")
    code = f'import math\nprint(f"{{math.sqrt({a}):.{places}f}}")'
    about = f"{math.isqrt(a)} squared is below it"
    return Sum("root", rng.choice(phrases).format(a=a, p=places), code, str(value), about)


def _factorial(rng: random.Random) -> Sum:
    a = rng.randint(8, 40)
    code = f"import math\nprint(math.factorial({a}))"
    return Sum("factorial", rng.choice((f"{a}!", f"the factorial of {a}")), code, str(math.factorial(a)), "very large")


def _divisor(rng: random.Random) -> Sum:
    common = rng.randint(2, 999)
    a, b = common * rng.randint(20, 9999), common * rng.randint(20, 9999)
    name, function, result = rng.choice(
        (("greatest common divisor", "gcd", math.gcd(a, b)), ("least common multiple", "lcm", math.lcm(a, b)))
    )
    return Sum(
        function, f"the {name} of {a} and {b}", f"import math\nprint(math.{function}({a}, {b}))", str(result), ""
    )


def _mean(rng: random.Random) -> Sum:
    numbers = [_number(rng, 2, 5) for _ in range(rng.choice((4, 5, 8, 10)))]
    value = (Decimal(sum(numbers)) / len(numbers)).quantize(Decimal("0.01"), ROUND_HALF_EVEN)
    shown = ", ".join(map(str, numbers))
    code = f'numbers = [{shown}]\nprint(f"{{sum(numbers) / len(numbers):.2f}}")'
    question = f"the {rng.choice(('average', 'mean'))} of {shown} to 2 decimal places"
    return Sum("mean", question, code, str(value), f"between {min(numbers)} and {max(numbers)}")


def _median(rng: random.Random) -> Sum:
    numbers = [_number(rng, 2, 5) for _ in range(rng.choice((7, 9, 11)))]
    shown = ", ".join(map(str, numbers))
    code = f"import statistics\nprint(statistics.median([{shown}]))"
    about = f"between {min(numbers)} and {max(numbers)}"
    return Sum("median", f"the median of {shown}", code, str(statistics.median(numbers)), about)


def _mixed(rng: random.Random) -> Sum:
    a, b, c = _number(rng, 2, 5), _number(rng, 2, 5), _number(rng, 3, 6)
    d = _number(rng, 2, 3)
    text, result = rng.choice(
        (
            (f"({a} + {b}) * {c}", (a + b) * c),
            (f"{a} * {b} + {c}", a * b + c),
            (f"{a} * {b} - {c}", a * b - c),
            (f"({a} - {b}) * {c}", (a - b) * c),
            (f"{a} * {b} + {c} * {d}", a * b + c * d),
            (f"{a} * ({b} + {c}) - {d}", a * (b + c) - d),
        )
    )
    return Sum("mixed", text, f"print({text})", str(result), "")


def _percent(rng: random.Random) -> Sum:
    a, b = rng.randint(2, 99), _number(rng, 4, 7)
    value = (Decimal(a) * b / 100).quantize(Decimal("0.01"))
    return Sum("percent", f"{a}% of {b}", f'print(f"{{{a} * {b} / 100:.2f}}")', str(value), f"below {b}")


def _series(rng: random.Random) -> Sum:
    low, high = rng.randint(1, 500), rng.randint(501, 99_999)
    if rng.random() < 0.5:
        code, result = f"print(sum(range({low}, {high + 1})))", sum(range(low, high + 1))
        return Sum("series", f"the sum of all whole numbers from {low} to {high}", code, str(result), "")
    high = min(high, 5000)
    code = f"print(sum(n * n for n in range({low}, {high + 1})))"
    result = sum(n * n for n in range(low, high + 1))
    return Sum("series", f"the sum of the squares of the numbers from {low} to {high}", code, str(result), "")


KINDS: tuple[Callable[[random.Random], Sum], ...] = (
    _sum, _sum, _difference, _difference, _product, _product, _product, _product, _power, _remainder, _quotient, _root,
    _factorial, _divisor, _mean, _median, _mixed, _mixed, _percent, _series,
)  # fmt: skip


class PythonMath:
    """Arithmetic beyond column work, with the python tool declared."""

    name = "python_math"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        while True:
            drawn = rng.choice(KINDS)(rng)
            if is_held_out(f"python {drawn.code}") == held_out:
                break
        prompt = rng.choice(WAYS).format(q=drawn.question)
        facts = {"code": drawn.code, "about": drawn.about}
        return Problem(
            task=self.name,
            prompt=prompt[0].upper() + prompt[1:] if rng.random() < 0.5 else prompt,
            answer=drawn.result,
            facts=facts,
            builtin_tools=(PYTHON,),
            part=drawn.kind,
        )

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        about = problem.facts["about"]
        before, after = "", ""
        if effort is not Effort.LOW:
            before = "This is too long to work out by hand, so I use python."
        if effort is Effort.HIGH:
            before += f" Estimate: {about}." if about else " I cannot estimate it well."
            after = f"python says {problem.answer}." + (" That fits the estimate." if about else "")
        call = Call(
            recipient=PYTHON,
            content=problem.facts["code"],
            channel=Channel.ANALYSIS,
            content_type=CODE,
            analysis=before,
            result=problem.answer,
        )
        final = problem.answer if effort is Effort.LOW else f"The result is {problem.answer}."
        return Solution(analysis=after, final=(final,), calls=(call,))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        return numbers_in(answer.final or "")[-1:] == [problem.answer]
