"""Which sequences the next step runs, and which tokens of theirs. No torch.

The life of a sequence: `add` puts it in the queue; `schedule` admits it, finds its prefix, plans its prompt in chunks
and then a token a step; `commit` takes the tokens; `finish` ends it, at any moment. Short of pages, the worst running
sequence goes back to the queue and starts over (its tokens stay).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence as ListLike

from ossia.core.errors import ContextLengthError, EngineOverloadedError, InvalidInputError
from ossia.engine.blocks import BlockManager, PrefixMatch
from ossia.engine.plan import ScheduledSequence, StepPlan
from ossia.engine.request import FinishReason
from ossia.engine.sequence import Sequence, SequenceState
from ossia.engine.waiting import PRIORITY_STEP, WaitingQueue, rank

__all__ = ["PRIORITY_STEP", "CanRunAhead", "Propose", "Scheduler", "SchedulerConfig"]

Propose = Callable[[Sequence, int], tuple[int, ...]]
"""From a sequence and a number, at most so many guesses for the tokens behind its known ones."""

CanRunAhead = Callable[[Sequence], bool]
"""Whether a sequence may be planned for a token while the one before is being sampled."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerConfig:
    """Limits of a step and of the queue.

    Attributes:
        context_length: tokens of a sequence, prompt and output together.
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: tokens that one step computes; a longer prompt is computed in chunks.
        max_queue: sequences that wait at once, those that had to start over among them.
        max_drafts: drafts a sequence and step, where drafts are made at all.
        watermark: share of all pages that an admission leaves free, or one page for each running sequence if that is
            more, so that those do not run short at once. Not heeded if nothing runs.
    """

    context_length: int
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_queue: int = 4096
    max_drafts: int = 8
    watermark: float = 0.01

    def __post_init__(self) -> None:
        for name, least in (
            ("context_length", 2),
            ("max_num_seqs", 1),
            ("max_num_batched_tokens", 2),
            ("max_queue", 1),
            ("max_drafts", 0),
        ):
            value = getattr(self, name)
            if value < least:
                raise InvalidInputError(f"{name} is {value}; allowed: a whole number of at least {least}", param=name)
        if not 0 <= self.watermark < 1:
            raise InvalidInputError(f"watermark is {self.watermark}; allowed: from 0 to below 1", param="watermark")


@dataclasses.dataclass(slots=True)
class _Step:
    """A plan in the making.

    Attributes:
        num_left: tokens that the step may still take.
        is_short: somebody did not get pages, so nobody is admitted.
    """

    num_left: int
    scheduled: list[ScheduledSequence] = dataclasses.field(default_factory=list[ScheduledSequence])
    preempted: list[Sequence] = dataclasses.field(default_factory=list[Sequence])
    failed: list[Sequence] = dataclasses.field(default_factory=list[Sequence])
    is_short: bool = False


