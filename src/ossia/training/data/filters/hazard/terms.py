"""The keyword prefilter: words of the field, which only say that the classifier should look. All are in newspapers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

TERMS = {
    "chemical": (
        r"chemical (?:weapon|warfare|agent|attack)s?", r"(?:nerve|blister|choking|blood|riot) agents?",
        r"(?:poison|toxic|mustard|nerve) gas(?:es)?", r"toxic (?:chemical|substance|compound|agent|industrial)s?",
        r"scheduled chemicals?", r"chemical precursors?", r"precursors? (?:of|to|for)", "sarin", "poison",
    ),
    "biological": (
        r"biological (?:weapon|warfare|agent|attack|toxin)s?", r"bio-?weapons?", r"bio-?terror\w*", r"pathogens?",
        r"toxins?", r"virus(?:es)?", r"bacteri(?:a|al|um)", r"spores?", "anthrax", "smallpox", "ricin",
        r"pandemic (?:agent|potential)s?", r"select agents?", r"microbes?",
    ),
    "radiological": (
        r"dirty bombs?", r"radiological\w*", r"radioactiv\w+", r"radiation", r"radio-?isotopes?", r"irradiat\w+",
    ),
    "nuclear": (
        r"nuclear (?:weapon|bomb|device|warhead|material|explosive|core|test|fuel)s?", r"atom(?:ic)? bombs?",
        r"warheads?", r"weapons?[- ]grade", r"fissile", r"fission", r"enrich(?:ment|ed|ing)?", "uranium", "plutonium",
        r"centrifuges?", r"weapons? of mass destruction", r"\bcbrn\b", r"weaponi[sz]\w+",
    ),
}  # fmt: skip
MAX_PASSAGE = 600
"""Characters of a passage at most; a long sentence is cut around its keyword."""

_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+[\"'”’)\]]*|\n|$)")


class Passage(NamedTuple):
    """A sentence with a keyword, and the sentences on both sides."""

    text: str
    category: str


class KeywordFilter:
    """Finds passages that the classifier should judge.

    Args:
        extra: more terms, as plain words, that a corpus calls for.
    """

    def __init__(self, extra: Iterable[str] = ()) -> None:
        groups = {**TERMS, "extra": tuple(re.escape(term) for term in extra)}
        named = "|".join(f"(?P<{name}>{'|'.join(terms)})" for name, terms in groups.items() if terms)
        self.pattern = re.compile(rf"(?<!\w)(?:{named})(?!\w)", re.IGNORECASE)

    def passages(self, text: str) -> list[Passage]:
        """The passages of a text with keywords; neighbours are not given twice."""
        if not self.pattern.search(text):
            return []
        sentences = [found[0] for found in _SENTENCE.finditer(text)]
        passages: list[Passage] = []
        for place, sentence in enumerate(sentences):
            found = self.pattern.search(sentence)
            if found is None:
                continue
            before = sentences[place - 1] if place else ""
            after = sentences[place + 1] if place + 1 < len(sentences) else ""
            start = max(0, found.start() - MAX_PASSAGE // 2)
            middle = sentence[start : start + MAX_PASSAGE]
            room = (MAX_PASSAGE - len(middle)) // 2
            whole = f"{before[max(0, len(before) - room) :]} {middle} {after[:room]}"
            passages.append(Passage(" ".join(whole.split()), found.lastgroup or ""))
        return passages
