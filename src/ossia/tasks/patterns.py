"""Prompts written as patterns: `(Hello|Hi)( there|)!` stands for four of them."""

from __future__ import annotations

import itertools
import random
import re
from typing import NamedTuple

MAX_PROMPTS = 500
"""Of what one line stands for, at most so many are kept, chosen once and for all."""
_GROUP = re.compile(r"\(([^()]*(?:\([^()]*\)[^()]*)*)\)")


class Patterns(NamedTuple):
    """One intent of a pattern file."""

    group: str
    name: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    accept: str


def expand(pattern: str, *, limit: int = MAX_PROMPTS) -> list[str]:
    """All texts that a pattern stands for; alternatives may hold patterns of their own, one level deep."""
    pieces: list[list[str]] = []
    end = 0
    for match in _GROUP.finditer(pattern):
        if "|" not in match[1]:
            continue
        pieces += [[pattern[end : match.start()]], _alternatives(match[1])]
        end = match.end()
    pieces.append([pattern[end:]])
    texts = list(dict.fromkeys("".join(parts) for parts in itertools.product(*pieces)))
    if len(texts) > limit:
        texts = random.Random(pattern).sample(texts, limit)
    return texts


def _alternatives(inside: str) -> list[str]:
    """Split at the bars that stand outside inner parentheses, and expand what stands inside them."""
    parts = re.split(r"\|(?![^()]*\))", inside)
    return [text for part in parts for text in (expand(part) if "(" in part and "|" in part else [part])]


def read_patterns(text: str) -> list[Patterns]:
    """Read a file: `= group name`, prompts, `!` answers, and `~` the pattern by which an answer is accepted."""
    found: list[Patterns] = []
    for section in re.split(r"(?m)^= ", text)[1:]:
        head, *lines = section.strip().splitlines()
        group, name = head.split()
        prompts = [line for line in lines if line[0] not in "!~#"]
        found.append(
            Patterns(
                group=group,
                name=name,
                prompts=tuple(dict.fromkeys(text for line in prompts for text in expand(line))),
                answers=tuple(line[1:].strip() for line in lines if line[0] == "!"),
                accept=next((line[1:].strip() for line in lines if line[0] == "~"), ""),
            )
        )
    return found
