"""What a task is: it draws problems, shows how they are solved, and grades answers.

Training asks for solutions, evaluation and reinforcement learning for grades; both draw from disjoint problems, because
whether a problem is held out is decided by a hash of what makes it that problem (a word, a pair of numbers), never by
the order in which problems are drawn.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ossia.harmony.message import Effort

HELD_OUT_SHARE = 10
"""One key in so many is held out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One question.

    Attributes:
        task: name of the task that drew it.
        prompt: what the user asks, as text.
        answer: the canonical right answer, which `Task.grade` looks for.
        facts: what the solver needs to know, so that it never parses the prompt.
    """

    task: str
    prompt: str
    answer: str
    facts: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """A reference solution.

    Attributes:
        analysis: the reasoning; empty when the answer is given at once.
        final: the answer in pieces that are tokenized one by one. Most answers are one piece; a reversed word is one
            piece a letter, because its usual tokens say nothing about the letters that the reasoning just listed.
    """

    analysis: str
    final: tuple[str, ...]

    @property
    def final_text(self) -> str:
        """The answer as the reader sees it."""
        return "".join(self.final)


class Task(Protocol):
    """A kind of problem with its reference solver and its grader."""

    name: str

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        """Draw a problem: one kept for evaluation when `held_out`, else one for training."""
        ...

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        """Solve `problem` the way a model is taught to at this effort."""
        ...

    def grade(self, problem: Problem, final: str) -> bool:
        """Whether the text of the final message answers `problem` rightly."""
        ...


def is_held_out(key: str) -> bool:
    """Whether the problem identified by `key` is kept for evaluation (SHA-256 of the key, one in HELD_OUT_SHARE)."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_SHARE == 0
