"""Rules for the quality of web text, by the papers that published them.

gopher: Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", arXiv 2112.11446,
    appendix A1.1, quality filtering.
gopher_repetition: the same, repetition removal, table A1 (in `repetition.py`).
c4: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", arXiv
    1910.10683, section 2.2. The list of bad words is left out: it drops whole subjects, and the paper's reason for
    it, the look of samples, is not ours. Three-sentence spans are left to the near-duplicate filter.
fineweb: Penedo et al., "The FineWeb Datasets", arXiv 2406.17557, section 3.6.

A rule gives the text, which c4 shortens by lines, or the reason why it is dropped.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ossia.training.data.filters.repetition import repetition_reason

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
TERMINAL = (".", "!", "?", '"', "”")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*(?=\s|$)")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_EDGES = "\"'“”‘’()[]{}.,;:!?*_"


class Verdict(NamedTuple):
    """A text that is kept, perhaps shortened; or None, and why."""

    text: str | None
    reason: str = ""


def gopher(text: str) -> Verdict:
    """Length, mean word length, symbols, bullets, ellipses, letters, and two stop words."""
    words = text.split()
    if not 50 <= len(words) <= 100_000:
        return Verdict(None, "gopher: fewer than 50 or more than 100,000 words")
    mean = sum(len(word.strip(_EDGES)) for word in words) / len(words)
    if not 3 <= mean <= 10:
        return Verdict(None, "gopher: mean word length not 3 to 10")
    for symbol in ("#", "…"):
        count = text.count(symbol) + (text.count("...") if symbol == "…" else 0)
        if count > 0.1 * len(words):
            return Verdict(None, "gopher: more than one symbol (# or ellipsis) in 10 words")
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if sum(line.startswith(("•", "-", "*", "‣")) for line in lines) > 0.9 * len(lines):
        return Verdict(None, "gopher: more than 90 % of lines are bullets")
    if sum(line.endswith(("...", "…")) for line in lines) > 0.3 * len(lines):
        return Verdict(None, "gopher: more than 30 % of lines end in an ellipsis")
    if sum(any(character.isalpha() for character in word) for word in words) < 0.8 * len(words):
        return Verdict(None, "gopher: fewer than 80 % of words have a letter")
    if sum(word.lower().strip(_EDGES) in STOP_WORDS for word in words) < 2:
        return Verdict(None, "gopher: fewer than 2 stop words")
    return Verdict(text)


def gopher_repetition(text: str) -> Verdict:
    """Lines, paragraphs and n-grams that repeat."""
    reason = repetition_reason(text)
    return Verdict(text) if reason is None else Verdict(None, f"gopher_repetition: {reason}")


def c4(text: str) -> Verdict:
    """Keeps lines that are sentences of 5 words or more; drops pages with code, filler text, or under 3 sentences."""
    lowered = text.lower()
    if "lorem ipsum" in lowered:
        return Verdict(None, "c4: lorem ipsum")
    if "{" in text:
        return Verdict(None, "c4: curly bracket")
    kept: list[str] = []
    for line in text.split("\n"):
        if not line.strip():
            kept.append("")
            continue
        is_sentence = line.rstrip().endswith(TERMINAL) and not line.rstrip().endswith("...")
        lowered_line = line.lower()
        is_chrome = "javascript" in lowered_line or any(phrase in lowered_line for phrase in _POLICY)
        if is_sentence and not is_chrome and len(line.split()) >= 5:
            kept.append(line)
    shortened = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n")
    if len(_SENTENCE_END.findall(shortened)) < 3:
        return Verdict(None, "c4: fewer than 3 sentences in whole lines")
    return Verdict(shortened)


def fineweb(text: str) -> Verdict:
    """Lines that end in punctuation, repeated lines, and short lines."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return Verdict(None, "fineweb: no lines")
    if sum(line.endswith(TERMINAL) for line in lines) <= 0.12 * len(lines):
        return Verdict(None, "fineweb: 12 % of lines or fewer end in punctuation")
    seen: set[str] = set()
    repeated = 0
    for line in lines:
        repeated += len(line) if line in seen else 0
        seen.add(line)
    if repeated >= 0.1 * sum(map(len, lines)):
        return Verdict(None, "fineweb: 10 % of characters or more in repeated lines")
    if sum(len(line) < 30 for line in lines) >= 0.67 * len(lines):
        return Verdict(None, "fineweb: 67 % of lines or more are shorter than 30 characters")
    return Verdict(text)


RULES = {"gopher": gopher, "gopher_repetition": gopher_repetition, "c4": c4, "fineweb": fineweb}


def judge(text: str, *, rules: tuple[str, ...]) -> Verdict:
    """Apply rules in this order; each sees what the one before it left."""
    for rule in rules:
        verdict = RULES[rule](text)
        if verdict.text is None:
            return verdict
        text = verdict.text
    return Verdict(text)
