import itertools
from collections.abc import Sequence as ListLike

import pytest

from ossia.core.errors import ContextLengthError, EngineOverloadedError, InvalidInputError
from ossia.engine.blocks import BlockManager
from ossia.engine.plan import StepPlan
from ossia.engine.request import FinishReason, Request, SamplingParams
from ossia.engine.scheduler import PRIORITY_STEP, Scheduler, SchedulerConfig
from ossia.engine.sequence import Sequence, SequenceState

PAGE_SIZE = 4


class Bench:
    """A scheduler, and requests for it."""

    def __init__(self, *, num_pages: int = 200, window: int = 6, has_prefix_cache: bool = True, **limits: int) -> None:
        self.blocks = BlockManager(num_pages, page_size=PAGE_SIZE, window=window, enable_prefix_cache=has_prefix_cache)
        self.scheduler = Scheduler(SchedulerConfig(context_length=1000, **limits), blocks=self.blocks)
        self.sequences: list[Sequence] = []

    def make(
        self, prompt: int | ListLike[int] = 5, *, n: int = 1, max_tokens: int = 100, priority: int = 0, **params: int
    ) -> list[Sequence]:
        """Make a request's answers; a number asks for a prompt that nobody else has."""
        arrival = len(self.sequences)
        ids = [1000 * arrival + place for place in range(prompt)] if isinstance(prompt, int) else list(prompt)
        request = Request(
            id=f"r{arrival}", prompt_ids=tuple(ids), params=SamplingParams(n=n, **params), priority=priority
        )
        answers = [
            Sequence(
                request=request,
                index=index,
                seed=0,
                arrival=arrival + index,
                max_length=len(ids) + max_tokens,
                token_ids=list(ids),
                num_prompt=len(ids),
            )
            for index in range(n)
        ]
        self.sequences += answers
        return answers

    def add(self, prompt: int | ListLike[int] = 5, **options: int) -> Sequence:
        answers = self.make(prompt, **options)
        self.scheduler.add(answers)
        return answers[0]

    def commit(self, plan: StepPlan, token: int = 7) -> None:
        for share in plan.scheduled:
            self.scheduler.commit(share, [token] * share.num_samples)
            sequence = share.sequence
            if not sequence.is_finished and len(sequence.token_ids) >= sequence.max_length:
                self.scheduler.finish(sequence, FinishReason.LENGTH)
        self.blocks.check_integrity(self.sequences)

    def step(self) -> StepPlan:
        plan = self.scheduler.schedule()
        self.commit(plan)
        return plan


def who(plan: StepPlan) -> list[Sequence]:
    return [share.sequence for share in plan.scheduled]


def test_a_prompt_is_computed_in_chunks_and_then_a_token_a_step() -> None:
    bench = Bench(max_num_batched_tokens=4)
    sequence = bench.add(10, max_tokens=3)
    shares = [bench.step().scheduled[0] for _ in range(5)]
    assert [(share.start, share.num_tokens, share.num_samples) for share in shares] == [
        (0, 4, 0),
        (4, 4, 0),
        (8, 2, 1),
        (10, 1, 1),
        (11, 1, 1),
    ]
    assert sequence.output_ids == [7, 7, 7]
    assert not bench.scheduler.has_work
    assert bench.scheduler.schedule().is_empty
    assert bench.blocks.num_held == 0


def test_decodes_come_first_then_running_prompts_then_admissions() -> None:
    bench = Bench(max_num_batched_tokens=8)
    decoding = bench.add(5)
    bench.step()
    running = bench.add(12)
    bench.step()
    waiting = bench.add(6)
    plan = bench.step()
    assert [(share.sequence, share.num_tokens) for share in plan.scheduled] == [
        (decoding, 1),
        (running, 5),
        (waiting, 2),
    ]
    assert plan.num_tokens == 8


