"""Names for blocks of tokens: a hash over the block and all that stands before it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

_DIGEST_SIZE = 32
"""Bytes. A collision would show one request the cache of another, so it is long enough to withstand malice."""


def root_hash(salt: str) -> bytes:
    """Return what stands before the first block: prefixes with different salts never meet."""
    return blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_SIZE, person=b"ossia-salt").digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Return the hash of a complete block; `parent` is that of the block before it, or `root_hash`."""
    return blake2b(parent + array("I", token_ids).tobytes(), digest_size=_DIGEST_SIZE).digest()
