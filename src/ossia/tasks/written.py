"""Written multiplication and division, and equations as they stand in the reasoning of other tasks."""

from __future__ import annotations

from decimal import Decimal

from ossia.tasks.arithmetic import Columns, add_columns, subtract_columns

BY_HEART = 12
"""Products of two numbers up to this are not worked out."""


def multiply_columns(a: int, b: int) -> Columns:
    """Multiply two natural numbers: by one digit in columns, by more part by part.

    ``347 x 6: 7x6+0=42, 4x6+4=28, 3x6+2=20 -> 2082``, and ``23 x 14: [23 x 4 ...; 23 x 10 = 230; 230+92 ...] -> 322``.
    """
    if b < 10:
        steps: list[str] = []
        carry = 0
        for digit in reversed(str(a)):
            total = int(digit) * b + carry
            steps.append(f"{digit}x{b}+{carry}={total}")
            carry = total // 10
        return Columns(f"{a} x {b}: {', '.join(steps)} -> {a * b}", a * b)
    parts: list[str] = []
    total = 0
    for place, digit in enumerate(reversed(str(b))):
        if digit == "0":
            continue
        product = a * int(digit)
        text = multiply_columns(a, int(digit)).text
        shifted = product * 10**place
        if place:
            text += f", {'0' * place} behind: {shifted}"
        parts.append(text)
        if total:
            parts.append(add_columns(shifted, total).text)
        total += shifted
    return Columns(f"{'; '.join(parts)} -> {a * b}", a * b)


def multiply_parts(a: int, b: int) -> Columns:
    """Multiply part by part, the sum in the head: ``347 x 6 = 300x6+40x6+7x6 = 1800+240+42 = 2082``.

    The one of fewer digits stays whole, unless both have several: ``23 x 14 = 23x10+23x4 = 230+92 = 322``.
    """
    whole, parted = (b, a) if b < 10 else (a, b)
    parts = [int(digit) * 10**place for place, digit in enumerate(reversed(str(parted))) if digit != "0"][::-1]
    if len(parts) < 2:
        return Columns(f"{a} x {b} = {a * b}", a * b)
    factors = "+".join(f"{part}x{whole}" if whole == b else f"{whole}x{part}" for part in parts)
    return Columns(f"{a} x {b} = {factors} = {'+'.join(str(part * whole) for part in parts)} = {a * b}", a * b)


def divide_columns(a: int, b: int) -> Columns:
    """Divide a natural number by one from 1 to 99, digit by digit: ``7/2: 7/2=3 r1 -> 3 r1``."""
    steps: list[str] = []
    rest, digits = 0, ""
    for digit in str(a):
        current = rest * 10 + int(digit)
        rest = current % b
        if digits or current >= b:
            steps.append(f"{current}/{b}={current // b} r{rest}")
            digits += str(current // b)
    quotient = int(digits or "0")
    if not steps:
        steps.append(f"{a}/{b}=0 r{rest}")
    end = f"{quotient} r{rest}" if rest else str(quotient)
    return Columns(f"{a}/{b}: {', '.join(steps)} -> {end}", quotient)


def equation(a: int, operator: str, b: int) -> Columns:
    """One line of reasoning: ``3 x 12 = 36``, or the columns where the numbers are too large to know by heart.

    Args:
        a, b: natural numbers; a difference is not negative, a quotient without rest.
        operator: one of ``+-x/``.
    """
    match operator:
        case "+":
            result, is_easy = a + b, a < 100 and b < 100
            worked = None if is_easy else add_columns(a, b)
        case "-":
            result, is_easy = a - b, a < 100
            worked = None if is_easy else subtract_columns(a, b)
        case "x":
            result, is_easy = a * b, max(a, b) <= BY_HEART or min(a, b) in (0, 1, 10, 100, 1000)
            worked = None if is_easy else multiply_columns(max(a, b), min(a, b))
        case _:
            result, is_easy = a // b, a <= BY_HEART * b and b <= BY_HEART
            worked = None if is_easy else divide_columns(a, b)
    line = f"{a} {operator} {b} = {result}"
    return Columns(line if worked is None else f"{worked.text}, so {line}", result)


def plain(number: Decimal) -> str:
    """A number without an exponent, closing zeros, or a minus before zero: ``30.480`` is 30.48, ``1E+3`` is 1000."""
    text = format(number, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
