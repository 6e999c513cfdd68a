"""Letters in words: counting one, spelling the word, reversing it.

The reasoning numbers every position. Without the numbers, copying breaks on repeated letters and the count is a guess
(notes/LOG.md has the figures).
"""

from __future__ import annotations

import dataclasses
import random
import re
from typing import TypeAlias

from ossia.harmony.message import Channel, Effort, Message, Role
from ossia.tasks.base import Answer, Problem, Solution
from ossia.tasks.ways import Ways, asks_new, part_of
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

COUNT_WAYS = Ways("count_letters", COUNT_PROMPTS)
SPELL_WAYS = Ways("spell", SPELL_PROMPTS)
REVERSE_WAYS = Ways("reverse", REVERSE_PROMPTS)

AGAIN_WORD = ("And {w}?", "Now {w}.", "And for {w}?", "What about {w}?", "The same for {w}, please.", "and {w}")
AGAIN_LETTER = (
    "And how many {ls}?",
    "And the letter {l}?",
    "What about {l}?",
    "How many {ls} does it have?",
    "And {ls}?",
)
AGAIN_COUNT = ("How many {ls} are in it?", "And how many {ls} does it have?", "Count the {ls} in that word.")
AGAIN_SPELL = (
    "Spell it.",
    "Now spell it.",
    "Can you spell it?",
    "Spell that word letter by letter.",
    "How is it spelled?",
)
AGAIN_REVERSE = (
    "And backwards?",
    "Now backwards.",
    "Reverse it.",
    "Write it backwards.",
    "What is that word in reverse?",
)
SHARE_AGAIN = 0.12
"""How many problems are second turns, whose prompt leaves out what the first turn said."""


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
        word, new = draw_word(rng, held_out=held_out), asks_new(rng, held_out=held_out)
        return _maybe_again(self, self.pose(word, rng, new=new), rng, held_out=held_out)

    def pose(self, word: str, rng: random.Random, *, new: bool = False) -> Problem:
        """Ask about a lower-case word, in a held-out phrasing if `new`."""
        letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("abcdefghijklmnopqrstuvwxyz")
        shown = letter.upper() if rng.random() < 0.15 else letter
        plural = rng.choice((f"{shown}s", f"{shown}'s", f"{shown}'s", f"letter {shown}'s", f"'{shown}'s"))
        single = rng.choice((shown, shown, f"'{shown}'", f'"{shown}"'))
        prompt = COUNT_WAYS.draw(rng, new=new).format(ls=plural, l=single, w=quote(vary_case(word, rng), rng))
        return Problem(
            task=self.name,
            prompt=prompt,
            answer=str(word.count(letter)),
            facts={"word": word, "letter": letter},
            part=part_of(f"{len(word)} letters", new=new),
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
        word, new = draw_word(rng, held_out=held_out), asks_new(rng, held_out=held_out)
        return _maybe_again(self, self.pose(word, rng, new=new), rng, held_out=held_out)

    def pose(self, word: str, rng: random.Random, *, new: bool = False) -> Problem:
        """Ask about a lower-case word, in a held-out phrasing if `new`."""
        word = vary_case(word, rng)
        prompt = SPELL_WAYS.draw(rng, new=new).format(w=quote(word, rng))
        return Problem(
            task=self.name,
            prompt=prompt,
            answer="-".join(word),
            facts={"word": word},
            part=part_of(f"{len(word)} letters", new=new),
        )

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
        word, new = draw_word(rng, held_out=held_out), asks_new(rng, held_out=held_out)
        return _maybe_again(self, self.pose(word, rng, new=new), rng, held_out=held_out)

    def pose(self, word: str, rng: random.Random, *, new: bool = False) -> Problem:
        """Ask about a lower-case word, in a held-out phrasing if `new`."""
        word = vary_case(word, rng)
        prompt = REVERSE_WAYS.draw(rng, new=new).format(w=quote(word, rng))
        return Problem(
            task=self.name,
            prompt=prompt,
            answer=word[::-1],
            facts={"word": word},
            part=part_of(f"{len(word)} letters", new=new),
        )

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


LetterTask: TypeAlias = CountLetters | SpellWord | ReverseWord


def _maybe_again(task: LetterTask, problem: Problem, rng: random.Random, *, held_out: bool) -> Problem:
    """Make some problems second turns: the same question of another word, or another question of the same word."""
    if rng.random() >= SHARE_AGAIN:
        return problem
    word = problem.facts["word"]
    if rng.random() < 0.5:
        before = task.pose(draw_word(rng, held_out=held_out), rng)
        if isinstance(task, CountLetters):  # of the same letter, which the prompt does not name again
            letter = before.facts["letter"]
            facts = {"word": word, "letter": letter}
            problem = dataclasses.replace(problem, facts=facts, answer=str(word.count(letter)))
        prompt = rng.choice(AGAIN_WORD).format(w=quote(word, rng))
    else:
        first: LetterTask = rng.choice((CountLetters(), SpellWord(), ReverseWord()))
        before = first.pose(word.lower(), rng)
        word = before.facts["word"]
        if isinstance(task, CountLetters):
            letter = problem.facts["letter"]
            asked = AGAIN_LETTER if isinstance(first, CountLetters) else AGAIN_COUNT
            prompt = rng.choice(asked).format(ls=f"{letter}'s", l=letter)
            problem = dataclasses.replace(problem, facts={"word": word.lower(), "letter": letter})
        else:
            answer = "-".join(word) if isinstance(task, SpellWord) else word[::-1]
            prompt = rng.choice(AGAIN_SPELL if isinstance(task, SpellWord) else AGAIN_REVERSE)
            problem = dataclasses.replace(problem, facts={"word": word}, answer=answer)
    said = problem_history(
        before, rng, task=next(t for t in (task, CountLetters(), SpellWord(), ReverseWord()) if t.name == before.task)
    )
    return dataclasses.replace(problem, prompt=prompt, history=said, part="second turn")


def problem_history(problem: Problem, rng: random.Random, *, task: LetterTask) -> tuple[Message, ...]:
    """An earlier turn: question and answer, without the chain of thought."""
    final = task.solve(problem, effort=rng.choice(list(Effort)), rng=rng).final
    return (
        Message(Role.USER, content=problem.prompt),
        Message(Role.ASSISTANT, content=final, channel=Channel.FINAL),
    )