def test_no_more_sequences_run_than_allowed() -> None:
    bench = Bench(max_num_seqs=2)
    first, second, third = (bench.add(max_tokens=2) for _ in range(3))
    assert who(bench.step()) == [first, second]
    assert bench.scheduler.num_waiting == 1
    assert who(bench.step()) == [first, second]
    assert who(bench.step()) == [third]


def test_priority_goes_first_and_is_worth_so_many_places() -> None:
    bench = Bench(max_num_seqs=1)
    bench.sequences += [None] * 10  # type: ignore[list-item]  # places for those that came before
    sequences = [bench.make(max_tokens=1)[0] for _ in range(3)]
    late = bench.make(max_tokens=1, priority=1)[0]
    bench.sequences = bench.sequences[10:]
    latest = Sequence(
        request=late.request,
        index=0,
        seed=0,
        arrival=10 + PRIORITY_STEP + 1,  # so that the first is one place better, and the second equal by key
        max_length=6,
        token_ids=list(late.request.prompt_ids),
        num_prompt=5,
    )
    bench.sequences.append(latest)
    for sequence in (latest, *sequences, late):
        bench.scheduler.add([sequence])
    assert [who(bench.step())[0] for _ in range(5)] == [late, sequences[0], sequences[1], latest, sequences[2]]


def test_low_priority_is_served_although_better_ones_keep_coming() -> None:
    bench = Bench(max_num_seqs=1)
    low = bench.add(max_tokens=1, priority=-1)
    for num_steps in itertools.count(1):
        bench.add(max_tokens=1, priority=1)
        if low in who(bench.step()):
            break
        assert num_steps < 3 * PRIORITY_STEP
    assert num_steps >= 2 * PRIORITY_STEP


def test_decodes_take_turns_when_the_step_is_too_small() -> None:
    bench = Bench(max_num_batched_tokens=4, max_num_seqs=10)
    sequences = [bench.add(3) for _ in range(10)]
    while not all(sequence.num_output for sequence in sequences):
        bench.step()
    before = [sequence.num_output for sequence in sequences]
    for _ in range(10):
        assert bench.step().num_tokens == 4
    gained = [sequence.num_output - num_output for sequence, num_output in zip(sequences, before, strict=True)]
    assert sum(gained) == 40
    assert max(gained) - min(gained) <= 1


def test_decodes_do_not_shut_prompts_out() -> None:
    bench = Bench(max_num_batched_tokens=4, max_num_seqs=10)
    for _ in range(6):
        bench.add(3)
    for _ in range(20):
        bench.step()
    late = bench.add(9)
    for _ in range(9):
        bench.step()
    assert late.num_output >= 1


def test_a_full_queue_says_so() -> None:
    bench = Bench(max_queue=3)
    bench.add(n=2)
    with pytest.raises(EngineOverloadedError, match=r"2 answers wait .* 2 more .* at most 3 .*max_queue") as caught:
        bench.add(n=2)
    assert (caught.value.num_waiting, caught.value.limit) == (2, 3)
    assert bench.scheduler.num_waiting == 2
    bench.add()
    with pytest.raises(InvalidInputError, match="at most max_queue, 3") as error:
        bench.add(n=4)
    assert error.value.param == "n"


def test_a_prompt_that_cannot_fit_is_refused_at_once() -> None:
    bench = Bench(num_pages=10, window=6)  # 9 pages: 5 blocks of full layers, and 3 that 6 tokens of window can touch
    with pytest.raises(InvalidInputError, match=r"takes 10 pages .* has 9") as caught:
        bench.add(25)
    assert caught.value.param == "prompt_ids"
    assert not bench.scheduler.has_work
    fitting = bench.add(24, max_tokens=1)
    while bench.scheduler.has_work:
        assert not bench.step().is_empty
    assert fitting.finish_reason is FinishReason.LENGTH
    with pytest.raises(ContextLengthError):
        Bench().add(1000)


