"""What one step runs, as the scheduler says it. No torch."""

from __future__ import annotations

from typing import NamedTuple

from ossia.engine.sequence import Sequence


class ScheduledSequence(NamedTuple):
    """A sequence's share of a step: the tokens at `[start, start + num_tokens)`, the drafts last.

    Attributes:
        sequence: whose pages already cover these tokens.
        start: its `num_computed` before this step.
        num_tokens: how many tokens the model runs for it, drafts included.
        drafts: guesses for the tokens behind the known ones, to be verified in this step.
        is_last_in_flight: the last token is being sampled by the step before; its id is on the device only.
        num_samples: tokens to sample at the end: 0 while the prompt is not all computed, else 1 + len(drafts).
        epoch: the sequence's `num_preemptions` when this was planned; a result of another epoch is void.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    drafts: tuple[int, ...]
    is_last_in_flight: bool
    num_samples: int
    epoch: int

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


class StepPlan(NamedTuple):
    """One step: decoding sequences first, then chunks of prompts.

    Attributes:
        scheduled: the sequences that run, none twice.
        num_tokens: tokens in all.
        preempted: sequences that lost their pages to make room and wait again.
        failed: sequences that not even the whole cache can hold. They are finished already, with FinishReason.ERROR.
    """

    scheduled: tuple[ScheduledSequence, ...]
    num_tokens: int
    preempted: tuple[Sequence, ...]
    failed: tuple[Sequence, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not self.scheduled
