"""Letters in words: counting one, spelling the word, reversing it.

The reasoning numbers every position. Without the numbers, copying breaks on repeated letters and the count is a guess
(notes/LOG.md has the figures).
"""

from __future__ import annotations

import random
import re

from ossia.harmony.message import Effort
from ossia.tasks.base import Answer, Problem, Solution
from ossia.tasks.words import draw_word, quote, vary_case

COUNT_PROMPTS = (
    "How many {ls} are in the word {w}?",
    "How many {ls} are in the word {w}?",
    "How many {ls} are there in {w}?",
    "How many {ls} in {w}?",
    "how many {ls} are in {w}",
    "How many {ls} does {w} have?",
    "How many {ls} does the word {w} contain?",
    "How many times does the letter {l} appear in {w}?",
    "How many times does {l} occur in the word {w}?",
    "How often does the letter {l} appear in {w}?",
    "Count the {ls} in {w}.",
    "Count the letter {l} in {w}.",
    "count the number of {ls} in {w}",
    "Count how many times {l} appears in {w}.",
    "What is the number of {ls} in {w}?",
    "In the word {w}, how many {ls} are there?",
    "Tell me how many {ls} there are in {w}.",
    "Can you count the {ls} in {w}?",
    "Please count the {ls} in the word {w}.",
    "Number of {ls} in {w}?",
    "{w}: how many {ls}?",
    "I wonder how many {ls} {w} has.",
)
SPELL_PROMPTS = (
    "Spell {w}.",
    "Spell the word {w}.",
    "How do you spell {w}?",
    "How is {w} spelled?",
    "Can you spell {w}?",
    "Please spell {w} for me.",
    "Spell {w} letter by letter.",
    "spell {w}",
    "What are the letters of {w}?",
    "List the letters in {w}.",
    "Write {w} one letter at a time.",
    "What letters make up the word {w}?",
    "Break {w} into letters.",
)
REVERSE_PROMPTS = (
    "Reverse the word {w}.",
    "Reverse {w}.",
    "reverse {w}",
    "What is {w} backwards?",
    "What is {w} spelled backwards?",
    "Write {w} backwards.",
    "Spell {w} backwards.",
    "Can you reverse {w}?",
    "Please write the word {w} in reverse.",
    "Say {w} backwards.",
    "How do you write {w} in reverse?",
    "Reverse the letters of {w}.",
    "{w} in reverse?",
)


def numbered_letters(word: str, *, counted: str | None = None) -> str:
    """Number the letters of `word`, keeping count of one of them: ``1s 2t 3r=1 4a``."""
    parts: list[str] = []
    hits = 0
    for position, letter in enumerate(word, start=1):
        if letter == counted:
            hits += 1
            parts.append(f"{position}{letter}={hits}")
        else:
            parts.append(f"{position}{letter}")
    return " ".join(parts)


class CountLetters:
    """How many times a letter occurs in a word, whatever its case."""

    name = "count_letters"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        word = draw_word(rng, held_out=held_out)
        letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("abcdefghijklmnopqrstuvwxyz")
        shown = letter.upper() if rng.random() < 0.15 else letter
        plural = rng.choice((f"{shown}s", f"{shown}'s", f"{shown}'s", f"letter {shown}'s", f"'{shown}'s"))
        single = rng.choice((shown, shown, f"'{shown}'", f'"{shown}"'))
        prompt = rng.choice(COUNT_PROMPTS).format(ls=plural, l=single, w=quote(vary_case(word, rng), rng))
        return Problem(
            task=self.name, prompt=prompt, answer=str(word.count(letter)), facts={"word": word, "letter": letter}
        )

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        word, letter, count = problem.facts["word"], problem.facts["letter"], problem.answer
        if effort is Effort.LOW:
            return Solution(analysis="", final=(count,))
        analysis = f"{letter} in: {numbered_letters(word, counted=letter)} -> {count}"
        if effort is Effort.HIGH:
            places = " ".join(str(i) for i, other in enumerate(word, start=1) if other == letter)
            analysis += f" check: {places or 'none'} -> {count}"
        if count == "0":
            final = f'There is no {letter} in "{word}": 0.'
        elif count == "1":
            final = f'There is 1 {letter} in "{word}".'
        else:
            final = f'There are {count} {letter}\'s in "{word}".'
        return Solution(analysis=analysis, final=(final,))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        final = answer.final or ""
        return re.findall(r"\d+", final) == [problem.answer]


class SpellWord:
    """A word, letter by letter, with hyphens between."""

    name = "spell"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        word = vary_case(draw_word(rng, held_out=held_out), rng)
        prompt = rng.choice(SPELL_PROMPTS).format(w=quote(word, rng))
        return Problem(task=self.name, prompt=prompt, answer="-".join(word), facts={"word": word})

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        numbered = numbered_letters(problem.facts["word"])
        analysis = {Effort.LOW: "", Effort.MEDIUM: numbered}.get(
            effort, f"{numbered} check: {len(problem.facts['word'])} letters"
        )
        return Solution(analysis=analysis, final=(problem.answer,))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        final = answer.final or ""
        return final.strip().rstrip(".") == problem.answer


class ReverseWord:
    """A word with its letters in the opposite order."""

    name = "reverse"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        word = vary_case(draw_word(rng, held_out=held_out), rng)
        prompt = rng.choice(REVERSE_PROMPTS).format(w=quote(word, rng))
        return Problem(task=self.name, prompt=prompt, answer=word[::-1], facts={"word": word})

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        word = problem.facts["word"]
        final = tuple(problem.answer)
        if effort is Effort.LOW:
            return Solution(analysis="", final=final)
        numbered = [f"{position}{letter}" for position, letter in enumerate(word, start=1)]
        analysis = f"{' '.join(numbered)} back: {' '.join(reversed(numbered))}"
        if effort is Effort.HIGH:
            analysis += f" check: starts with {word[-1]}, ends with {word[0]}, {len(word)} letters"
        return Solution(analysis=analysis, final=final)

    def grade(self, problem: Problem, answer: Answer) -> bool:
        final = answer.final or ""
        return final.strip().rstrip(".") == problem.answer
