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
from ossia.tasks.pools import draw_full_name, load_pool
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
    declines: tuple[Intent, ...]
    """Kinds of out-of-scope questions with replies of their own."""


@cache
def load_chat() -> ChatTexts:
    """Read the packaged texts."""
    folder = PACKAGE_ROOT / "tasks" / "data"
    raw = json.loads((folder / "chat.json").read_text(encoding="utf-8"))
    names = ("chat_patterns.txt", "chat_more.txt")
    more = [new for name in names for new in read_patterns((folder / name).read_text(encoding="utf-8"))]
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
        declines=tuple(
            Intent(
                group=new.group,
                name=new.name,
                prompts=new.prompts,
                answers=(*new.answers, decline["answer"]),
                accept=decline["accept"],
            )
            for new in read_patterns((folder / "decline.txt").read_text(encoding="utf-8"))
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


@cache
def is_held_out_prompt(prompt: str) -> bool:
    """Whether a prompt is held out, by its words alone: "bye" and "Bye!" are on the same side."""
    return is_held_out(re.sub(r"[^\w{}'+*/-]+", " ", prompt.lower()).strip() or prompt)


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
                if (prompts := [prompt for prompt in intent.prompts if is_held_out_prompt(prompt) == held_out])
            ]
            for held_out in (False, True)
        }

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        intent, prompts = rng.choice(self._prompts[held_out])
        prompt = rng.choice(prompts)
        if not held_out:
            prompt = _vary_writing(prompt, rng)  # which leaves it on its side, as `is_held_out_prompt` sees words alone
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
        self._intent, self._kinds = load_chat().decline, load_chat().declines
        self._templates = {
            (intent.name, held_out): [t for t in intent.prompts if is_held_out_prompt(t) == held_out]
            for intent in (self._intent, *self._kinds)
            for held_out in (False, True)
        }
        self._questions = tuple(question for question in questions if not is_held_out(question))

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        if not held_out and self._questions and rng.random() < 0.2:
            prompt = rng.choice(self._questions)
            answer = self._intent.answers[0]
            kind = self._intent.name
        else:
            # Half of them by the kinds, whose replies name what cannot be done.
            intent = rng.choice(self._kinds) if rng.random() < 0.5 else self._intent
            prompt, answer = _fill(rng.choice(self._templates[intent.name, held_out]), rng.choice(intent.answers), rng)
            kind = intent.name
            if not held_out:
                prompt = _vary_writing(prompt, rng)
        return Problem(task=self.name, prompt=prompt, answer=answer, facts={"accept": self._intent.accept}, part=kind)

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        analysis = "" if effort is Effort.LOW else "This is not one of the things that I can do. I say so."
        return Solution(analysis=analysis, final=(problem.answer,))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        final = answer.final or ""
        return grade_by_pattern(problem.facts["accept"], final)


LANGUAGES = (
    "French", "German", "Spanish", "Italian", "Polish", "Greek", "Japanese", "Hindi", "Arabic", "Swedish", "Turkish",
    "Dutch", "Chinese", "Korean", "Latin", "Welsh",
)  # fmt: skip
CODES = ("Python", "Java", "C++", "Rust", "JavaScript", "SQL", "HTML", "Go", "PHP", "Ruby", "bash")
FOODS = (
    "pizza", "soup", "risotto", "pancakes", "curry", "bread", "rice", "salmon", "tofu", "goulash", "noodles",
    "apple pie", "dumplings", "tacos", "mushrooms", "lentils", "omelettes", "cheesecake", "roast beef", "falafel",
)  # fmt: skip


def _fill(template: str, answer: str, rng: random.Random) -> tuple[str, str]:
    """Put words, names, real things and numbers into the places of a template and its answer."""
    words = load_words().train
    values = {key: rng.choice(words) for key in ("n", "n2", "n3", "n4")}
    values |= {key: rng.choice(words).capitalize() for key in ("N", "N2")}
    values |= {key: str(rng.randint(2, 10 ** rng.randint(1, 4))) for key in ("d", "d2")}
    values |= {key: str(rng.randint(10**8, 10 ** rng.randint(9, 14))) for key in ("b", "b2")}
    values |= {key: str(rng.randint(1200, 2030)) for key in ("y", "year")}
    values |= dict(zip(("place", "place2"), load_pool("cities").sample(rng, 2, held_out=False), strict=True))
    values |= dict(zip(("thing", "thing2"), load_pool("nouns").sample(rng, 2, held_out=False), strict=True))
    values |= {"topic": load_pool("topics").draw(rng, held_out=False), "person": draw_full_name(rng, held_out=False)}
    values |= {"language": rng.choice(LANGUAGES), "code": rng.choice(CODES), "food": rng.choice(FOODS)}
    return template.format(**values), answer.format(**values)


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
