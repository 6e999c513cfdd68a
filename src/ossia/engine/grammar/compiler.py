"""Constraints to matchers: checks them, compiles them within limits, and keeps the compiled ones."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from llguidance import LLMatcher

from ossia.core.errors import InvalidInputError
from ossia.engine.constraint import TurnConstraint
from ossia.engine.grammar.harmony_grammar import first_ids_of_results, write_turn_grammar
from ossia.engine.grammar.limits import limits_for
from ossia.engine.grammar.matcher import Matcher, MatcherRules, mask_width
from ossia.engine.grammar.output_grammar import pack_grammar, tidy_message, write_output_grammar
from ossia.engine.grammar.vocabulary import build_token_trie

if TYPE_CHECKING:
    from ossia.engine.constraint import Constraint
    from ossia.harmony.tokenizer import Tokenizer

DEFAULT_CACHE_SIZE = 64


class _Compiled(NamedTuple):
    """A grammar at its beginning, to be copied for each output."""

    inner: LLMatcher
    rules: MatcherRules
    notes: tuple[str, ...]


class GrammarCompiler:
    """Compiles constraints for one tokenizer. Safe to share between threads.

    Attributes:
        mask_width: 32-bit words of a mask.
    """

    def __init__(self, tokenizer: Tokenizer, *, cache_size: int = DEFAULT_CACHE_SIZE) -> None:
        """Readies the vocabulary (about a second for all of o200k).

        Args:
            tokenizer: the model's.
            cache_size: how many compiled grammars to keep, those used last.
        """
        self.mask_width = mask_width(tokenizer.vocab_size)
        self._tokenizer = tokenizer
        self._trie = build_token_trie(tokenizer)
        self._cache: OrderedDict[Constraint, _Compiled] = OrderedDict()
        self._cache_size = cache_size
        self._lock = threading.Lock()

    def compile(self, constraint: Constraint) -> Matcher:
        """A matcher at the beginning of an output.

        Raises:
            InvalidInputError: the constraint cannot be enforced; the message says what of it cannot and what can be,
                and `param` which part of the request it came from.
        """
        compiled = self._get(constraint)
        return Matcher(compiled.inner, compiled.rules, on_error=lambda: self._forget(constraint))

    def notes(self, constraint: Constraint) -> tuple[str, ...]:
        """What is not enforced of a constraint whose tools are not strict. Raises as `compile`."""
        return self._get(constraint).notes

    def _get(self, constraint: Constraint) -> _Compiled:
        with self._lock:
            found = self._cache.get(constraint)
            if found is not None:
                self._cache.move_to_end(constraint)
                return found
        compiled = self._compile(constraint)
        with self._lock:
            self._cache[constraint] = compiled
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return compiled

    def _forget(self, constraint: Constraint) -> None:
        """Drops a grammar with which something broke: its copies share parts of the library's lexer."""
        with self._lock:
            self._cache.pop(constraint, None)

    def _compile(self, constraint: Constraint) -> _Compiled:
        tokenizer, limits = self._tokenizer, limits_for(constraint)
        rules = MatcherRules(tokenizer.vocab_size, (tokenizer.endoftext,), tokenizer.start, frozenset())
        if isinstance(constraint, TurnConstraint):
            text, notes = write_turn_grammar(constraint, tokenizer=tokenizer, limits=limits)
            if constraint.num_calls > 1:
                rules = rules._replace(result_ids=first_ids_of_results(constraint, tokenizer=tokenizer))
        else:
            piece = write_output_grammar(constraint, name="output", param="constraint", limits=limits)
            sides = [(piece.side_name, piece.side_grammar)] if piece.side_name and piece.side_grammar else []
            text, notes = pack_grammar([f"start: {piece.body}"], sides), piece.notes
            rules = rules._replace(end_ids=(tokenizer.endoftext, tokenizer.return_))
        inner = LLMatcher(self._trie, text, log_level=0, limits=limits)
        inner.compute_bitmask()  # a grammar too wide for its very first token is told of here, and later masks are warm
        if inner.is_error():
            raise InvalidInputError(
                f"the constraint is too large: {tidy_message(inner.get_error())}; use fewer or smaller schemas",
                param="constraint",
            )
        return _Compiled(inner, rules, notes)
