"""WordNet as text: questions about words that people use, and plain definitions of the rarer ones.

Its files are described in its manual page wndb(5WN).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from ossia.tasks.words import load_words

PARTS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
PERSON_FILE = "18"
"""Number of the lexicographer's file of people (lexnames(5WN))."""
ENTRIES = 8
"""Words a document: a text of one definition would be too short to learn from."""

_UNKIND = re.compile(
    r"slur|offensive|vulgar|obscen|disparag|derogat|ethnic|sexual|coit|copulat|prostitut|excrement|feces|genital|"
    r"masturbat|penis|vagina|porn",
    re.IGNORECASE,
)
_TAXON = re.compile(r"^(?:type )?(?:genus|family|order|suborder|subfamily|superfamily|class|phylum)\b|\bgenus\b")
_ARTICLE = re.compile(r"^(?:an?|one|someone|any|anyone|something) ")


class Sense(NamedTuple):
    """A meaning.

    Attributes:
        words: those that have it, the commonest first.
        definition: without its examples and its leading remark in brackets.
        examples: of use.
        is_instance: whether it is one person, place or event, not a kind of thing.
        is_person: whether it is about people.
    """

    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    is_instance: bool = False
    is_person: bool = False


def parse_sense(line: str) -> Sense:
    """Read one line of a `data.` file."""
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    words = tuple(
        re.sub(r"\((?:a|p|ip)\)$", "", fields[4 + 2 * number]).replace("_", " ") for number in range(int(fields[3], 16))
    )
    examples = re.findall(r'"([^"]+)"', gloss)
    definition = gloss.split('"')[0].replace("`", "'").strip().rstrip(";:, ")
    definition = re.sub(r"^\([^)]*\) *", "", definition)
    return Sense(words, definition, tuple(examples), "@i" in fields, fields[1] == PERSON_FILE)


def read_senses(folder: Path) -> Iterator[tuple[str, str, list[Sense]]]:
    """Every word with its part of speech and its meanings, the commonest first."""
    base = folder / "usr/share/wordnet"
    for part in PARTS:
        lines = (base / f"data.{part}").read_text(encoding="utf-8").splitlines()
        senses = {line[:8]: parse_sense(line) for line in lines if not line.startswith(" ")}
        for line in (base / f"index.{part}").read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):
                fields = line.split()
                offsets = fields[-int(fields[2]) :]
                yield fields[0].replace("_", " "), part, [senses[offset] for offset in offsets]


def used_words(folder: Path) -> set[tuple[str, str]]:
    """Words that WordNet's own sample of English has, with their part of speech."""
    parts = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}
    lines = (folder / "usr/share/wordnet/cntlist.rev").read_text(encoding="utf-8").splitlines()
    keys = (line.split("%", 1) for line in lines)
    return {(word.replace("_", " "), parts[rest[0]]) for word, rest in keys}


def definitions(folder: Path) -> Iterator[dict[str, str]]:
    """Documents of questions and answers about words in use."""
    used, listed = used_words(folder), set(load_words().train)
    entries = [
        ask(word, part, senses)
        for word, part, senses in read_senses(folder)
        if ((word, part) in used or word in listed) and is_plain(word, senses[0])
    ]
    yield from _documents(entries, joined_by="\n\n")


def glosses(folder: Path) -> Iterator[dict[str, str]]:
    """Documents of definitions of the other words, without the names of genera and families."""
    used, listed = used_words(folder), set(load_words().train)
    entries: list[str] = []
    for word, part, senses in read_senses(folder):
        sense = senses[0]
        is_common = (word, part) in used or word in listed
        if not is_common and is_plain(word, sense) and sense.words[0].lower() == word:
            entries.append(plain_gloss(part, sense))
    yield from _documents(entries, joined_by="\n")


def is_plain(word: str, sense: Sense) -> bool:
    """Whether a word and its meaning are fit for everyone, and no name of a taxon."""
    text = " ".join((*sense.words, sense.definition))
    return word[0].isalpha() and not _UNKIND.search(text) and not _TAXON.search(sense.definition)


def ask(word: str, part: str, senses: list[Sense]) -> str:
    """A question about a word, and its answer, varied by the word alone."""
    rng = Random(f"{word} {part}")
    sense = senses[0]
    word = next((name for name in sense.words if name.lower() == word), word)
    if sense.is_instance:
        return f"{rng.choice(_name_questions(sense)).format(word)}\n{name_sentence(word, sense)}"
    is_counted = part == "noun" and word.islower() and _ARTICLE.match(sense.definition)
    article = _article(word)
    if is_counted and rng.random() < 0.6:
        question = rng.choice((f"What is {article} {word}?", f"What's {article} {word}?", f"Define {word}."))
        answer = f"{_capital(article)} {word} is {sense.definition}."
    elif part == "verb":
        question = rng.choice((f"What does it mean to {word}?", f'What does "{word}" mean?', f"Define {word}."))
        answer = f"To {word} means to {sense.definition}."
    else:
        question = rng.choice(
            (f'What does "{word}" mean?', f"What does {word} mean?", f'What is the meaning of "{word}"?')
        )
        answer = f'"{_capital(word)}" means {sense.definition}.'
    others = [name for name in sense.words if name != word]
    if others and rng.random() < 0.5:
        answer += f' {rng.choice(("Another word for it is", "A similar word is"))} "{others[0]}".'
    if sense.examples and rng.random() < 0.7:
        answer += f" For example: {_capital(sense.examples[0]).rstrip('.')}."
    if len(senses) > 1 and rng.random() < 0.4 and is_plain(word, senses[1]):
        answer += f" It can also mean {'to ' if part == 'verb' else ''}{senses[1].definition}."
    return f"{question}\n{answer}"


def plain_gloss(part: str, sense: Sense) -> str:
    """A definition as one sentence."""
    word = sense.words[0]
    if sense.is_instance:
        return name_sentence(max(sense.words, key=len) if sense.is_person else word, sense)
    others = f", also called {sense.words[1]}," if len(sense.words) > 1 and part == "noun" else ""
    if part == "verb":
        return f"To {word} means to {sense.definition}."
    return f"{_capital(word)}{others} means {sense.definition}."


def name_sentence(name: str, sense: Sense) -> str:
    """Who someone was, or what a place or an event is."""
    definition = sense.definition
    if not re.match(r"(?:an?|the|one|any) ", definition):
        definition = f"{_article(definition)} {definition}"
    return f"{name} {'was' if sense.is_person else 'is'} {definition}."


def _article(text: str) -> str:
    return "an" if re.match(r"[aeio]|u(?!ni|s[aeu])|hono|hour", text.lower()) else "a"


def _name_questions(sense: Sense) -> tuple[str, ...]:
    return ("Who was {}?", "Tell me who {} was.") if sense.is_person else ("What is {}?", "Tell me about {}.")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _documents(entries: list[str], *, joined_by: str) -> Iterator[dict[str, str]]:
    Random(0).shuffle(entries)
    for start in range(0, len(entries), ENTRIES):
        yield {"text": joined_by.join(entries[start : start + ENTRIES])}
