"""The engine: requests in, steps, events out. One thread uses it.

    step: schedule -> forward -> (commit of the step before, if steps overlap) -> masks -> sample -> commit -> events

Steps overlap where the device works by itself: the forward pass of a step is launched before the tokens of the step
before are known on the host, so the host's work and the device's go on at the same time.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ossia.core.errors import EngineOverloadedError, InvalidInputError
from ossia.engine.batch import SampledStep
from ossia.engine.grammar.matcher import MaskFiller, MaskRequest
from ossia.engine.live_answer import LiveAnswer
from ossia.engine.logprobs import prompt_logprobs
from ossia.engine.metrics import Metrics, MetricsSnapshot
from ossia.engine.output_event import OutputEvent
from ossia.engine.plan import ScheduledSequence, StepPlan
from ossia.engine.request import FinishReason, Request, SamplingParams, check_request
from ossia.engine.routing import RoutingPages
from ossia.engine.runner import PromptLogits, Runner, StepLogits
from ossia.engine.sampler import Sampler, SamplerOutput, SamplingRow, make_rows
from ossia.engine.scheduler import Scheduler
from ossia.engine.sequence import Sequence
from ossia.engine.speculate import PromptLookup, accept_drafts
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels.sampling import mix_seed

if TYPE_CHECKING:
    from ossia.engine.grammar.compiler import GrammarCompiler

logger = logging.getLogger(__name__)

MAX_FAILED_STEPS = 3
"""So many steps in a row in which nobody could run, and the engine takes itself for broken."""
_VOID = Sequence(
    request=Request(id="void", prompt_ids=(0,), params=SamplingParams(temperature=0.0)),
    index=0,
    seed=0,
    arrival=-1,
    max_length=2,
    token_ids=[0],
    num_prompt=1,
)
"""Stands in the sampler's rows for a sequence that ended while its step was in flight."""


class _Launched(NamedTuple):
    """A step on the device, and where each of its sequences' rows begin."""

    plan: StepPlan
    samples: SamplerOutput
    first_rows: list[int]


