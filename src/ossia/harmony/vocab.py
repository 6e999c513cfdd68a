"""The o200k_harmony vocabulary: its ranks, its control tokens, and smaller vocabularies of the same kind.

A token's rank is at once its id and its merge priority, as in tiktoken. The package ships the ranks of o200k_base
as `data/o200k_base.merges.xz`: 256 single bytes in rank order, then as unsigned LEB128 numbers the left id of each
merge, rank after rank, and then all the right ids. The text of the equivalent `o200k_base.tiktoken` has the SHA-256
`O200K_TIKTOKEN_SHA256`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import lzma
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from ossia.core.errors import VocabularyError

if TYPE_CHECKING:
    from collections.abc import Mapping

O200K_TIKTOKEN_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
# Of the decompressed merge list. It stands for the hash above at load time, since the ranks are a pure function of
# the list; rebuilding the .tiktoken text to hash that would double the load time (a test does it).
O200K_MERGES_SHA256 = "36f991d1a7a4bd44b13c64fd3bcc78bf9987eb6aab059306b29bcfed006a1612"

O200K_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
"""How o200k cuts a text into pieces before merging bytes."""

O200K_VOCAB_SIZE = 201_088
"""Ordinary tokens, named control tokens and reserved ones together: the vocab_size of the published models."""


class ControlToken(StrEnum):
    """The named control tokens. Only the renderer and trusted templates write them; text never becomes one."""

    STARTOFTEXT = "<|startoftext|>"
    ENDOFTEXT = "<|endoftext|>"
    RETURN = "<|return|>"
    CONSTRAIN = "<|constrain|>"
    CHANNEL = "<|channel|>"
    START = "<|start|>"
    END = "<|end|>"
    MESSAGE = "<|message|>"
    CALL = "<|call|>"
    ENDOFPROMPT = "<|endofprompt|>"


CONTROL_TOKEN_IDS: dict[ControlToken, int] = {
    ControlToken.STARTOFTEXT: 199_998,
    ControlToken.ENDOFTEXT: 199_999,
    ControlToken.RETURN: 200_002,
    ControlToken.CONSTRAIN: 200_003,
    ControlToken.CHANNEL: 200_005,
    ControlToken.START: 200_006,
    ControlToken.END: 200_007,
    ControlToken.MESSAGE: 200_008,
    ControlToken.CALL: 200_012,
    ControlToken.ENDOFPROMPT: 200_018,
}
"""Ids in o200k_harmony. Other vocabularies place the same names elsewhere: ask a Tokenizer, not this table."""


def _special_tokens() -> dict[str, int]:
    names = {token_id: token.value for token, token_id in CONTROL_TOKEN_IDS.items()}
    first = min(names)
    return {names.get(i, f"<|reserved_{i}|>"): i for i in range(first, O200K_VOCAB_SIZE)}


SPECIAL_TOKENS: dict[str, int] = _special_tokens()
"""Every special token of o200k_harmony by id order: the named ones, and `<|reserved_N|>` for the other ids N."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """A byte-level BPE vocabulary with control tokens behind it.

    Attributes:
        ranks: ordinary tokens; the rank is the id and the merge priority.
        specials: special tokens by name; never produced by encoding text.
        size: how many ids the model has (its vocab_size). Ids without a token pad it and decode to nothing.
        o200k_ids: for each id with a token, in id order, the id of the same token in o200k_harmony; None if unknown.
        pattern: the regular expression that cuts text into pieces.

    Raises:
        VocabularyError: a single byte is missing, ids clash or lie outside the size, or o200k_ids has a wrong length.
    """

    ranks: Mapping[bytes, int]
    specials: Mapping[str, int]
    size: int
    o200k_ids: tuple[int, ...] | None = None
    pattern: str = O200K_PATTERN

    def __post_init__(self) -> None:
        missing = [byte for byte in range(256) if bytes([byte]) not in self.ranks]
        if missing:
            raise VocabularyError(
                f"the vocabulary lacks {len(missing)} of the 256 single bytes (first: 0x{missing[0]:02x}); "
                "without them some texts cannot be encoded"
            )
        ids = {*self.ranks.values(), *self.specials.values()}
        if len(ids) != len(self.ranks) + len(self.specials):
            raise VocabularyError("two tokens of the vocabulary share an id; each token needs an id of its own")
        if min(ids) < 0 or max(ids) >= self.size:
            raise VocabularyError(
                f"token ids run from {min(ids)} to {max(ids)}, but a vocabulary of size {self.size} "
                f"allows 0 to {self.size - 1}"
            )
        if self.o200k_ids is not None and len(self.o200k_ids) != len(ids):
            raise VocabularyError(
                f"o200k_ids has {len(self.o200k_ids)} entries, but the vocabulary has {len(ids)} tokens; "
                "it must name one o200k id a token"
            )


def load_o200k_ranks() -> dict[bytes, int]:
    """Rebuilds the 199,998 ranks of o200k_base from the packaged merge list (about 0.15 s).

    Raises:
        VocabularyError: the packaged file is missing, damaged, or not the one that this release was made with.
    """
    path = resources.files("ossia.harmony").joinpath("data", "o200k_base.merges.xz")
    try:
        packed = lzma.decompress(path.read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise VocabularyError(
            f"the packaged tokenizer data {path} cannot be read ({error}); reinstall ossia"
        ) from error
    return unpack_merges(packed, sha256=O200K_MERGES_SHA256)


def unpack_merges(packed: bytes, *, sha256: str) -> dict[bytes, int]:
    """Turns a decompressed merge list into ranks.

    Args:
        packed: 256 single bytes in rank order, then LEB128 numbers: every merge's left id, then every right id.
        sha256: what the hash of `packed` must be, in hex.

    Raises:
        VocabularyError: the hash differs.
    """
    digest = hashlib.sha256(packed).hexdigest()
    if digest != sha256:
        raise VocabularyError(
            f"the merge list of the tokenizer has SHA-256 {digest}, but {sha256} is wanted; reinstall ossia"
        )
    tokens = [packed[i : i + 1] for i in range(256)]
    numbers = _decode_leb128(packed[256:])
    half = len(numbers) // 2
    for left, right in zip(numbers[:half], numbers[half:], strict=True):
        tokens.append(tokens[left] + tokens[right])
    return {token: rank for rank, token in enumerate(tokens)}


def _decode_leb128(data: bytes) -> list[int]:
    octets = np.frombuffer(data, dtype=np.uint8)
    last = np.flatnonzero(octets < 0x80)
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    values = (octets[first] & 0x7F).astype(np.int64)
    for place in range(1, int(length.max(initial=1))):
        long = length > place
        values[long] |= (octets[first[long] + place] & 0x7F).astype(np.int64) << (7 * place)
    return values.tolist()


def tiktoken_sha256(ranks: Mapping[bytes, int]) -> str:
    """The SHA-256, in hex, of the `.tiktoken` text (base64, space, rank, a line a token) of these ranks."""
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in sorted(ranks.items(), key=lambda x: x[1]))
    return hashlib.sha256(b"".join(lines)).hexdigest()


@functools.cache
def o200k_harmony_vocabulary() -> Vocabulary:
    """The vocabulary of the published models, built once a process."""
    return Vocabulary(
        ranks=load_o200k_ranks(),
        specials=SPECIAL_TOKENS,
        size=O200K_VOCAB_SIZE,
        o200k_ids=tuple(range(O200K_VOCAB_SIZE)),
    )


def recover_merges(ranks: Mapping[bytes, int]) -> dict[bytes, tuple[bytes, bytes]]:
    """For each token longer than a byte, the two tokens that BPE joins last to make it, in rank order.

    A vocabulary from BPE training stores no merges, but they are implied: encoding a token's bytes with the ranks
    below its own must leave exactly two tokens.

    Raises:
        VocabularyError: for some token it does not, so the ranks do not come from merging pairs.
    """
    merges: dict[bytes, tuple[bytes, bytes]] = {}
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            merges[token] = _split_token(token, rank, ranks)
    return merges


def _split_token(token: bytes, rank: int, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best, where = rank, -1
        for i in range(len(parts) - 1):
            joined = ranks.get(parts[i] + parts[i + 1], rank)
            if joined < best:
                best, where = joined, i
        if where < 0:
            raise VocabularyError(
                f"token {token!r} (rank {rank}) cannot be made by merging two tokens of lower rank; "
                "the vocabulary is not closed under its merges"
            )
        parts[where : where + 2] = [parts[where] + parts[where + 1]]
    if any(ranks[part] > rank for part in parts):
        raise VocabularyError(f"token {token!r} has rank {rank}, below that of its own parts {parts!r}")
    return parts[0], parts[1]
