"""Makes a small vocabulary out of a large one: the tokens that a body of text uses most, closed under merging.

Every kept token longer than a byte keeps both tokens that it is merged from, so byte-pair encoding still reaches it,
and kept tokens keep their order. Tokens that join digits go: a small model adds far better when each digit is a token
of its own.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

from ossia.core.errors import InvalidInputError
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.vocab import CONTROL_TOKEN_IDS, SPECIAL_TOKENS, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NUM_BYTES = 256


def count_tokens(texts: Iterable[str], tokenizer: Tokenizer) -> Counter[int]:
    """Counts how often each token occurs in the texts, in its own right or on the way to a longer one.

    A token's count is thus what it would be used if every token built on it were taken away, which is what pruning
    needs to know; it is never more than the count of its parts.
    """
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(tokenizer.encode(text))
    ranks = tokenizer.vocabulary.ranks
    # Longer tokens first, in reverse rank order: all that is built on a token has been counted when it passes on.
    for token, parts in reversed(list(tokenizer.merges.items())):
        if count := counts[ranks[token]]:
            for part in parts:
                counts[ranks[part]] += count
    return +counts


def prune_vocabulary(
    counts: Mapping[int, int], *, size: int, forced: Iterable[str] = (), num_specials: int = 16
) -> Vocabulary:
    """Chooses the most used tokens of o200k_harmony for a vocabulary of `size` ids.

    Ids are dense: ordinary tokens in o200k rank order, then the named control tokens and the first reserved ones of
    o200k in the order of their ids there. `o200k_ids` maps every one of them back.

    Args:
        counts: uses of each o200k id, from `count_tokens`; specials are ignored.
        size: ids in all, specials included.
        forced: strings that must encode as in o200k: all tokens it uses for them are kept, but for those that join
            digits.
        num_specials: how many of the ids are special tokens, named and reserved.

    Raises:
        InvalidInputError: the size cannot hold the bytes, the forced strings and the specials, or is larger than
            what o200k offers.
    """
    tokenizer = Tokenizer.o200k_harmony()
    source = tokenizer.vocabulary
    specials = _choose_specials(num_specials)
    budget = size - num_specials
    ranks = source.ranks
    parts = {ranks[token]: (ranks[left], ranks[right]) for token, (left, right) in tokenizer.merges.items()}
    barred = {ranks[token] for token in tokenizer.merges if _joins_digits(token)}
    allowed = sorted(parts.keys() - barred)
    kept = set(range(_NUM_BYTES))
    for text in forced:
        for rank in tokenizer.encode(text):
            kept |= _missing_tokens(rank, parts, kept=kept, barred=barred)
    if len(kept) > budget:
        raise InvalidInputError(
            f"the 256 bytes and the forced strings need {len(kept)} tokens, but size {size} leaves {budget} beside "
            f"{num_specials} special tokens; raise size or force fewer strings",
            param="size",
        )
    if budget > _NUM_BYTES + len(allowed):
        raise InvalidInputError(
            f"size {size} asks for {budget} ordinary tokens, but o200k offers {_NUM_BYTES + len(allowed)}", param="size"
        )
    # Equal counts go by rank: the earlier merge was the more frequent one in o200k's own training.
    for rank in sorted(allowed, key=lambda rank: (-counts.get(rank, 0), rank)):
        added = _missing_tokens(rank, parts, kept=kept, barred=barred)
        if len(kept) + len(added) <= budget:
            kept |= added
        if len(kept) == budget:
            break
    return _renumber(source, kept=sorted(kept), specials=specials, size=size)


def _choose_specials(num_specials: int) -> dict[str, int]:
    named = len(CONTROL_TOKEN_IDS)
    if not named <= num_specials <= len(SPECIAL_TOKENS):
        raise InvalidInputError(
            f"num_specials is {num_specials}; it must be from {named} (the named control tokens) "
            f"to {len(SPECIAL_TOKENS)} (all of o200k_harmony)",
            param="num_specials",
        )
    named_ids = set(CONTROL_TOKEN_IDS.values())
    reserved = [token_id for token_id in SPECIAL_TOKENS.values() if token_id not in named_ids]
    chosen = named_ids.union(reserved[: num_specials - named])
    return {name: token_id for name, token_id in SPECIAL_TOKENS.items() if token_id in chosen}


def _joins_digits(token: bytes) -> bool:
    """Whether the token holds a digit (of any script) and more: the pattern keeps digits apart from all else."""
    text = token.decode("utf-8", errors="ignore")
    return any(unicodedata.category(char).startswith("N") and token != char.encode() for char in text)


def _missing_tokens(rank: int, parts: Mapping[int, tuple[int, int]], *, kept: set[int], barred: set[int]) -> set[int]:
    """The token and all that lie on its merge path, less those kept already and those barred."""
    missing: set[int] = set()
    todo = [rank]
    while todo:
        rank = todo.pop()
        if rank in kept or rank in missing:
            continue
        if rank not in barred:
            missing.add(rank)
        todo += parts[rank]
    return missing


def _renumber(source: Vocabulary, *, kept: list[int], specials: Mapping[str, int], size: int) -> Vocabulary:
    tokens = {rank: token for token, rank in source.ranks.items()}
    return Vocabulary(
        ranks={tokens[rank]: new for new, rank in enumerate(kept)},
        specials={name: len(kept) + i for i, name in enumerate(specials)},
        size=size,
        o200k_ids=(*kept, *specials.values()),
        pattern=source.pattern,
    )
