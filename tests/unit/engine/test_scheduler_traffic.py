"""Random traffic through the scheduler, over a device that remembers what each page holds."""

# The model's next token is a function of the tokens so far; a cached key is a function of all tokens up to its own.

import random
from collections.abc import Mapping
from collections.abc import Sequence as ListLike
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ossia.core.errors import EngineOverloadedError, InvalidInputError
from ossia.engine.blocks import BlockManager
from ossia.engine.plan import ScheduledSequence, StepPlan
from ossia.engine.request import FinishReason, Request, SamplingParams
from ossia.engine.scheduler import Scheduler, SchedulerConfig
from ossia.engine.sequence import Sequence

VOCABULARY = 3
STOP = 0
CONTEXT_LENGTH = 48


def next_token(tokens: ListLike[int]) -> int:
    return (7 * sum(tokens[-3:]) + len(tokens) + len(tokens) // 5) % VOCABULARY


def is_stop(sequence: Sequence, token: int) -> bool:
    return token == STOP and not sequence.request.params.ignore_eos


class Launched(NamedTuple):
    plan: StepPlan
    slots: list[tuple[int, int]]
    results: list[list[int]]

    def last_sampled(self) -> dict[Sequence, int]:
        return {
            share.sequence: tokens[-1]
            for share, tokens in zip(self.plan.scheduled, self.results, strict=True)
            if tokens
        }


class Device:
    """Runs plans as a model would: writes all keys of a step, then reads what each query sees, then samples."""

    def __init__(self, *, page_size: int, window: int | None, has_full: bool) -> None:
        self.page_size = page_size
        self.window = window
        self.has_full = has_full
        self.memory: dict[tuple[int, int], object] = {}

    def run(self, plan: StepPlan, *, before: Launched | None) -> Launched:
        last_sampled = before.last_sampled() if before else {}
        shares = [(share, self._tokens(share, last_sampled)) for share in plan.scheduled]
        slots = [slot for share, tokens in shares for slot in self._write(share, tokens)]
        for share, tokens in shares:
            self._read(share, tokens)
        return Launched(plan, slots, [self._sample(share, tokens) for share, tokens in shares])

    def spoil(self, launched: Launched) -> None:
        """A step that failed may have left anything where it meant to write."""
        for slot in launched.slots:
            self.memory[slot] = "garbage"

    def _tokens(self, share: ScheduledSequence, last_sampled: Mapping[Sequence, int]) -> list[int]:
        sequence = share.sequence
        tokens = list(sequence.token_ids)
        if share.is_last_in_flight:
            tokens.append(last_sampled[sequence])
        tokens.extend(share.drafts)
        assert 0 <= share.start < share.end <= len(tokens) <= sequence.max_length
        if share.num_samples:
            assert share.end == len(tokens)
            assert share.num_samples == 1 + len(share.drafts)
            assert len(tokens) < sequence.max_length
        else:
            assert share.end < sequence.num_prompt + sequence.num_output
            assert not share.drafts
            assert not share.is_last_in_flight
        return tokens

    def _tables(self, sequence: Sequence) -> list[tuple[str, list[int], int | None]]:
        tables: list[tuple[str, list[int], int | None]] = []
        if self.has_full:
            tables.append(("full", sequence.full_pages, None))
        if self.window is not None:
            tables.append(("sliding", sequence.sliding_pages, self.window))
        return tables

    def _write(self, share: ScheduledSequence, tokens: list[int]) -> list[tuple[int, int]]:
        slots = []
        for group, pages, _ in self._tables(share.sequence):
            for position in range(share.start, share.end):
                slot = pages[position // self.page_size], position % self.page_size
                assert slot[0] != 0, "a token is written to the null page"
                self.memory[slot] = (group, share.sequence.request.cache_salt, tuple(tokens[: position + 1]))
                slots.append(slot)
        return slots

    def _read(self, share: ScheduledSequence, tokens: list[int]) -> None:
        for group, pages, window in self._tables(share.sequence):
            first = 0 if window is None else max(0, share.start - window + 1)
            for position in range(first, share.end):
                slot = pages[position // self.page_size], position % self.page_size
                expected = (group, share.sequence.request.cache_salt, tuple(tokens[: position + 1]))
                assert self.memory.get(slot) == expected, f"{group} layers see the wrong key at {position}"

    def _sample(self, share: ScheduledSequence, tokens: list[int]) -> list[int]:
        """Accept drafts as long as they are what the model samples, and stop at a stop token."""
        sampled: list[int] = []
        num_known = share.end - len(share.drafts)
        for index in range(share.num_samples):
            sampled.append(next_token(tokens[: num_known + index]))
            if is_stop(share.sequence, sampled[-1]) or (
                index < len(share.drafts) and share.drafts[index] != sampled[-1]
            ):
                break
        return sampled


class Traffic:
    """A scheduler, its device, and the engine's part of the work."""

    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int,
        window: int | None,
        has_full: bool = True,
        enable_prefix_cache: bool = True,
        **limits: int | float,
    ) -> None:
        self.blocks = BlockManager(
            num_pages,
            page_size=page_size,
            window=window,
            has_full_layers=has_full,
            has_sliding_layers=window is not None,
            enable_prefix_cache=enable_prefix_cache,
        )
        config = SchedulerConfig(context_length=CONTEXT_LENGTH, **limits)  # type: ignore[arg-type]  # ints and floats
        self.scheduler = Scheduler(config, blocks=self.blocks)
        self.device = Device(page_size=page_size, window=window, has_full=has_full)
        self.launched: list[Launched] = []
        self.sequences: list[Sequence] = []
        self.num_requests = 0
        self.num_overloads = 0
        self.num_accepted = 0
        self.reasons: set[FinishReason | None] = set()

    @property
    def live(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if not sequence.is_finished]

    def add(
        self,
        prompt: ListLike[int],
        *,
        n: int = 1,
        max_tokens: int = 8,
        priority: int = 0,
        salt: str = "",
        prompt_logprobs: int | None = None,
        speculate: bool = True,
        ignore_eos: bool = False,
    ) -> None:
        self.num_requests += 1
        request = Request(
            id=f"r{self.num_requests}",
            prompt_ids=tuple(prompt),
            params=SamplingParams(n=n, prompt_logprobs=prompt_logprobs, speculate=speculate, ignore_eos=ignore_eos),
            priority=priority,
            cache_salt=salt,
        )
        answers = [
            Sequence(
                request=request,
                index=index,
                seed=index,
                arrival=len(self.sequences) + index,
                max_length=min(CONTEXT_LENGTH, len(prompt) + max_tokens),
                token_ids=list(prompt),
                num_prompt=len(prompt),
            )
            for index in range(n)
        ]
        num_waiting = self.scheduler.num_waiting
        try:
            self.scheduler.add(answers)
        except EngineOverloadedError:
            self.num_overloads += 1
            assert num_waiting + n > self.scheduler.config.max_queue
        except InvalidInputError as error:
            assert error.param in ("prompt_ids", "n")  # noqa: PT017
        else:
            self.sequences.extend(answers)
            assert self.scheduler.num_waiting == num_waiting + n

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self.scheduler.finish(sequence, reason)
        assert sequence.is_finished
        assert not sequence.full_pages
        assert not sequence.sliding_pages
        self._check_output(sequence)

    def schedule(self, rng: random.Random, *, has_drafts: bool) -> StepPlan:
        def propose(sequence: Sequence, num_drafts: int) -> tuple[int, ...]:
            assert num_drafts > 0
            assert not sequence.num_in_flight
            tokens = list(sequence.token_ids)
            for _ in range(rng.randint(0, num_drafts)):
                tokens.append(next_token(tokens) if rng.random() < 0.8 else rng.randrange(VOCABULARY))
            return tuple(tokens[len(sequence.token_ids) :])

        has_work = self.scheduler.has_work
        plan = self.scheduler.schedule(
            propose=propose if has_drafts else None, can_run_ahead=lambda _: rng.random() < 0.8
        )
        self._check_plan(plan)
        if has_work and not self.launched:
            assert not plan.is_empty or plan.failed, "there is work and nothing in flight, and still nothing runs"
        if not plan.is_empty:
            self.launched.append(self.device.run(plan, before=self.launched[-1] if self.launched else None))
        return plan

    def commit(self) -> None:
        plan, _, results = self.launched.pop(0)
        for share, tokens in zip(plan.scheduled, results, strict=True):
            sequence = share.sequence
            num_tokens = len(sequence.token_ids)
            is_void = sequence.is_finished or share.epoch != sequence.num_preemptions
            self.scheduler.commit(share, tokens)
            assert len(sequence.token_ids) == num_tokens + (0 if is_void else len(tokens))
            self.num_accepted += 0 if is_void else max(0, len(tokens) - 1)
            if is_void:
                continue
            if tokens and is_stop(sequence, tokens[-1]):
                self.finish(sequence, FinishReason.STOP)
            elif len(sequence.token_ids) >= sequence.max_length:
                self.finish(sequence, FinishReason.LENGTH)

    def roll_back(self) -> None:
        launched = self.launched.pop()
        self.device.spoil(launched)
        self.scheduler.rollback(launched.plan)

    def drain(self, rng: random.Random, *, has_drafts: bool = False) -> None:
        for _ in range(20_000):
            while self.launched:
                self.commit()
            if not self.scheduler.has_work:
                break
            self.schedule(rng, has_drafts=has_drafts)
            self.check()
        assert not self.live
        assert self.blocks.num_held == 0
        assert self.scheduler.num_waiting == self.scheduler.num_running == 0

    def check(self) -> None:
        self.blocks.check_integrity(self.sequences)
        assert len(self.live) == self.scheduler.num_waiting + self.scheduler.num_running
        assert self.scheduler.num_running <= self.scheduler.config.max_num_seqs
        for sequence in self.live:
            num_launched = sum(
                share.sequence is sequence and share.epoch == sequence.num_preemptions
                for launched in self.launched
                for share in launched.plan.scheduled
            )
            assert sequence.num_pending == num_launched
            assert sequence.num_in_flight <= num_launched
            assert sequence.num_cached < sequence.num_prompt

    def _check_plan(self, plan: StepPlan) -> None:
        config = self.scheduler.config
        assert plan.num_tokens == sum(share.num_tokens for share in plan.scheduled) <= config.max_num_batched_tokens
        assert len({share.sequence for share in plan.scheduled}) == len(plan.scheduled) <= config.max_num_seqs
        assert all(len(share.drafts) <= config.max_drafts for share in plan.scheduled)
        for sequence in plan.failed:
            assert sequence.finish_reason is FinishReason.ERROR
            self._check_output(sequence)

    def _check_output(self, sequence: Sequence) -> None:
        self.reasons.add(sequence.finish_reason)
        assert sequence.token_ids[: sequence.num_prompt] == list(sequence.request.prompt_ids)
        assert len(sequence.token_ids) <= sequence.max_length
        for place in range(sequence.num_prompt, len(sequence.token_ids)):
            assert sequence.token_ids[place] == next_token(sequence.token_ids[:place])


PROMPT_STARTS = ((1, 2, 1, 1, 2, 2, 1, 0, 2, 1), (1, 2, 1, 1, 0), ())
"""So that prompts share prefixes."""

prompts = st.builds(
    lambda start, rest: (*start, *rest),
    st.sampled_from(PROMPT_STARTS),
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=14),
)


class TrafficMachine(RuleBasedStateMachine):
    """Anything in any order, with up to two plans on the way."""

    @initialize(
        page_size=st.integers(1, 4),
        num_pages=st.integers(4, 40),
        layers=st.sampled_from(["both", "full", "sliding"]),
        window=st.integers(1, 9),
        budget=st.integers(2, 16),
        max_num_seqs=st.integers(1, 6),
        max_queue=st.integers(1, 10),
        max_drafts=st.integers(0, 4),
        enable_prefix_cache=st.sampled_from([True, True, True, False]),
    )
    def start(
        self,
        page_size: int,
        num_pages: int,
        layers: str,
        window: int,
        budget: int,
        max_num_seqs: int,
        max_queue: int,
        max_drafts: int,
        enable_prefix_cache: bool,
    ) -> None:
        self.traffic = Traffic(
            num_pages=num_pages,
            page_size=page_size,
            window=None if layers == "full" else window,
            has_full=layers != "sliding",
            enable_prefix_cache=enable_prefix_cache,
            max_num_batched_tokens=budget,
            max_num_seqs=max_num_seqs,
            max_queue=max_queue,
            max_drafts=max_drafts,
        )

    @rule(
        prompt=prompts,
        n=st.sampled_from([1, 1, 2, 4]),
        max_tokens=st.integers(1, 20),
        priority=st.integers(-1, 1),
        salt=st.sampled_from(["", "", "", "tenant"]),
        prompt_logprobs=st.sampled_from([None, None, None, 0]),
        speculate=st.booleans(),
        ignore_eos=st.booleans(),
    )
    def add(
        self,
        prompt: tuple[int, ...],
        n: int,
        max_tokens: int,
        priority: int,
        salt: str,
        prompt_logprobs: int | None,
        speculate: bool,
        ignore_eos: bool,
    ) -> None:
        self.traffic.add(
            prompt,
            n=n,
            max_tokens=max_tokens,
            priority=priority,
            salt=salt,
            prompt_logprobs=prompt_logprobs,
            speculate=speculate,
            ignore_eos=ignore_eos,
        )

    @precondition(lambda self: len(self.traffic.launched) < 2)
    @rule(seed=st.integers(0, 2**32 - 1), has_drafts=st.booleans())
    def schedule(self, seed: int, has_drafts: bool) -> None:
        self.traffic.schedule(random.Random(seed), has_drafts=has_drafts)

    @precondition(lambda self: self.traffic.launched)
    @rule()
    def commit(self) -> None:
        self.traffic.commit()

    @precondition(lambda self: self.traffic.launched)
    @rule()
    def roll_back(self) -> None:
        self.traffic.roll_back()

    @precondition(lambda self: self.traffic.live)
    @rule(data=st.data(), reason=st.sampled_from([FinishReason.CANCELLED, FinishReason.DEADLINE]))
    def finish(self, data: st.DataObject, reason: FinishReason) -> None:
        self.traffic.finish(data.draw(st.sampled_from(self.traffic.live)), reason)

    @invariant()
    def is_consistent(self) -> None:
        if hasattr(self, "traffic"):
            self.traffic.check()

    def teardown(self) -> None:
        if hasattr(self, "traffic"):
            self.traffic.drain(random.Random(0), has_drafts=True)


def run_machine(*, max_examples: int, step_count: int) -> int:
    """Run the machine, whose rules assert what must hold; how many tokens were admitted in all."""
    num_admitted: list[int] = []

    class Counted(TrafficMachine):
        def teardown(self) -> None:
            super().teardown()
            if hasattr(self, "traffic"):
                num_admitted.append(self.traffic.blocks.num_query_tokens)

    machine_settings = settings(max_examples=max_examples, stateful_step_count=step_count, deadline=None)
    run_state_machine_as_test(Counted, settings=machine_settings)
    return sum(num_admitted)


def test_random_traffic() -> None:
    assert run_machine(max_examples=40, step_count=50) > 0


@pytest.mark.slow
def test_much_random_traffic() -> None:
    assert run_machine(max_examples=400, step_count=80) > 1000


def make_busy_traffic(seed: int, **changes: int | bool | None) -> Traffic:
    """Send some hundred requests in random order, a fifth of them cancelled, with steps overlapping."""
    rng = random.Random(seed)
    shape: dict[str, int | bool | None] = {"num_pages": 36, "page_size": 3, "window": 7}
    limits = {"max_num_batched_tokens": 12, "max_num_seqs": 6, "max_queue": 12, "max_drafts": 3}
    traffic = Traffic(**{**shape, **limits, **changes})  # type: ignore[arg-type]  # the names above
    for _ in range(3000):
        action = rng.random()
        if action < 0.15:
            start = rng.choice(PROMPT_STARTS)
            rest = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 14))]
            traffic.add(
                [*start, *rest],
                n=rng.choice([1, 1, 3]),
                max_tokens=rng.randint(1, 30),
                priority=rng.randint(-1, 1),
                ignore_eos=rng.random() < 0.7,
            )
        elif action < 0.18 and traffic.live:
            traffic.finish(rng.choice(traffic.live), FinishReason.CANCELLED)
        elif action < 0.20 and traffic.launched:
            traffic.roll_back()
        elif action < 0.65 and len(traffic.launched) < 2:
            traffic.schedule(rng, has_drafts=rng.random() < 0.5)
        elif traffic.launched:
            traffic.commit()
        traffic.check()
    traffic.drain(rng)
    return traffic


def test_busy_traffic_meets_every_case() -> None:
    """What the random machine checks is worth something only if these things happen."""
    traffic = make_busy_traffic(1)
    assert traffic.scheduler.num_preemptions >= 10
    assert traffic.blocks.num_hit_tokens >= 500
    assert traffic.blocks.num_evictions >= 100
    assert traffic.num_accepted >= 100
    assert traffic.num_overloads >= 10
    assert len(traffic.sequences) >= 200
    assert {FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED} <= traffic.reasons


@pytest.mark.parametrize(
    "changes",
    [{"num_pages": 14}, {"window": None}, {"has_full": False, "num_pages": 24}, {"enable_prefix_cache": False}],
    ids=["about one sequence", "full layers only", "sliding layers only", "no prefix cache"],
)
def test_busy_traffic_through_other_caches(changes: dict[str, int | bool | None]) -> None:
    traffic = make_busy_traffic(2, **changes)
    assert len(traffic.sequences) >= 100
    assert (FinishReason.ERROR in traffic.reasons) == ("num_pages" in changes and "has_full" not in changes)
    assert (traffic.blocks.num_hit_tokens > 0) == ("enable_prefix_cache" not in changes)
