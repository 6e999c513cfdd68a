"""Small talk, what nano is, and declining what it cannot do. The texts are data/chat.json."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from ossia.core.paths import PACKAGE_ROOT
from ossia.harmony.message import Effort
from ossia.tasks.base import Answer, Problem, Solution, is_held_out
from ossia.tasks.patterns import Patterns, read_patterns
from ossia.tasks.words import load_words


@dataclass(frozen=True, kw_only=True, slots=True)
class Intent:
    """Prompts that mean the same, the answers to give, and the pattern by which an answer is recognised."""

    group: str
    name: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    accept: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTexts:
    """What data/chat.json holds."""

    intents: tuple[Intent, ...]
    decline: Intent


@cache
def load_chat() -> ChatTexts:
    """Read the packaged texts."""
    folder = PACKAGE_ROOT / "tasks" / "data"
    raw = json.loads((folder / "chat.json").read_text(encoding="utf-8"))
    more = read_patterns((folder / "chat_patterns.txt").read_text(encoding="utf-8"))
    written = tuple(
        Intent(
            group=item["group"],
            name=item["name"],
            prompts=tuple(item["prompts"]),
            answers=tuple(item["answers"]),
            accept=item["accept"],
        )
        for item in raw["intents"]
    )
    intents = _merge(written, more)
    decline = raw["decline"]
    return ChatTexts(
        intents=intents,
        decline=Intent(
            group="decline",
            name="decline",
            prompts=tuple(decline["templates"]),
            answers=(decline["answer"],),
            accept=decline["accept"],
        ),
    )


def _merge(intents: tuple[Intent, ...], more: Sequence[Patterns]) -> tuple[Intent, ...]:
    """Add the prompts of patterns to the intents of their names, and intents of new names."""
    merged = {(intent.group, intent.name): intent for intent in intents}
    for new in more:
        old = merged.get((new.group, new.name))
        merged[new.group, new.name] = Intent(
            group=new.group,
            name=new.name,
            prompts=tuple(dict.fromkeys((*(old.prompts if old else ()), *new.prompts))),
            answers=new.answers or (old.answers if old else ()),
            accept=new.accept or (old.accept if old else ""),
        )
    return tuple(merged.values())


def grade_by_pattern(pattern: str, final: str) -> bool:
    """Whether an answer contains the pattern that marks it as the right kind of answer."""
    return re.search(pattern, final, re.IGNORECASE) is not None


class SmallTalk:
    """One group of intents: greetings, questions about the model itself, or conversation beyond its powers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._intents = tuple(intent for intent in load_chat().intents if intent.group == name)
        self._prompts = {
            held_out: [
                (intent, prompts)
                for intent in self._intents
                if (prompts := [prompt for prompt in intent.prompts if is_held_out(prompt) == held_out])
            ]
            for held_out in (False, True)
        }

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        intent, prompts = rng.choice(self._prompts[held_out])
        prompt = rng.choice(prompts)
        if not held_out:
            varied = _vary_writing(prompt, rng)
            prompt = prompt if is_held_out(varied) else varied  # "bye!" must not become the held-out "bye"
        return Problem(
            task=self.name,
            prompt=prompt,
            answer=rng.choice(intent.answers),
            facts={"accept": intent.accept},
            part=intent.name,
        )

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        analysis = "" if effort is Effort.LOW else "This is about me or small talk; I answer as nano."
        return Solution(analysis=analysis, final=(problem.answer,))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        return grade_by_pattern(problem.facts["accept"], answer.final or "")


class Decline:
    """Questions that a model of this size cannot answer; it says so, and what it can do instead."""

    name = "decline"

    def __init__(self, *, questions: Sequence[str] = ()) -> None:
        """Take further out-of-scope questions to train on (from a corpus), beside the packaged templates."""
        self._intent = load_chat().decline
        self._questions = tuple(question for question in questions if not is_held_out(question))

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        if not held_out and self._questions and rng.random() < 0.2:
            prompt = rng.choice(self._questions)
        else:
            templates = [t for t in self._intent.prompts if is_held_out(t) == held_out]
            prompt = _fill(rng.choice(templates), rng)
            if not held_out:
                prompt = _vary_writing(prompt, rng)
        return Problem(
            task=self.name, prompt=prompt, answer=self._intent.answers[0], facts={"accept": self._intent.accept}
        )

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        analysis = "" if effort is Effort.LOW else "This is not one of the things that I can do. I say so."
        return Solution(analysis=analysis, final=(problem.answer,))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        final = answer.final or ""
        return grade_by_pattern(problem.facts["accept"], final)


def _fill(template: str, rng: random.Random) -> str:
    """Put words, names (capitalized words) and numbers into a template's places."""
    words = load_words().train
    nouns = {key: rng.choice(words) for key in ("n", "n2", "n3", "n4")}
    names = {key: rng.choice(words).capitalize() for key in ("N", "N2")}
    numbers = {key: str(rng.randint(2, 10 ** rng.randint(1, 4))) for key in ("d", "d2")}
    large = {key: str(rng.randint(10**8, 10 ** rng.randint(9, 14))) for key in ("b", "b2")}
    return template.format(**nouns, **names, **numbers, **large, y=str(rng.randint(1200, 2030)))


def _vary_writing(prompt: str, rng: random.Random) -> str:
    """Change case and the closing mark, as different users would."""
    kind = rng.random()
    if kind < 0.15:
        prompt = prompt.lower()
    elif kind < 0.2:
        prompt = prompt.upper()
    if rng.random() < 0.15:
        prompt = prompt.rstrip("?!.") or prompt
    return prompt
