"""How many near duplicates the filter of `ossia data` finds, by their true similarity. Writes near-duplicates.md.

python -m benchmarks.near_duplicates
"""

from __future__ import annotations

import argparse
import random
from collections import Counter

from benchmarks.timing import results_folder

from ossia.core.files import write_text
from ossia.tasks.words import load_words
from ossia.training.data.filters.dedup import NUM_BANDS, NUM_PERMUTATIONS, SHINGLE_WORDS, Deduplicator, shingles

BINS = ((0.0, 0.4), (0.4, 0.5), (0.5, 0.6), (0.6, 0.65), (0.65, 0.7), (0.7, 0.75), (0.75, 0.8), (0.8, 0.9), (0.9, 1.0))
COMMAND = "python -m benchmarks.near_duplicates"


def edit(words: list[str], rng: random.Random, count: int) -> list[str]:
    """Replace, drop, insert or swap so many words."""
    edited = list(words)
    vocabulary = load_words().train
    for _ in range(count):
        place = rng.randrange(len(edited) - 1)
        match rng.randrange(4):
            case 0:
                edited[place] = rng.choice(vocabulary)
            case 1:
                del edited[place]
            case 2:
                edited.insert(place, rng.choice(vocabulary))
            case _:
                edited[place], edited[place + 1] = edited[place + 1], edited[place]
    return edited


def jaccard(one: list[str], other: list[str]) -> float:
    """Exact similarity of the sets of shingles."""
    a, b = set(shingles(one)), set(shingles(other))
    return len(a & b) / len(a | b)


def measure(*, pairs: int, seed: int, near: float) -> tuple[Counter[int], Counter[int], int]:
    """Pairs and found pairs by bin, and how many unrelated documents were dropped."""
    rng = random.Random(seed)
    deduplicator = Deduplicator(near=near)
    total: Counter[int] = Counter()
    found: Counter[int] = Counter()
    wrong = 0
    for _ in range(pairs):
        words = rng.choices(load_words().train, k=rng.randint(80, 400))
        wrong += deduplicator.reason_to_drop(" ".join(words)) is not None
        other = edit(words, rng, rng.randint(1, max(2, len(words) // 12)))
        place = next(i for i, (_, high) in enumerate(BINS) if jaccard(words, other) <= high)
        total[place] += 1
        found[place] += deduplicator.reason_to_drop(" ".join(other)) is not None
    return total, found, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--near", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total, found, wrong = measure(pairs=options.pairs, seed=options.seed, near=options.near)
    lines = [
        "# Near duplicates found, by true similarity",
        "",
        f"`{COMMAND}`",
        "",
        f"{options.pairs:,} texts of 80 to 400 random words, each followed by a copy in which up to one word in",
        f"twelve was replaced, dropped, inserted or swapped. Jaccard similarity of word {SHINGLE_WORDS}-grams, counted",
        f"exactly; the filter estimates it from {NUM_PERMUTATIONS} minima in {NUM_BANDS} bands and drops from",
        f"{options.near} on.",
        f"Unrelated texts that were dropped: {wrong}.",
        "",
        "| similarity | pairs | dropped | share |",
        "| --- | --- | --- | --- |",
    ]
    for place, (low, high) in enumerate(BINS):
        if total[place]:
            share = 100 * found[place] / total[place]
            lines.append(f"| {low:g} to {high:g} | {total[place]:,} | {found[place]:,} | {share:.1f} % |")
    text = "\n".join([*lines, ""])
    print(text)
    write_text(results_folder() / "near-duplicates.md", text)


if __name__ == "__main__":
    main()
