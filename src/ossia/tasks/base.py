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
from typing import NamedTuple, Protocol

from ossia.harmony.content import Channel, DeveloperContent, Effort
from ossia.harmony.message import Message

HELD_OUT_SHARE = 10
"""One key in so many is held out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One question, with all that stands before it.

    Attributes:
        task: name of the task that drew it.
        prompt: what the user asks, as text; the last message of the conversation.
        answer: the canonical right answer, which `Task.grade` looks for.
        facts: what the solver needs to know, so that it never parses the prompt.
        developer: the developer message: instructions, functions, response formats.
        builtin_tools: tools that the system message declares, by name: `python`.
        history: messages between the developer's and the prompt. Of what the assistant said in turns that are over, no
            chain of thought is among them.
        part: under which name a report counts it apart, as "6 digits", "benign"; several with
            "; " between; empty for nowhere.
    """

    task: str
    prompt: str
    answer: str
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    developer: DeveloperContent | None = None
    builtin_tools: tuple[str, ...] = ()
    history: tuple[Message, ...] = ()
    part: str = ""

    @property
    def opening(self) -> str:
        """All that the user, the developer and the history say, as text: what tells one problem from another."""
        said = "\n".join(message.text for message in self.history if message.text)
        instructions = self.developer.instructions if self.developer is not None else None
        return "\n".join(part for part in (instructions, said, self.prompt) if part)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A call of a tool within a solution.

    Attributes:
        recipient: the tool's full name: `python`, `functions.f`.
        content: code, or JSON arguments.
        channel: where the call is written.
        content_type: what its header names: `code`, `<|constrain|>json`, or nothing.
        analysis: reasoning before the call; empty for none.
        result: what the tool answers. None ends the turn with this call: whoever gave the tool answers it.
    """

    recipient: str
    content: str
    channel: Channel
    content_type: str | None = None
    analysis: str = ""
    result: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """A reference solution.

    Attributes:
        analysis: the reasoning before the final message; empty when the answer is given at once.
        final: the answer in pieces that are tokenized one by one. Most answers are one piece; a reversed word is one
            piece a letter, because its usual tokens say nothing about the letters that the reasoning just listed. Empty
            when the last call has no result.
        calls: come before the rest, in order.
    """

    analysis: str
    final: tuple[str, ...]
    calls: tuple[Call, ...] = ()

    @property
    def final_text(self) -> str:
        """The answer as the reader sees it."""
        return "".join(self.final)

    @property
    def answer(self) -> Answer:
        """What a grader sees of it."""
        return Answer(
            final=self.final_text if self.final else None,
            calls=tuple(CallMade(call.recipient, call.content) for call in self.calls),
        )


class CallMade(NamedTuple):
    """A call that a model made: the tool's full name, and the body of the message."""

    recipient: str
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a model did about a problem.

    Attributes:
        final: the text of its last message on the final channel; None if there is none.
        calls: all the calls that it made, in order.
    """

    final: str | None
    calls: tuple[CallMade, ...] = ()


class Task(Protocol):
    """A kind of problem with its reference solver and its grader."""

    name: str

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        """Draw a problem: one kept for evaluation when `held_out`, else one for training."""
        ...

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        """Solve `problem` the way a model is taught to at this effort."""
        ...

    def grade(self, problem: Problem, answer: Answer) -> bool:
        """Whether a model's answer is right. It may be any text at all, and calls of tools that do not exist."""
        ...


def is_held_out(key: str) -> bool:
    """Whether the problem identified by `key` is kept for evaluation (SHA-256 of the key, one in HELD_OUT_SHARE)."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_SHARE == 0