@pytest.mark.parametrize("overlaps", [False, True])
def test_a_lone_sequence_that_outgrows_the_cache_ends_with_an_error(overlaps: bool) -> None:
    bench = Bench(num_pages=10, window=6)
    sequence = bench.add(20)
    launched: list[StepPlan] = []
    for _ in range(50):
        plan = bench.scheduler.schedule()
        launched += [] if plan.is_empty else [plan]
        if plan.failed:
            break
        if launched and (len(launched) > 1 or plan.is_empty or not overlaps):
            bench.commit(launched.pop(0))
    assert plan.failed == (sequence,)
    assert sequence.finish_reason is FinishReason.ERROR
    assert len(sequence.token_ids) == 25  # 24 fit, and the next is known but not computed
    assert bench.blocks.num_held == 0
    assert not bench.scheduler.has_work


def test_the_worst_gives_its_pages_to_better_ones_and_starts_over() -> None:
    bench = Bench(num_pages=14, window=6, has_prefix_cache=False)
    best, worst = bench.add(8, max_tokens=12), bench.add(8, max_tokens=12)
    preempted: list[Sequence] = []
    while bench.scheduler.has_work:
        plan = bench.step()
        for sequence in plan.preempted:
            assert sequence.state is SequenceState.WAITING
            assert sequence not in who(plan)
            assert not sequence.full_pages
            assert sequence.num_output > 0
        preempted += plan.preempted
    assert set(preempted) == {worst}
    assert (best.num_preemptions, worst.num_preemptions) == (0, len(preempted))
    assert bench.scheduler.num_preemptions == len(preempted)
    assert worst.output_ids == [7] * 12


def test_admission_leaves_pages_for_those_that_run() -> None:
    """Two prompts fit this cache side by side, but then neither could grow: the second has to wait."""
    bench = Bench(num_pages=9, window=6)
    first, second = bench.add(8, max_tokens=6), bench.add(8, max_tokens=1)
    assert who(bench.step()) == [first]
    while not first.is_finished:
        plan = bench.step()
        assert not plan.preempted
        assert second not in who(plan) or first.is_finished
    assert who(bench.step()) == [second]


def test_finish_while_waiting_running_and_in_flight() -> None:
    bench = Bench(max_num_seqs=2)
    first, second, third = (bench.add() for _ in range(3))
    bench.scheduler.finish(third, FinishReason.CANCELLED)
    assert bench.scheduler.num_waiting == 2
    plan = bench.scheduler.schedule()
    bench.scheduler.finish(second, FinishReason.DEADLINE)
    assert (second.full_pages, second.sliding_pages) == ([], [])
    bench.commit(plan)
    assert second.output_ids == []
    assert first.output_ids == [7]
    bench.scheduler.finish(first, FinishReason.STOP)
    bench.scheduler.finish(first, FinishReason.ERROR)
    assert first.finish_reason is FinishReason.STOP
    assert bench.blocks.num_held == 0
    assert not bench.scheduler.has_work


def test_results_of_an_earlier_epoch_are_void() -> None:
    bench = Bench(num_pages=12, window=6, has_prefix_cache=False)
    best, worst = bench.add(8), bench.add(6)
    while True:
        plan = bench.scheduler.schedule()
        assert who(plan) == [best, worst]
        bench.scheduler.commit(plan.scheduled[0], [7] * plan.scheduled[0].num_samples)
        ahead = bench.scheduler.schedule()
        if ahead.preempted:
            break
        bench.scheduler.commit(plan.scheduled[1], [7] * plan.scheduled[1].num_samples)
        bench.commit(ahead)
    assert ahead.preempted == (worst,)
    assert who(ahead) == [best]
    num_output = worst.num_output
    bench.scheduler.commit(plan.scheduled[1], [7])
    assert worst.num_output == num_output
    bench.commit(ahead)
    bench.scheduler.finish(best, FinishReason.CANCELLED)
    again = bench.scheduler.schedule()
    assert who(again) == [worst]
    bench.scheduler.commit(plan.scheduled[1], [7])  # even now that it runs again
    assert (worst.num_output, worst.num_pending) == (num_output, 1)
    bench.commit(again)
    assert worst.num_output == num_output + 1


