"""What a word means, for the words of a small glossary; of other words nano says that it does not know them."""

from __future__ import annotations

import random
import re
from functools import cache
from typing import NamedTuple

from ossia.core.paths import PACKAGE_ROOT
from ossia.harmony.message import Effort
from ossia.tasks.base import Answer, Problem, Solution
from ossia.tasks.pools import Pool
from ossia.tasks.words import draw_word, quote

WAYS = Pool("way to define", (
    "What does {w} mean?", "What does the word {w} mean?", "Define {w}.", "What is the meaning of {w}?", "define {w}",
    "What is meant by {w}?", "Give me a definition of {w}.", "Explain the word {w}.", "Can you define {w}?",
    "What's the meaning of {w}?", "Do you know what {w} means?", "Tell me what {w} means.",
    "What is the definition of {w}?",
    "what does {w} mean", "Please define {w}.", "How would you define {w}?",
    "I do not know the word {w}. What does it mean?",
    "Look up {w} in your glossary.", "Meaning of {w}?", "{w}: what does that mean?", "How do you explain {w}?",
))  # fmt: skip
UNKNOWN = re.compile(r"\bdo(n't| not) know\b", re.IGNORECASE)


class Entry(NamedTuple):
    """A word of the glossary."""

    word: str
    part_of_speech: str
    meaning: str


@cache
def load_glossary() -> dict[str, Entry]:
    """Read data/glossary.txt: glosses of WordNet, one sense a word."""
    text = (PACKAGE_ROOT / "tasks" / "data" / "glossary.txt").read_text(encoding="utf-8")
    return {entry.word: entry for line in text.splitlines() for entry in (Entry(*line.split("\t")),)}


@cache
def _words() -> tuple[str, ...]:
    return tuple(load_glossary())


class Define:
    """Definitions. A glossary must be learned by heart: ways to ask are held out, and words that are not in it."""

    name = "define"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        way = WAYS.draw(rng, held_out=held_out)
        if rng.random() < 0.75:
            word = rng.choice(_words())
            answer, part = f"{word}: {load_glossary()[word].meaning}", "in the glossary"
        else:
            word = draw_word(rng, held_out=held_out)
            while word in load_glossary():
                word = draw_word(rng, held_out=held_out)
            answer, part = f'I do not know the word "{word}": my glossary is small.', "not in it"
        return Problem(
            task=self.name, prompt=way.format(w=quote(word, rng)), answer=answer, facts={"word": word}, part=part
        )

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        entry = load_glossary().get(problem.facts["word"])
        if entry is None:
            analysis = "This word is not in my glossary. I say so."
        else:
            analysis = f"{entry.word} is in my glossary, as {entry.part_of_speech}."
        if effort is Effort.HIGH:
            analysis += f" Letters: {' '.join(problem.facts['word'])}."
        return Solution(analysis="" if effort is Effort.LOW else analysis, final=(problem.answer,))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        final = answer.final or ""
        entry = load_glossary().get(problem.facts["word"])
        if entry is None:
            return UNKNOWN.search(final) is not None
        return entry.meaning.lower() in final.lower()