class Scheduler:
    """Continuous batching over one cache.

    Steps may overlap: `schedule` may be called while the plan before is launched and not committed (that one only). The
    device must run plans in the order in which they were made. Results are then committed in that order, too.

    Every call that changes something must come from one thread.

    Attributes:
        config: the limits.
        blocks: the cache's bookkeeping.
        num_preemptions: how often a sequence had to start over.
    """

    def __init__(self, config: SchedulerConfig, *, blocks: BlockManager) -> None:
        self.config = config
        self.blocks = blocks
        self.num_preemptions = 0
        self._waiting = WaitingQueue()
        # Running sequences: with more than one token to compute, and with one. In the order of their turns.
        self._prompts: dict[Sequence, None] = {}
        self._decodes: dict[Sequence, None] = {}
        self._blocked: tuple[Sequence, int, int] | None = (
            None  # who was not admitted, at how many free pages and running
        )

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._prompts) + len(self._decodes)

    @property
    def has_work(self) -> bool:
        """Whether any sequence is not finished."""
        return bool(self._decodes or self._prompts or self._waiting)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """All that hold pages."""
        return (*self._decodes, *self._prompts)

    def add(self, sequences: ListLike[Sequence]) -> None:
        """Queue the answers of one request, all or none.

        Raises:
            EngineOverloadedError: too many wait already.
            ContextLengthError: the prompt leaves no room for an answer.
            InvalidInputError: it can never be served: its prompt does not fit the cache, or it has too many answers.
        """
        config = self.config
        first = sequences[0]
        if first.num_prompt >= config.context_length:
            raise ContextLengthError(num_tokens=first.num_prompt, limit=config.context_length - 1, param="prompt_ids")
        num_pages, num_usable = self.blocks.count_least(first.num_prompt), self.blocks.num_pages - 1
        if num_pages > num_usable:
            raise InvalidInputError(
                f"the prompt of {first.num_prompt} tokens takes {num_pages} pages of the KV cache, which has "
                f"{num_usable}; shorten the prompt or give the cache more pages",
                param="prompt_ids",
            )
        if len(sequences) > config.max_queue:
            raise InvalidInputError(
                f"n is {len(sequences)}; allowed: at most max_queue, {config.max_queue}; ask for fewer or raise it",
                param="n",
            )
        if len(self._waiting) + len(sequences) > config.max_queue:
            raise EngineOverloadedError(num_new=len(sequences), num_waiting=len(self._waiting), limit=config.max_queue)
        self._waiting.push(first)
        if first.num_prompt > self.blocks.page_size and self.blocks.reads_cache(first):
            self._waiting.push_aside(sequences[1:], leader=first)
        else:
            for sequence in sequences[1:]:
                self._waiting.push(sequence)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence wherever it stands: its pages are free at once, and what is in flight for it is void."""
        if sequence.is_finished:
            return
        if sequence.state is SequenceState.RUNNING:
            self._stop_running(sequence)
        else:
            self._waiting.discard(sequence)
        self._waiting.note_gone(sequence)
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason

    def schedule(self, *, propose: Propose | None = None, can_run_ahead: CanRunAhead | None = None) -> StepPlan:
        """Plan a step: first a token for everyone that decodes, then chunks of running prompts, then admissions.

        Pages are taken and `num_computed` moves on as if the step had run. A sequence with a token in flight is planned
        for the next one, unless that would pass its `max_length`, it may have drafts, or `can_run_ahead` says no.

        A plan can be empty although there is work: everything then waits for a commit, or somebody failed.

        Args:
            propose: makes drafts, for requests with `speculate`.
            can_run_ahead: asked only about sequences with a token in flight; without it, all may.
        """
        step = _Step(num_left=self.config.max_num_batched_tokens)
        self._schedule_decodes(step, propose, can_run_ahead)
        self._schedule_prompts(step)
        if not step.is_short:
            self._admit(step)
        scheduled = step.scheduled
        num_tokens = self.config.max_num_batched_tokens - step.num_left
        if step.preempted:  # perhaps after their turn in this very step
            scheduled = [share for share in scheduled if share.epoch == share.sequence.num_preemptions]
            num_tokens = sum(share.num_tokens for share in scheduled)
        return StepPlan(tuple(scheduled), num_tokens, tuple(step.preempted), tuple(step.failed))

    def commit(self, scheduled: ScheduledSequence, tokens: ListLike[int]) -> None:
        """Take what a step gave a sequence.

        The caller then looks whether the sequence ends by it, `max_length` included, and calls `finish`.

        Args:
            scheduled: its share of the plan.
            tokens: the sampled ids, in order: the accepted drafts and one more. None if `num_samples` is 0.
        """
        sequence, start, num_tokens, drafts, _, num_samples, epoch = scheduled
        if sequence.is_finished or epoch != sequence.num_preemptions:
            return
        end = start + num_tokens
        sequence.num_pending -= 1
        if num_samples:
            assert 0 < len(tokens) <= num_samples, "a step that samples gives at least one token"
            sequence.num_in_flight -= 1
            sequence.token_ids.extend(tokens)
            if drafts:
                end -= num_samples - len(tokens)
                sequence.num_computed = end
        # Not further than this step: a later one may be in flight, and can still be rolled back.
        self.blocks.register(sequence, end)
        self.blocks.release_passed(sequence, end)
        if end >= sequence.num_prompt:
            self._waiting.note_computed(sequence)

    def rollback(self, plan: StepPlan) -> None:
        """Forget a plan of which nothing was committed and whose tokens do not count; whoever ran in it runs again.

        Admissions stand, and so do preemptions. If a later plan was launched, that one must be rolled back as well.
        """
        for sequence, start, _, _, _, num_samples, epoch in plan.scheduled:
            if sequence.is_finished or epoch != sequence.num_preemptions:
                continue
            sequence.num_pending -= 1
            sequence.num_in_flight -= num_samples > 0
            sequence.num_computed = min(sequence.num_computed, start)
            if sequence.length - sequence.num_computed > 1 and sequence in self._decodes:
                del self._decodes[sequence]
                self._prompts[sequence] = None

    def _schedule_decodes(self, step: _Step, propose: Propose | None, can_run_ahead: CanRunAhead | None) -> None:
        blocks = self.blocks
        # Prompts keep a quarter of the step, or many decodes in a small step would shut them out.
        num_reserved = max(1, step.num_left // 4) if self._has_prompt_work() else 0
        num_left = step.num_left - num_reserved
        num_spare = num_left - len(self._decodes)  # for drafts, when everybody has a token
        for sequence in list(self._decodes):
            if num_left <= 0:
                self._rotate(step)
                break
            num_in_flight = sequence.num_in_flight
            start = sequence.num_computed
            length = len(sequence.token_ids) + num_in_flight
            # The first test fails behind a step with drafts, for nobody knows yet how many will hold.
            if start != length - 1 or length >= sequence.max_length or sequence.state is not SequenceState.RUNNING:
                continue
            drafts: tuple[int, ...] = ()
            if num_in_flight:
                is_guessing = propose is not None and sequence.request.params.speculate
                if num_in_flight > 1 or is_guessing or (can_run_ahead is not None and not can_run_ahead(sequence)):
                    continue
            elif propose is not None and num_spare > 0 and sequence.request.params.speculate:
                drafts = self._draft(sequence, propose, num_spare)
                num_spare -= len(drafts)
            num_samples = 1 + len(drafts)
            end = start + num_samples
            if end > blocks.capacity(sequence) and not self._make_room(sequence, end, step):
                continue
            sequence.num_computed = end
            sequence.num_in_flight = num_in_flight + 1
            sequence.num_pending += 1
            num_left -= num_samples
            share = (sequence, start, num_samples, drafts, num_in_flight > 0, num_samples, sequence.num_preemptions)
            step.scheduled.append(ScheduledSequence._make(share))
        step.num_left = num_left + num_reserved

    def _draft(self, sequence: Sequence, propose: Propose, num_spare: int) -> tuple[int, ...]:
        """Ask for as many drafts as there is place for, and cost nobody else's pages."""
        num_drafts = min(
            self.config.max_drafts,
            num_spare,
            sequence.max_length - sequence.length - 1,
            self.blocks.reachable_length(sequence) - sequence.num_computed - 1,
        )
        return propose(sequence, num_drafts)[:num_drafts] if num_drafts > 0 else ()

    def _has_prompt_work(self) -> bool:
        if self._prompts:
            return True
        head = self._waiting.peek()
        return head is not None and self.num_running < self.config.max_num_seqs and not self._is_blocked(head)

    def _rotate(self, step: _Step) -> None:
        """Put those that had their turn behind those that had not."""
        for share in step.scheduled:
            if share.sequence in self._decodes:
                del self._decodes[share.sequence]
                self._decodes[share.sequence] = None

    def _schedule_prompts(self, step: _Step) -> None:
        for sequence in list(self._prompts):
            if step.num_left <= 0:
                break
            if sequence.state is not SequenceState.RUNNING:
                continue
            start = sequence.num_computed
            if self.blocks.reachable_length(sequence) > start or self._make_room(sequence, start + 1, step):
                self._launch_chunk(sequence, step)

    def _launch_chunk(self, sequence: Sequence, step: _Step) -> None:
        """Plan as much of its known tokens as the step and the free pages allow, one at least."""
        start, num_known = sequence.num_computed, len(sequence.token_ids)
        end = min(num_known, start + step.num_left, self.blocks.reachable_length(sequence))
        self.blocks.allocate(sequence, end)
        num_samples = int(end == num_known)
        sequence.num_computed = end
        sequence.num_in_flight += num_samples
        sequence.num_pending += 1
        step.num_left -= end - start
        step.scheduled.append(
            ScheduledSequence(sequence, start, end - start, (), False, num_samples, sequence.num_preemptions)
        )
        if num_samples:
            self._prompts.pop(sequence, None)
            self._decodes[sequence] = None
        else:
            self._prompts[sequence] = None

    def _admit(self, step: _Step) -> None:
        while step.num_left > 0 and self.num_running < self.config.max_num_seqs:
            sequence = self._waiting.peek()
            if sequence is None or self._is_blocked(sequence):
                return
            match = self.blocks.find_prefix(sequence)
            if self.num_running and not self._has_room(sequence, match):
                self._blocked = sequence, self.blocks.num_free, self.num_running
                return
            self._waiting.pop()
            self.blocks.take_prefix(sequence, match)
            sequence.state = SequenceState.RUNNING
            self._prompts[sequence] = None
            if self._make_room(sequence, sequence.num_computed + 1, step):
                self._launch_chunk(sequence, step)

    def _has_room(self, sequence: Sequence, match: PrefixMatch) -> bool:
        """Whether all its tokens fit, beside the watermark.

        No running prompt still needs pages here: an unfinished one has taken the rest of the step, or of the pages.
        """
        config, blocks = self.config, self.blocks
        num_needed = match.num_idle + blocks.count_missing(
            match.num_blocks,
            position=match.num_blocks * blocks.page_size,
            length=len(sequence.token_ids),
            chunk=config.max_num_batched_tokens,
        )
        num_kept = max(int(config.watermark * blocks.num_pages), self.num_running)
        return num_needed + num_kept <= blocks.num_free

    def _is_blocked(self, sequence: Sequence) -> bool:
        """Whether nothing has changed for the better since it was refused."""
        if self._blocked is None or self._blocked[0] is not sequence:
            return False
        return self.blocks.num_free <= self._blocked[1] and self.num_running == self._blocked[2]

    def _make_room(self, sequence: Sequence, length: int, step: _Step) -> bool:
        """Take pages for its first `length` tokens, from worse sequences if need be."""
        while not self.blocks.can_allocate(sequence, length):
            step.is_short = True
            if sequence.num_pending:
                return False  # its own commit may give pages back
            victim = max(self.running, key=rank)
            if victim is sequence:
                # Better ones go on, and give pages back in the end. Alone, there is nobody to wait for.
                if self.num_running == 1:
                    self.finish(sequence, FinishReason.ERROR)
                    step.failed.append(sequence)
                return False
            self._preempt(victim)
            step.preempted.append(victim)
        self.blocks.allocate(sequence, length)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._stop_running(sequence)
        sequence.state = SequenceState.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self._waiting.push(sequence)

    def _stop_running(self, sequence: Sequence) -> None:
        self._decodes.pop(sequence, None)
        self._prompts.pop(sequence, None)
        self.blocks.free(sequence)
        sequence.num_in_flight = 0
        sequence.num_pending = 0