def test_a_failed_step_is_as_if_never_planned() -> None:
    bench = Bench(max_num_batched_tokens=8)
    first, second = bench.add(5), bench.add(7)
    bench.step()
    before = [(s.num_computed, s.num_in_flight, s.num_pending, list(s.token_ids)) for s in (first, second)]
    plan = bench.scheduler.schedule()
    assert who(plan) == [first, second]
    assert plan.scheduled[1].num_samples == 1
    bench.scheduler.rollback(plan)
    assert [(s.num_computed, s.num_in_flight, s.num_pending, list(s.token_ids)) for s in (first, second)] == before
    again = bench.scheduler.schedule()
    assert again == plan
    bench.commit(again)
    assert (first.num_output, second.num_output) == (2, 1)


def test_a_decode_runs_one_step_ahead_and_not_past_its_end() -> None:
    bench = Bench()
    sequence = bench.add(5, max_tokens=3)
    first = bench.scheduler.schedule()
    second = bench.scheduler.schedule()
    share = second.scheduled[0]
    assert (share.start, share.num_tokens, share.is_last_in_flight, share.num_samples) == (5, 1, True, 1)
    assert (sequence.num_in_flight, sequence.length) == (2, 7)
    assert bench.scheduler.schedule().is_empty  # not two ahead
    bench.commit(first)
    third = bench.scheduler.schedule()
    assert third.scheduled[0].start == 6
    bench.commit(second)
    assert bench.scheduler.schedule().is_empty  # the token in flight is the last
    bench.commit(third)
    assert sequence.output_ids == [7, 7, 7]
    assert sequence.is_finished


def test_who_must_not_run_ahead_waits() -> None:
    bench = Bench()
    free, held = bench.add(5), bench.add(5)
    plan = bench.scheduler.schedule()
    assert who(bench.scheduler.schedule(can_run_ahead=lambda sequence: sequence is not held)) == [free]
    bench.commit(plan)
    assert who(bench.scheduler.schedule(can_run_ahead=lambda sequence: False)) == [held]


def test_who_may_have_drafts_does_not_run_ahead() -> None:
    bench = Bench()
    bench.add(5)
    plain = bench.add(5, speculate=False)
    bench.scheduler.schedule()
    assert who(bench.scheduler.schedule(propose=lambda _, num_drafts: (1,) * num_drafts)) == [plain]


@pytest.mark.parametrize("num_accepted", [0, 1, 3])
def test_rejected_drafts_are_forgotten(num_accepted: int) -> None:
    bench = Bench(max_drafts=3)
    sequence = bench.add(5)
    bench.step()
    plan = bench.scheduler.schedule(propose=lambda _, num_drafts: (8, 9, 10, 11)[:num_drafts])
    share = plan.scheduled[0]
    assert (share.start, share.end, share.drafts, share.num_samples) == (5, 9, (8, 9, 10), 4)
    assert bench.scheduler.schedule().is_empty  # nobody knows yet where it stands
    bench.scheduler.commit(share, [*share.drafts[:num_accepted], 20])
    assert sequence.output_ids == [7, *share.drafts[:num_accepted], 20]
    assert sequence.num_computed == len(sequence.token_ids) - 1
    assert sequence.num_in_flight == sequence.num_pending == 0
    assert bench.scheduler.schedule().scheduled[0].start == 6 + num_accepted
    bench.blocks.check_integrity([sequence])


