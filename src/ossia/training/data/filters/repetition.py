"""How much of a text is repetition: the fractions of table A1 of the Gopher paper (arXiv 2112.11446)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

MAX_DUPLICATE_LINES = 0.30
MAX_DUPLICATE_PARAGRAPHS = 0.30
MAX_DUPLICATE_LINE_CHARACTERS = 0.20
MAX_DUPLICATE_PARAGRAPH_CHARACTERS = 0.20
MAX_TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}
MAX_DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def repetition_reason(text: str) -> str | None:
    """Which limit of the table a text passes, or None."""
    for name, parts, limit, character_limit in (
        ("lines", text.split("\n"), MAX_DUPLICATE_LINES, MAX_DUPLICATE_LINE_CHARACTERS),
        ("paragraphs", text.split("\n\n"), MAX_DUPLICATE_PARAGRAPHS, MAX_DUPLICATE_PARAGRAPH_CHARACTERS),
    ):
        solid = [part.strip() for part in parts if part.strip()]
        doubled = _doubled(solid)
        if len(doubled) > limit * len(solid):
            return f"duplicate {name}"
        if sum(map(len, doubled)) > character_limit * len(text):
            return f"characters in duplicate {name}"
    words = text.lower().split()
    num_characters = sum(map(len, words))
    for size, limit in MAX_TOP_NGRAM.items():
        if top_ngram_characters(words, size=size) > limit * num_characters:
            return f"characters in the most frequent {size}-gram"
    for size, limit in MAX_DUPLICATE_NGRAMS.items():
        if duplicate_ngram_characters(words, size=size) > limit * num_characters:
            return f"characters in duplicate {size}-grams"
    return None


def _doubled(parts: Sequence[str]) -> list[str]:
    """Every part that came before."""
    seen: set[str] = set()
    doubled: list[str] = []
    for part in parts:
        if part in seen:
            doubled.append(part)
        seen.add(part)
    return doubled


def top_ngram_characters(words: Sequence[str], *, size: int) -> int:
    """Characters that the most frequent n-gram takes, all its occurrences together; 0 if none comes twice."""
    counts = Counter(zip(*(words[start:] for start in range(size)), strict=False))
    if not counts:
        return 0
    ngram, count = max(counts.items(), key=lambda item: item[1] * sum(map(len, item[0])) if item[1] > 1 else 0)
    return count * sum(map(len, ngram)) if count > 1 else 0


def duplicate_ngram_characters(words: Sequence[str], *, size: int) -> int:
    """Characters within n-grams that came before; one that lies in several such n-grams counts once."""
    seen: set[tuple[str, ...]] = set()
    total = counted = 0  # words before `counted` are in the total already
    for place, ngram in enumerate(zip(*(words[start:] for start in range(size)), strict=False)):
        if ngram in seen:
            first = max(place, counted)
            total += sum(map(len, words[first : place + size]))
            counted = place + size
        seen.add(ngram)
    return total
