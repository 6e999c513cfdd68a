from __future__ import annotations

import numpy as np
import pytest

from ossia.engine.grammar.compiler import GrammarCompiler
from ossia.engine.grammar.matcher import Matcher
from ossia.harmony.tokenizer import Tokenizer


class Grammars:
    """A compiler with its tokenizer, and what tests ask of a matcher."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.compiler = GrammarCompiler(tokenizer)
        self.compile = self.compiler.compile

    def row(self) -> np.ndarray:
        return np.zeros(self.compiler.mask_width, np.int32)

    def allowed(self, matcher: Matcher) -> set[int]:
        row = self.row()
        matcher.fill_mask(row)
        return self.ids_of(row)

    def ids_of(self, row: np.ndarray) -> set[int]:
        return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())

    def takes(self, matcher: Matcher, text: str) -> bool:
        """Whether the matcher takes a text, control tokens by their names, each token by its mask."""
        for token_id in self.tokenizer.encode_with_specials(text):
            if token_id not in self.allowed(matcher):
                return False
            assert matcher.advance(token_id), "the mask allowed what the matcher refuses"
        return True

    def matches(self, constraint: object, text: str) -> bool:
        """Whether a text, cut as the tokenizer cuts it, is a whole output."""
        matcher = self.compile(constraint)
        return self.takes(matcher, text) and matcher.is_accepting


@pytest.fixture(scope="session")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer)
