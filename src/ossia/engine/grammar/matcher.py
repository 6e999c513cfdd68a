"""Follows one output through its grammar: which tokens may come next, and whether it is complete."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ossia.engine.grammar.output_grammar import tidy_message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from llguidance import LLMatcher


def mask_width(vocab_size: int) -> int:
    """How many 32-bit words a mask has; bit i % 32 of word i // 32 is token i's."""
    return (vocab_size + 31) // 32


class MatcherRules(NamedTuple):
    """What a Matcher must know besides the grammar.

    Attributes:
        vocab_size: of the model.
        end_ids: tokens that end an output wherever its grammar is satisfied; the first is the grammar library's own.
        start_id: `<|start|>`.
        result_ids: behind `<|start|>`, tokens with which the model says that it waits for the results of its calls.
    """

    vocab_size: int
    end_ids: tuple[int, ...]
    start_id: int
    result_ids: frozenset[int]


class Matcher:
    """The state of one output. Not for several threads at once.

    It never raises on what a model does. What it cannot follow sets `error`. Where the output is finished or broken,
    masks allow the end id alone, so that whoever samples there (behind a draft, say) has something to choose.

    Attributes:
        error: why it broke, as when the grammar grew too complex for its limits; None while all is well.
    """

    def __init__(self, beginning: LLMatcher, rules: MatcherRules, *, on_error: Callable[[], None]) -> None:
        """Starts an output.

        Args:
            beginning: the compiled grammar, which stays as it is.
            rules: see there.
            on_error: called when it breaks.
        """
        self._beginning = beginning
        self._inner = beginning.deep_copy()
        self._rules = rules
        self._on_error = on_error
        self._ids: list[int] = []
        self._has_ended = False  # by an end id
        self.error: str | None = None
        self._note_error()

    @property
    def num_tokens(self) -> int:
        """Tokens taken so far."""
        return len(self._ids)

    @property
    def is_finished(self) -> bool:
        """Whether the output is complete and nothing may follow."""
        return self._has_ended or (self.error is None and self._inner.is_stopped())

    @property
    def is_accepting(self) -> bool:
        """Whether the output may end here: it is complete as it stands, though more may be allowed."""
        return self._has_ended or (self.error is None and self._inner.is_accepting())

    @property
    def num_excess(self) -> int:
        """Tokens at the end that only say that the output is over: leave them out of what is parsed or replayed.

        An end id where the grammar did not ask for one, or the `<|start|>` and the token behind it with which a turn
        of several calls ends.
        """
        if self._has_ended:
            return 1
        if len(self._ids) >= 2 and self._ids[-2] == self._rules.start_id and self._ids[-1] in self._rules.result_ids:
            return 2
        return 0

    def fill_mask(self, row: npt.NDArray[np.int32]) -> None:
        """Writes the allowed tokens as bits over all of `row` [mask_width], contiguous int32."""
        if not self._can_go_on():
            self._close_mask(row)
            return
        self._inner.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        self._finish_mask(row)

    def advance(self, token_id: int) -> bool:
        """Takes a token if it is allowed; otherwise changes nothing and says False."""
        if not self._can_go_on() or not 0 <= token_id < self._rules.vocab_size:
            return False
        if token_id in self._rules.end_ids and self._inner.is_accepting():
            self._has_ended = True
        elif self._inner.try_consume_tokens([token_id]) != 1:
            self._note_error()
            return False
        self._ids.append(token_id)
        return True

    def rollback(self, num_tokens: int) -> None:
        """Takes back the last tokens. It reads the others again, so for drafts use a fork."""
        if not 0 <= num_tokens <= len(self._ids):
            raise ValueError(f"{num_tokens} tokens to take back, but there are {len(self._ids)}")
        if not num_tokens:
            return
        # The library's own way back counts the bytes of a header's tokens wrongly in some states (1.9.1).
        del self._ids[len(self._ids) - num_tokens :]
        self._has_ended = False
        self._inner = self._beginning.deep_copy()
        self._inner.try_consume_tokens(self._ids)
        self._note_error()

    def fork(self) -> Matcher:
        """A second matcher in the same state; the two go on apart (some microseconds)."""
        other = object.__new__(Matcher)
        other._beginning = self._beginning
        other._inner = self._inner.deep_copy()
        other._rules = self._rules
        other._on_error = self._on_error
        other._ids = list(self._ids)
        other._has_ended = self._has_ended
        other.error = self.error
        return other

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens may follow one after the other. Changes nothing."""
        ahead = self.fork()
        for count, token_id in enumerate(token_ids):
            if not ahead.advance(token_id):
                return count
        return len(token_ids)

    def forced_tokens(self, *, limit: int = 32) -> list[int]:
        """Tokens that must come next, as each is the only one allowed at its place; empty where there is a choice."""
        row = np.empty(mask_width(self._rules.vocab_size), np.int32)
        forced: list[int] = []
        ahead = self
        while len(forced) < limit and ahead._can_go_on():
            ahead.fill_mask(row)
            words = np.flatnonzero(row)
            if len(words) != 1:
                break
            word = int(row.view(np.uint32)[words[0]])
            if ahead.error is not None or word & (word - 1):
                break
            forced.append(int(words[0]) * 32 + word.bit_length() - 1)
            ahead = self.fork() if ahead is self else ahead
            ahead.advance(forced[-1])
        return forced

    def _can_go_on(self) -> bool:
        return self.error is None and not self._has_ended and not self._inner.is_stopped()

    def _finish_mask(self, row: npt.NDArray[np.int32]) -> None:
        """Allows the other end ids where the library allows its own."""
        if self._inner.is_error():
            self._note_error()
            self._close_mask(row)
            return
        first, *others = self._rules.end_ids
        if others and row[first >> 5] >> (first & 31) & 1:
            words = row.view(np.uint32)
            for token_id in others:
                words[token_id >> 5] |= np.uint32(1 << (token_id & 31))

    def _close_mask(self, row: npt.NDArray[np.int32]) -> None:
        end_id = self._rules.end_ids[0]
        row.fill(0)
        row.view(np.uint32)[end_id >> 5] = np.uint32(1 << (end_id & 31))

    def _note_error(self) -> None:
        if self._inner.is_error() and self.error is None:
            self.error = tidy_message(self._inner.get_error())
            self._on_error()


class MaskRequest(NamedTuple):
    """Masks wanted for one output.

    Attributes:
        matcher: whose.
        row: where its mask goes; those behind the drafts follow.
        drafts: guesses for its next tokens.
    """

    matcher: Matcher
    row: int
    drafts: tuple[int, ...] = ()


class MaskFiller:
    """Fills the masks of a batch, on several threads where that pays."""

    def __init__(self, *, num_threads: int | None = None) -> None:
        """Starts the threads: by default as many as the library finds right (four fifths of the cores)."""
        from llguidance import LLExecutor

        self._executor = LLExecutor(num_threads)

    def fill(self, requests: Sequence[MaskRequest], masks: npt.NDArray[np.int32]) -> None:
        """Writes rows of `masks` [rows, mask_width], contiguous int32; rows that nobody asks for stay as they are.

        A request takes 1 + len(drafts) rows; the k-th of them says what may follow k drafts, or allows the end id
        alone where those drafts are not allowed. The matchers stay where they are.
        """
        waiting: list[tuple[Matcher, int]] = []
        for request in requests:
            matcher = request.matcher
            for row in range(request.row, request.row + 1 + len(request.drafts)):
                if not matcher._can_go_on():
                    matcher._close_mask(masks[row])
                    continue
                waiting.append((matcher, row))
                place = row - request.row
                if place < len(request.drafts):
                    ahead = matcher.fork()
                    if ahead.advance(request.drafts[place]):
                        matcher = ahead
                    else:
                        for rest in range(row + 1, request.row + 1 + len(request.drafts)):
                            matcher._close_mask(masks[rest])
                        break
        if waiting:
            self._executor.unsafe_compute_mask_ptr(
                [(matcher._inner, row) for matcher, row in waiting],
                masks.ctypes.data,
                masks.shape[1] * masks.itemsize,
                masks.shape[0],
            )
        for matcher, row in waiting:
            matcher._finish_mask(masks[row])