def test_drafts_keep_to_max_length_budget_and_pages() -> None:
    asked: list[int] = []

    def propose(sequence: Sequence, num_drafts: int) -> tuple[int, ...]:
        asked.append(num_drafts)
        return (1,) * (num_drafts + 5)  # more than asked for

    bench = Bench(max_drafts=8, max_num_batched_tokens=16)
    bench.add(5, max_tokens=4)
    bench.step()
    assert len(bench.scheduler.schedule(propose=propose).scheduled[0].drafts) == 2  # and one more token: 4 in all
    bench = Bench(max_drafts=8, max_num_batched_tokens=6)
    bench.add(3), bench.add(3)
    bench.step()
    plan = bench.scheduler.schedule(propose=propose)
    assert [len(share.drafts) for share in plan.scheduled] == [4, 0]
    bench = Bench(num_pages=5)
    bench.add(5)
    bench.step()
    assert len(bench.scheduler.schedule(propose=propose).scheduled[0].drafts) == 2  # 8 tokens fit
    bench = Bench()
    bench.add(5, max_tokens=2)
    bench.step()
    asked.clear()
    assert bench.scheduler.schedule(propose=propose).scheduled[0].drafts == ()
    assert asked == []


def test_answers_of_a_request_share_the_first_ones_prompt() -> None:
    bench = Bench(max_num_batched_tokens=8)
    answers = bench.make(15, n=3)
    bench.scheduler.add(answers)
    assert who(bench.step()) == answers[:1]  # 8 of 15
    other = bench.add(1)
    assert who(bench.step()) == [answers[0], other]  # nobody waits for them
    plan = bench.step()
    assert [(share.sequence, share.num_tokens) for share in plan.scheduled] == [
        (answers[0], 1),
        (other, 1),
        (answers[1], 3),
        (answers[2], 3),
    ]
    assert [answer.num_cached for answer in answers] == [0, 12, 12]
    assert answers[1].full_pages[:3] == answers[0].full_pages[:3]


def test_the_next_answer_leads_when_the_first_is_gone() -> None:
    bench = Bench(max_num_batched_tokens=8)
    answers = bench.make(15, n=4)
    bench.scheduler.add(answers)
    bench.step()
    bench.scheduler.finish(answers[0], FinishReason.CANCELLED)
    bench.scheduler.finish(answers[1], FinishReason.CANCELLED)
    assert bench.scheduler.num_waiting == 2
    assert who(bench.step()) == [answers[2]]  # 8 of them are cached
    assert answers[2].num_cached == 8
    assert who(bench.step()) == [answers[2], answers[3]]


@pytest.mark.parametrize(
    ("prompt", "has_prefix_cache", "params"), [(15, False, {}), (4, True, {}), (15, True, {"prompt_logprobs": 0})]
)
def test_answers_that_cannot_share_do_not_wait(prompt: int, has_prefix_cache: bool, params: dict[str, int]) -> None:
    bench = Bench(has_prefix_cache=has_prefix_cache)
    answers = bench.make(prompt, n=3, **params)
    bench.scheduler.add(answers)
    assert who(bench.step()) == answers


def test_cancelled_ones_do_not_pile_up_in_the_queue() -> None:
    bench = Bench(max_num_seqs=1)
    bench.add()
    bench.step()
    for _ in range(1000):
        bench.scheduler.finish(bench.add(), FinishReason.CANCELLED)
    assert bench.scheduler.num_waiting == 0
    assert len(bench.scheduler._waiting._heap) < 200


def test_a_refused_head_is_tried_again_when_pages_come_back() -> None:
    bench = Bench(num_pages=14)
    first, second = bench.add(12, max_tokens=5), bench.add(6, max_tokens=5)
    bench.step()
    big = bench.add(12)
    for _ in range(2):
        assert big not in who(bench.step())
    bench.scheduler.finish(first, FinishReason.CANCELLED)
    bench.scheduler.finish(second, FinishReason.CANCELLED)
    assert who(bench.step()) == [big]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("context_length", 1),
        ("max_num_seqs", 0),
        ("max_num_batched_tokens", 1),
        ("max_queue", 0),
        ("max_drafts", -1),
        ("watermark", 1.0),
        ("watermark", -0.1),
    ],
)
def test_limits_are_checked(name: str, value: float) -> None:
    with pytest.raises(InvalidInputError, match=name) as caught:
        SchedulerConfig(**{"context_length": 10, name: value})  # type: ignore[arg-type]  # the names above
    assert caught.value.param == name
