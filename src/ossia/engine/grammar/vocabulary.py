"""A tokenizer as llguidance wants it: the bytes of every token in a trie, special tokens apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from llguidance import LLTokenizer

if TYPE_CHECKING:
    from ossia.harmony.tokenizer import Tokenizer


def build_token_trie(tokenizer: Tokenizer) -> LLTokenizer:
    """Builds llguidance's side of a tokenizer (about a second for all of o200k).

    The one end token is `<|endoftext|>`; grammars of whole turns name `<|return|>` and `<|call|>` themselves.
    """
    vocabulary = tokenizer.vocabulary
    # The constructor from a tiktoken vocabulary encodes in Rust, without the interpreter's lock; it has no type stub.
    from_tiktoken = cast("Any", LLTokenizer).from_tiktoken
    return from_tiktoken(
        encoder=dict(vocabulary.ranks),
        special_tokens=dict(vocabulary.specials),
        pattern=vocabulary.pattern,
        eos_token=tokenizer.endoftext,
        n_vocab=vocabulary.size,
        slices=None,
    )
