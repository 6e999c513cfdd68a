"""One answer in the making: its tokens, and how far the cache follows them. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from ossia.engine.request import FinishReason, Request


class SequenceState(Enum):
    """Where a sequence stands."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(eq=False, kw_only=True, slots=True)
class Sequence:
    """One of a request's `n` answers.

    Tokens are `[0, num_computed)` in the cache (or being written there by a step that was launched),
    `[num_computed, len(token_ids))` known and not computed, and then `num_in_flight` that a launched step will sample.

    Attributes:
        request: whose answer it is.
        index: which of the request's answers, 0 to n - 1.
        seed: its own; all randomness of a token is a function of this and the token's index in the output.
        arrival: its place among all sequences that ever came.
        max_length: prompt and output together never get longer.
        token_ids: prompt, then output.
        num_computed: see above.
        num_in_flight: tokens that launched steps sample and that are not known yet, a step with drafts counting for
            one. At most 1 when a step is planned, so 2 between the launch of a step and the commit of the one before.
        num_pending: launched steps that are not committed, prompt chunks among them.
        num_cached: prompt tokens that the prefix cache spared, at the first admission.
        full_pages: page of each block, for the layers with full attention.
        sliding_pages: likewise for the sliding layers; 0 where the window has passed.
        block_hashes: prefix hash of each complete block of known tokens, as far as needed so far.
        num_hashed: blocks that were offered to the prefix cache.
        num_preemptions: how often it had to start over.
    """

    request: Request
    index: int
    seed: int
    arrival: int
    max_length: int
    token_ids: list[int]
    num_prompt: int
    state: SequenceState = SequenceState.WAITING
    finish_reason: FinishReason | None = None
    num_computed: int = 0
    num_in_flight: int = 0
    num_pending: int = 0
    num_cached: int = 0
    full_pages: list[int] = field(default_factory=list[int])
    sliding_pages: list[int] = field(default_factory=list[int])
    block_hashes: list[bytes] = field(default_factory=list[bytes])
    num_hashed: int = 0
    num_preemptions: int = 0

    @property
    def length(self) -> int:
        """Tokens it has, counting those in flight."""
        return len(self.token_ids) + self.num_in_flight

    @property
    def num_output(self) -> int:
        """Tokens sampled so far and known."""
        return len(self.token_ids) - self.num_prompt

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt :]

    @property
    def is_finished(self) -> bool:
        return self.state is SequenceState.FINISHED
