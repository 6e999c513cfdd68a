"""Exact and near duplicates. The first document stays; those after it that are the same, or nearly, are dropped.

Near duplicates are found by MinHash over word 5-grams with locality-sensitive hashing (Broder, "On the resemblance and
containment of documents", 1997; Lee et al., "Deduplicating Training Data Makes Language Models Better", arXiv
2107.06499), by the library rensa. A candidate counts if its estimated Jaccard similarity reaches the threshold.
"""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Any

from ossia.training.data.sources.extras import need

SHINGLE_WORDS = 5
NUM_PERMUTATIONS = 128
NUM_BANDS = 32
SEED = 1
"""32 bands of 4 rows: a pair of similarity 0.7 shares a band with probability 0.9998, one of 0.4 with 0.56; the
estimate from 128 values then decides, with a standard error of 0.04 at 0.7."""


def normalize(text: str) -> list[str]:
    """Words in lower case without marks, so that typography makes no difference."""
    lowered = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character if character.isalnum() else " " for character in lowered).split()


def shingles(words: list[str]) -> list[str]:
    """All runs of 5 words; a shorter text is one run."""
    count = max(1, len(words) - SHINGLE_WORDS + 1)
    return [" ".join(words[start : start + SHINGLE_WORDS]) for start in range(count)]


class Deduplicator:
    """Remembers documents: 16 bytes for each one, and about 0.6 KB more if near duplicates are looked for.

    Args:
        near: Jaccard similarity from which a document is dropped; 0 drops exact duplicates only.

    Raises:
        MissingExtraError: rensa is not installed.
    """

    def __init__(self, *, near: float) -> None:
        self._digests: set[bytes] = set()
        self._near = near
        self._sketches: dict[int, Any] = {}
        if near:
            self._rensa = need("rensa")
            self._lsh = self._rensa.RMinHashLSH(threshold=near, num_perm=NUM_PERMUTATIONS, num_bands=NUM_BANDS)

    def reason_to_drop(self, text: str) -> str | None:
        """Why a text is dropped, or None: then it is remembered."""
        words = normalize(text)
        digest = hashlib.blake2b(" ".join(words).encode("utf-8", "replace"), digest_size=16).digest()
        if digest in self._digests:
            return "exact duplicate"
        if self._near:
            sketch = self._rensa.RMinHash(num_perm=NUM_PERMUTATIONS, seed=SEED)
            sketch.update(shingles(words))
            if any(self._sketches[key].jaccard(sketch) >= self._near for key in self._lsh.query(sketch)):
                return "near duplicate"
            self._lsh.insert(len(self._sketches), sketch)
            self._sketches[len(self._sketches)] = sketch
        self._digests.add(digest)
        return None
