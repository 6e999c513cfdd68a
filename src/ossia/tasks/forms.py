"""Rules of form for an answer that tells a number: how they are told, how they are kept, and whether one is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ossia.tasks.pools import Pool


class Rule(NamedTuple):
    """A rule of form.

    Attributes:
        name: the form in plain words; `{w}` as in `told`.
        told: ways to give the rule; `{w}` is a word that it may need.
        against: ways to ask for the contrary.
        keep: writes the answer, from the number and the word.
        is_kept: whether an answer (a text, and the word) keeps the rule.
    """

    name: str
    told: Pool[str]
    against: Pool[str]
    keep: Callable[[str, str], str]
    is_kept: Callable[[str, str], bool]


def _rule(name: str, told: tuple[str, ...], against: tuple[str, ...], keep: Callable[[str, str], str],
          is_kept: Callable[[str, str], bool]) -> Rule:  # fmt: skip
    return Rule(name, Pool("form told", told), Pool("form against", against), keep, is_kept)


def _language(name: str, sentence: str, word: str, other: str) -> Rule:
    return _rule(
        name,
        (f"Answer in {name}.", f"Always answer in {name}.", f"Your answers must be in {name}.",
         f"Reply in {name}, whatever the question's language.", f"{name} is the language of your answers.",
         f"Write {name} only."),
        ("Answer in English.", "Reply in English, please.", "English only!", f"Answer in {other}, please.",
         f"I want a reply in {other}.", f"No {name}, please."),
        lambda number, _: sentence.format(n=number),
        lambda text, _: word in text.lower(),
    )  # fmt: skip


def _between(left: str, right: str, name: str, place: str) -> Rule:
    return _rule(
        name,
        (f"Put your answers into {name}.", f"Write answers in {name}: {left}like this{right}.",
         f"Every answer stands in {name}.", f"All that you say stands {place} {name}.",
         f"Enclose each answer in {name}."),
        (f"No {name}, please.", f"Leave the {name} out.", f"Answer without {name}.", f"I do not like {name}.",
         f"Do not use {name}."),
        lambda number, _: f"{left}The answer is {number}.{right}",
        lambda text, _: text.startswith(left) and text.endswith(right),
    )  # fmt: skip


RULES: tuple[Rule, ...] = (
    _rule("capital letters",
          ("Answer in capital letters.", "Write everything in upper case.", "USE CAPITAL LETTERS ONLY.",
           "All letters of an answer are capitals.", "Shout: capital letters throughout.", "Upper case only."),
          ("Answer in small letters.", "Use lower case.", "Do not shout.", "No capital letters, please.",
           "Write it in the usual letters."),
          lambda number, _: f"THE ANSWER IS {number}.", lambda text, _: text.isupper()),
    _rule("small letters", ("Answer in small letters.", "Write everything in lower case.", "use small letters only.",
           "No capital letters in your answers.", "Lower case only."),
          ("Answer in capital letters.", "Use upper case.", "Shout it.", "CAPITALS, please.",
           "Write it in upper case."),
          lambda number, _: f"the answer is {number}.", lambda text, _: text.islower()),
    _rule("first {w}", ("Begin every answer with {w}.", "Start your answers with the word {w}.",
           "The first word of an answer is {w}.", "Each reply opens with {w}.", "Put {w} before every answer.",
           "Lead with the word {w}."),
          ("Do not begin with a special word.", "Start directly with the result.",
           "Leave out the first word that you were told.", "No opening word, please.", "Skip the word at the start."),
          lambda number, word: f"{word} The answer is {number}.", lambda text, word: text.startswith(word)),
    _rule("last {w}", ("End every answer with {w}.", "The last word of each answer is {w}.",
           "Close your answers with the word {w}.", "Each reply closes with {w}.", "Put {w} after every answer.",
           "Finish with the word {w}."),
          ("Do not end with a special word.", "Stop after the number.", "Leave out the closing word.",
           "No closing word, please.", "Skip the word at the end."),
          lambda number, word: f"The answer is {number}. {word}", lambda text, word: text.rstrip(" .!").endswith(word)),
    _rule("the number alone",
          ("Answer with the number alone.", "Write nothing but the number.", "Give the bare number.",
           "Only the number, no words.", "Your answers are numbers without any words.", "Leave out all words."),
          ("Answer in a full sentence.", "Not just the number, please.", "Use words, too.", "Write a sentence.",
           "I want a whole sentence."),
          lambda number, _: number, lambda text, _: text.isdecimal()),
    _rule("thanks at the end",
          ("Thank the user at the end: Thank you.", "Every answer ends with: Thank you.", "Close with \"Thank you.\"",
           "Say thank you after the answer.", "Do not forget to say Thank you at the end."),
          ("Do not thank me.", "No thanks needed.", "Leave the thanks out.", "Just the answer, no thanks.",
           "Skip the thank-you."),
          lambda number, _: f"The answer is {number}. Thank you.",
          lambda text, _: text.rstrip(" .!").lower().endswith("thank you")),
    _rule("hello first", ("Greet first: Hello!", "Every answer starts with: Hello!", "Say Hello! before you answer.",
           "Do not forget to say Hello! first.", "Open with \"Hello!\""),
          ("Do not greet me.", "No hello, please.", "Leave the greeting out.", "Just the answer, no greeting.",
           "Skip the hello."),
          lambda number, _: f"Hello! The answer is {number}.", lambda text, _: text.lower().startswith("hello")),
    _between("[", "]", "square brackets", "between"),
    _between("(", ")", "parentheses", "between"),
    _between("**", "**", "double asterisks", "between"),
    _between('"', '"', "quotation marks", "between"),
    _language("French", "La réponse est {n}.", "réponse", "German"),
    _language("German", "Die Antwort ist {n}.", "antwort", "Spanish"),
    _language("Spanish", "La respuesta es {n}.", "respuesta", "Italian"),
    _language("Italian", "La risposta è {n}.", "risposta", "French"),
    _language("Dutch", "Het antwoord is {n}.", "antwoord", "Spanish"),
)  # fmt: skip