class Engine:
    """Serves any number of requests over one model.

    Args:
        runner: runs the model.
        scheduler: decides who runs.
        tokenizer: the model's.
        stop_ids: tokens that end an answer whose request names none.
        lookup: makes drafts; None for no speculation.
        routing: where the runner records the experts of each token, to be told at an answer's end.
        has_overlap: launch a step before the one before is known; no gain on a CPU, and not together with `lookup`.
        device: where the logits are.

    Attributes:
        metrics: running counts.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        stop_ids: tuple[int, ...],
        lookup: PromptLookup | None = None,
        has_overlap: bool = False,
        routing: RoutingPages | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.runner, self.scheduler, self.tokenizer = runner, scheduler, tokenizer
        self.metrics = Metrics()
        self._stop_ids = stop_ids
        self._lookup = lookup
        self._routing = routing
        self._has_overlap = has_overlap and lookup is None
        self._vocab_size = tokenizer.vocab_size
        self._sampler = Sampler(vocab_size=self._vocab_size, device=device)
        self._compiler: GrammarCompiler | None = None
        self._filler: MaskFiller | None = None
        self._masks = np.empty((0, 0), dtype=np.int32)
        self._answers: dict[Sequence, LiveAnswer] = {}
        self._by_request: dict[str, list[LiveAnswer]] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._news: list[OutputEvent] = []  # of what happened between steps
        self._gone: list[Sequence] = []  # ended in this step; their sampler state is dropped at its end
        self._launched: _Launched | None = None
        self._num_failed_steps = 0
        self._arrivals = itertools.count()

    # Requests

    @property
    def has_work(self) -> bool:
        """Whether `step` would do or tell anything."""
        return bool(self._news or self._launched or self.scheduler.has_work)

    def check(self, request: Request) -> None:
        """Check a request, its constraint included, without taking it. May be called from any thread.

        Raises:
            ContextLengthError, InvalidInputError: see `check_request` and `GrammarCompiler.compile`.
        """
        check_request(request, vocab_size=self._vocab_size, context_length=self.scheduler.config.context_length)
        if request.params.constraint is not None:
            self._get_compiler().compile(request.params.constraint)

    def has_room(self, request: Request) -> bool:
        """Whether the queue takes all its answers now, or ever will."""
        scheduler = self.scheduler
        return scheduler.num_waiting == 0 or scheduler.num_waiting + request.params.n <= scheduler.config.max_queue

    def add(self, request: Request) -> None:
        """Take a request.

        Raises:
            EngineOverloadedError: the queue is full.
            ContextLengthError, InvalidInputError: it cannot be run; see `check`. Also for an id that is in use.
        """
        if request.id in self._by_request:
            raise InvalidInputError(f"a request with the id {request.id!r} is running; ids must differ", param="id")
        self.check(request)
        params = request.params
        matcher = None if params.constraint is None else self._get_compiler().compile(params.constraint)
        stop_ids = self._stop_ids if params.stop_ids is None else params.stop_ids
        sequences = self._make_sequences(request)
        try:
            self.scheduler.add(sequences)
        except EngineOverloadedError:
            self.metrics.rejected += 1
            raise
        now = time.monotonic()
        answers = [
            LiveAnswer(
                sequence,
                tokenizer=self.tokenizer,
                stop_ids=stop_ids,
                matcher=matcher.fork() if matcher is not None and sequence.index else matcher,
                submitted=now,
            )
            for sequence in sequences
        ]
        self._answers.update(zip(sequences, answers, strict=True))
        self._by_request[request.id] = answers
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, request.id))
        self.metrics.num_requests += 1
        self.metrics.num_prompt_tokens += len(request.prompt_ids)

    def cancel(self, request_id: str) -> None:
        """End a request's answers; their pages are free at once. One that is done or unknown is left alone."""
        self._end_request(request_id, FinishReason.CANCELLED)

    def cancel_all(self) -> None:
        """End everything."""
        for request_id in list(self._by_request):
            self.cancel(request_id)

    def num_open(self, request_id: str) -> int:
        """How many of a request's answers are not done."""
        return len(self._by_request.get(request_id, ()))

    # A step

    def step(self) -> list[OutputEvent]:
        """Run one step, and tell what it brought. Without work it does nothing."""
        begin = time.monotonic()
        self._expire(begin)
        self._step()
        for sequence in self._gone:
            self._sampler.release(sequence)
            if self._lookup is not None:
                self._lookup.release(sequence)
        self._gone.clear()
        events, self._news = self._news, []
        self.metrics.step_seconds.observe(time.monotonic() - begin)
        return events

    def _step(self) -> None:
        before, self._launched = self._launched, None
        plan = self.scheduler.schedule(propose=self._propose if self._lookup is not None else None)
        self.metrics.num_preemptions += len(plan.preempted)
        for sequence in plan.failed:
            self._end(sequence, FinishReason.ERROR, error="the whole KV cache cannot hold this sequence")
        logits = None
        if plan.scheduled:
            plan, logits = self._forward(plan, before)
        if before is not None:
            self._commit(before)
        if logits is None:
            return
        self._score_prompts(plan, logits)
        launched = self._sample(plan, logits)
        if self._has_overlap:
            self._launched = launched
        else:
            self._commit(launched)

    def _forward(self, plan: StepPlan, before: _Launched | None) -> tuple[StepPlan, StepLogits | None]:
        """Run the model. If it fails, run each sequence alone: those that fail then are ended, the others go on."""
        last = None if before is None else SampledStep(before.plan, before.samples.ids)
        self.metrics.num_steps += 1
        try:
            logits = self.runner.forward(plan, last=last)
        except Exception as error:  # whatever it was, it must not take the others down
            logger.exception("a step of %d sequences failed", len(plan.scheduled))
            plan, logits = self._forward_each(plan, last, error)
        else:
            self._num_failed_steps = 0
        return plan, logits

    def _forward_each(
        self, plan: StepPlan, last: SampledStep | None, cause: Exception
    ) -> tuple[StepPlan, StepLogits | None]:
        good: list[ScheduledSequence] = []
        parts: list[StepLogits] = []
        for share in plan.scheduled:
            alone = StepPlan((share,), share.num_tokens, ())
            try:
                part = self.runner.forward(alone, last=last) if len(plan.scheduled) > 1 else None
            except Exception as error:
                logger.exception("sequence %s/%d failed", share.sequence.request.id, share.sequence.index)
                self._end(share.sequence, FinishReason.ERROR, error=f"the model failed: {type(error).__name__}")
                continue
            if part is None:
                self._end(share.sequence, FinishReason.ERROR, error=f"the model failed: {type(cause).__name__}")
                continue
            prompt = tuple(wanted._replace(place=len(good)) for wanted in part.prompt)
            good.append(share)
            # A runner may give the same buffer again.
            parts.append(part._replace(prompt=prompt, sample_logits=part.sample_logits.clone()))
        if not good:
            self._num_failed_steps += 1
            if len(plan.scheduled) > 1 or self._num_failed_steps >= MAX_FAILED_STEPS:
                raise cause
            return plan, None
        return StepPlan(tuple(good), sum(share.num_tokens for share in good), ()), StepLogits(
            torch.cat([part.sample_logits for part in parts]),
            tuple(wanted for part in parts for wanted in part.prompt),
        )

    def _sample(self, plan: StepPlan, logits: StepLogits) -> _Launched:
        rows: list[SamplingRow] = []
        first_rows: list[int] = []
        requests: list[MaskRequest] = []
        num_masks = 0
        for share in plan.scheduled:
            first_rows.append(len(rows))
            sequence, num_samples = share.sequence, share.num_samples
            if not num_samples:
                continue
            if sequence.is_finished or share.epoch != sequence.num_preemptions:
                rows += [SamplingRow(_VOID, 0)] * num_samples
                continue
            answer = self._answers[sequence]
            masks = None
            if answer.matcher is not None:
                requests.append(MaskRequest(answer.matcher, num_masks, share.drafts))
                masks = range(num_masks, num_masks + num_samples)
                num_masks += num_samples
            rows += make_rows(share, stop_ids=answer.stop_ids, masks=masks)
        masks = self._fill_masks(requests, num_masks) if requests else None
        return _Launched(plan, self._sampler(logits.sample_logits, rows, masks=masks), first_rows)

    def _fill_masks(
        self, requests: list[MaskRequest], num_masks: int
    ) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        """The masks of this step, made while the device is at the forward pass."""
        if self._filler is None:
            self._filler = MaskFiller()
        if self._masks.shape[0] < num_masks:
            self._masks = np.empty((2 * num_masks, self._get_compiler().mask_width), dtype=np.int32)
        masks = self._masks[:num_masks]
        self._filler.fill(requests, masks)
        return masks

    def _commit(self, launched: _Launched) -> None:
        """Take a step's tokens, for every sequence by itself."""
        samples = launched.samples.take()
        now = time.monotonic()
        for share, first in zip(launched.plan.scheduled, launched.first_rows, strict=True):
            sequence, num_samples = share.sequence, share.num_samples
            if sequence.is_finished or share.epoch != sequence.num_preemptions:
                continue
            if not num_samples:
                self.scheduler.commit(share, ())
                continue
            try:
                ids = samples.ids[first : first + num_samples]
                tokens = accept_drafts(share.drafts, ids) if share.drafts else ids
                if samples.failures and first + len(tokens) - 1 in samples.failures:
                    self._end(sequence, FinishReason.ERROR, error=samples.failures[first + len(tokens) - 1].value)
                    continue
                logprobs = samples.logprobs[first : first + len(tokens)] if samples.logprobs is not None else None
                self._take(share, tokens, logprobs, now)
            except Exception as error:  # a bug met by one answer must not take the others down
                logger.exception("answer %s/%d failed", sequence.request.id, sequence.index)
                self._end(sequence, FinishReason.ERROR, error=f"internal error: {type(error).__name__}")

    def _take(self, share: ScheduledSequence, tokens: list[int], logprobs: list | None, now: float) -> None:
        """Give a sequence its tokens and make its event."""
        sequence = share.sequence
        answer = self._answers[sequence]
        is_asked = logprobs is not None and logprobs[0] is not None
        delta = answer.push(tokens, logprobs if is_asked else None)
        num_tokens = len(delta.token_ids)
        self.scheduler.commit(share, tokens if num_tokens == len(tokens) else tokens[:num_tokens])
        metrics = self.metrics
        drafts = share.drafts
        if drafts:
            metrics.num_draft_tokens += len(drafts)
            metrics.num_accepted_tokens += len(tokens) - 1
            if self._lookup is not None:
                self._lookup.record(sequence, num_drafts=len(drafts), num_accepted=len(tokens) - 1)
        metrics.num_output_tokens += num_tokens
        if answer.last_news:
            metrics.inter_token.observe((now - answer.last_news) / num_tokens, times=num_tokens)
        else:
            metrics.time_to_first_token.observe(now - answer.submitted)
            metrics.num_cached_tokens += sequence.num_cached
        answer.last_news = now
        if answer.matcher is not None and answer.matcher.error is not None:
            self._end(sequence, FinishReason.ERROR, error=f"the constraint broke: {answer.matcher.error}")
            return
        event = answer.event(delta)
        if event is not None:
            self._news.append(event if delta.finish_reason is None else self._add_routing(event, sequence))
        if delta.finish_reason is not None:
            self._forget(answer, delta.finish_reason)

    def _score_prompts(self, plan: StepPlan, logits: StepLogits) -> None:
        for wanted in logits.prompt:
            sequence = plan.scheduled[wanted.place].sequence
            answer = self._answers.get(sequence)
            if answer is not None and answer.num_prompt_scored is not None:
                self._score_prompt(answer, wanted)

    def _score_prompt(self, answer: LiveAnswer, wanted: PromptLogits) -> None:
        sequence = answer.sequence
        num_top = sequence.request.params.prompt_logprobs
        assert num_top is not None
        for first, logits in wanted.pieces():
            scored = answer.num_prompt_scored
            assert scored is not None
            # Row i scores token first + i + 1. After a preemption the first ones are known already.
            skip = max(0, scored - first - 1)
            next_ids = sequence.token_ids[first + 1 + skip : min(first + 1 + len(logits), sequence.num_prompt)]
            if next_ids:
                answer.score_prompt(prompt_logprobs(logits[skip : skip + len(next_ids)], next_ids, num_top=num_top))

    # Drafts

    def _propose(self, sequence: Sequence, max_drafts: int) -> tuple[int, ...]:
        """What its constraint forces, else what prompt lookup finds and the constraint allows."""
        assert self._lookup is not None
        matcher = self._answers[sequence].matcher
        if matcher is None:
            return self._lookup.propose(sequence, max_drafts)
        forced = matcher.forced_tokens()[:max_drafts]
        if forced:
            return tuple(forced)
        drafts = self._lookup.propose(sequence, max_drafts)
        return drafts[: matcher.count_allowed(drafts)]

    # Ends

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heapq.heappop(self._deadlines)
            self._end_request(request_id, FinishReason.DEADLINE, before=now)

    def _end_request(self, request_id: str, reason: FinishReason, *, before: float | None = None) -> None:
        for answer in list(self._by_request.get(request_id, ())):
            deadline = answer.request.deadline
            if before is None or (deadline is not None and deadline <= before):
                self._end(answer.sequence, reason)

    def _end(self, sequence: Sequence, reason: FinishReason, *, error: str | None = None) -> None:
        """End an answer from outside, and tell so."""
        answer = self._answers.get(sequence)
        if answer is not None:
            self._news.append(self._add_routing(answer.end_event(reason, error=error), sequence))
            self._forget(answer, reason)

    def _add_routing(self, event: OutputEvent, sequence: Sequence) -> OutputEvent:
        """The last event of an answer, with the experts of its tokens if they are recorded; its pages are still held.

        The last token was not computed, or by a step that came too early and does not count.
        """
        if self._routing is None:
            return event
        num_tokens = min(sequence.num_computed, len(sequence.token_ids) - 1)
        return event._replace(routing=self._routing.read(sequence.full_pages, num_tokens=num_tokens))

    def _forget(self, answer: LiveAnswer, reason: FinishReason) -> None:
        sequence, request_id = answer.sequence, answer.request.id
        self.scheduler.finish(sequence, reason)
        del self._answers[sequence]
        answers = self._by_request[request_id]
        answers.remove(answer)
        if not answers:
            del self._by_request[request_id]
        self._gone.append(sequence)
        self.metrics.finished[reason.value] += 1

    # Weights

    def update_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Go on with other weights of the same model, which are copied in memory to where the runner holds its own.

        What the prefix cache has is forgotten. Memory that the runner shares with `weights` is not copied.

        Args:
            weights: by the parameter names of a dense `Transformer`. Packed experts are rounded to MXFP4.

        Raises:
            InvalidInputError: requests are running, whose keys and values are those of the old weights.
            TensorMismatchError: the weights are not this model's; nothing was changed.
        """
        if self.scheduler.has_work or self._launched is not None:
            raise InvalidInputError(
                f"{len(self._by_request)} requests are running on the old weights; step until they are done, or cancel "
                "them, and update then",
                param="weights",
            )
        self.runner.update_weights(weights)
        self.scheduler.blocks.drop_prefixes()

    # State

    def snapshot(self) -> MetricsSnapshot:
        """The counts as of now."""
        scheduler = self.scheduler
        return self.metrics.snapshot(
            num_waiting=scheduler.num_waiting,
            num_running=scheduler.num_running,
            num_pages=scheduler.blocks.num_pages - 1,
            num_free_pages=scheduler.blocks.num_free,
        )

    def check_integrity(self) -> None:
        """Check that pages, tables and sequences agree.

        Raises:
            CacheIntegrityError: they do not; a bug in Ossia.
        """
        self.scheduler.blocks.check_integrity(self.scheduler.running)

    def _make_sequences(self, request: Request) -> list[Sequence]:
        params, prompt = request.params, request.prompt_ids
        limit = self.scheduler.config.context_length
        max_length = limit if params.max_tokens is None else min(limit, len(prompt) + params.max_tokens)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        return [
            Sequence(
                request=request,
                index=index,
                seed=mix_seed(mix_seed(seed) + index) if index else seed,
                arrival=next(self._arrivals),
                max_length=max_length,
                token_ids=list(prompt),
                num_prompt=len(prompt),
            )
            for index in range(params.n)
        ]

    def _get_compiler(self) -> GrammarCompiler:
        if self._compiler is None:
            from ossia.engine.grammar.compiler import GrammarCompiler  # with the library, which few programs need

            self._compiler = GrammarCompiler(self.tokenizer)
        return self._compiler
