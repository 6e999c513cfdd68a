"""The engine against one-at-a-time generation: whatever else goes on, a request gets what it would get alone."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ossia.core.errors import ContextLengthError, EngineOverloadedError, InvalidInputError
from ossia.engine.completion import Collector, Completion
from ossia.engine.constraint import JsonSchema, Regex
from ossia.engine.engine import Engine
from ossia.engine.output_event import OutputEvent
from ossia.engine.plan import StepPlan
from ossia.engine.request import FinishReason, Request, SamplingParams
from ossia.engine.runner import StepLogits
from ossia.model.attention import PackedAttention
from ossia.model.generate import GenerationOptions, generate
from ossia.model.loading import LoadedModel

MakeEngine = Callable[..., Engine]
GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


def run(engine: Engine, requests: Sequence[Request], *, check: bool = True) -> dict[str, Completion]:
    for request in requests:
        engine.add(request)
    return finish(engine, requests, check=check)


def finish(engine: Engine, requests: Sequence[Request], *, check: bool = True) -> dict[str, Completion]:
    collectors = {request.id: Collector(request) for request in requests}
    while engine.has_work:
        for event in engine.step():
            collectors[event.request_id].push(event)
        if check:
            engine.check_integrity()
    assert engine.scheduler.blocks.num_held == 0
    return {name: collector.result() for name, collector in collectors.items()}


def prompt(seed: int, length: int) -> tuple[int, ...]:
    """Prompts of one seed begin alike, so that prefixes are shared."""
    rng = random.Random(seed)
    return tuple(rng.randrange(20, 8000) for _ in range(length))


_ALONE: dict[tuple[tuple[int, ...], str], tuple[int, ...]] = {}


def alone(loaded: LoadedModel, prompt_ids: tuple[int, ...], params: SamplingParams) -> tuple[int, ...]:
    key = (prompt_ids, repr(params))
    if key not in _ALONE:
        _ALONE[key] = generate_alone(loaded, prompt_ids, params)
    return _ALONE[key]


def generate_alone(loaded: LoadedModel, prompt_ids: tuple[int, ...], params: SamplingParams) -> tuple[int, ...]:
    options = GenerationOptions(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        seed=params.seed,
        max_tokens=params.max_tokens,
        stop_ids=loaded.stop_ids,
    )
    return tuple(generate(loaded.model, prompt_ids, options=options))


SAMPLING = (
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 0.7, "seed": 8, "top_p": 0.9},
    {"temperature": 1.3, "seed": -9, "top_k": 40, "min_p": 0.01},
)


@dataclasses.dataclass(frozen=True)
class Arrival:
    """A request, the step before which it comes, and the number of its tokens after which its client goes away."""

    request: Request
    step: int
    patience: int | None


@st.composite
def arrivals(draw: st.DrawFn) -> list[Arrival]:
    traffic = []
    for index in range(draw(st.integers(1, 8))):
        params = SamplingParams(**draw(st.sampled_from(SAMPLING)), max_tokens=draw(st.integers(1, 14)))  # type: ignore[arg-type]
        request = Request(
            id=str(index),
            prompt_ids=prompt(draw(st.integers(0, 2)), draw(st.integers(1, 40))),
            params=params,
            priority=draw(st.integers(-1, 1)),
        )
        traffic.append(Arrival(request, draw(st.integers(0, 12)), draw(st.none() | st.integers(0, 10))))
    return traffic


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    traffic=arrivals(),
    page_size=st.sampled_from([2, 4, 16]),
    tightness=st.floats(1.0, 3.0),
    budget=st.sampled_from([2, 7, 32, 512]),
    max_num_seqs=st.sampled_from([2, 8]),
    num_drafts=st.sampled_from([0, 3]),
    has_overlap=st.booleans(),
    has_prefix_cache=st.booleans(),
)
def test_random_traffic_gets_what_each_would_get_alone(
    loaded: LoadedModel,
    make_engine: MakeEngine,
    traffic: list[Arrival],
    page_size: int,
    tightness: float,
    budget: int,
    max_num_seqs: int,
    num_drafts: int,
    has_overlap: bool,
    has_prefix_cache: bool,
) -> None:
    longest = max(len(a.request.prompt_ids) + (a.request.params.max_tokens or 0) for a in traffic)
    # Tight pools hold hardly more than the longest request, which forces preemptions.
    num_pages = 1 + int((-(-longest // page_size) + 1) * 2 * tightness) + 8 // page_size + 3
    engine = make_engine(
        has_overlap=has_overlap,
        page_size=page_size,
        num_pages=num_pages,
        max_num_batched_tokens=budget,
        max_num_seqs=max_num_seqs,
        num_drafts=num_drafts,
        has_prefix_cache=has_prefix_cache,
    )
    tokens: dict[str, list[int]] = {a.request.id: [] for a in traffic}
    reasons: dict[str, FinishReason] = {}
    waiting = sorted(traffic, key=lambda a: a.step)
    patience = {a.request.id: a.patience for a in traffic}
    num_steps = 0
    while waiting or engine.has_work:
        while waiting and waiting[0].step <= num_steps:
            engine.add(waiting.pop(0).request)
        for event in engine.step():
            tokens[event.request_id] += event.token_ids
            if event.finish_reason is not None:
                reasons[event.request_id] = event.finish_reason
            elif patience[event.request_id] is not None and len(tokens[event.request_id]) >= patience[event.request_id]:
                engine.cancel(event.request_id)
        engine.check_integrity()
        num_steps += 1
        assert num_steps < 5000, "the engine makes no progress"
    assert engine.scheduler.blocks.num_held == 0
    for arrival in traffic:
        request = arrival.request
        wanted, got = alone(loaded, request.prompt_ids, request.params), tuple(tokens[request.id])
        if reasons[request.id] is FinishReason.CANCELLED:
            assert got == wanted[: len(got)]
        else:
            assert got == wanted


def test_preemption_and_prefix_hits_do_happen_in_tight_traffic(loaded: LoadedModel, make_engine: MakeEngine) -> None:
    """The property above would be empty if its engines never ran short of pages or never found a prefix."""
    engine = make_engine(num_pages=40, page_size=4, max_num_batched_tokens=64)
    params = dataclasses.replace(GREEDY, max_tokens=24)
    requests = [Request(id=str(i), prompt_ids=prompt(i % 2, 30 + i), params=params) for i in range(6)]
    done = run(engine, requests)
    assert engine.snapshot().num_preemptions > 0
    again = run(engine, requests)
    assert engine.snapshot().num_cached_tokens > 0
    for request in requests:
        wanted = alone(loaded, request.prompt_ids, params)
        assert done[request.id].token_ids == again[request.id].token_ids == wanted


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0, max_tokens=12, repetition_penalty=1.5),
        SamplingParams(temperature=1.0, seed=3, max_tokens=12, presence_penalty=1.0, frequency_penalty=0.5),
        SamplingParams(temperature=0.0, max_tokens=12, logit_bias={100: 50.0, 101: -100.0}, logprobs=3),
        SamplingParams(temperature=1.0, seed=5, max_tokens=12, n=3, logprobs=0),
        SamplingParams(temperature=0.0, max_tokens=12, prompt_logprobs=2),
        SamplingParams(temperature=1.0, seed=6, max_tokens=12, min_tokens=12, stop=("e",)),
        SamplingParams(temperature=1.0, seed=6, max_tokens=40, constraint=Regex(r"[ab]{3,9}c")),
    ],
    ids=["repetition", "presence", "bias", "n", "prompt_logprobs", "min_tokens", "regex"],
)
@pytest.mark.parametrize("has_overlap", [False, True])
@pytest.mark.parametrize("num_drafts", [0, 4])
def test_every_option_gives_the_same_alone_and_in_a_batch(
    make_engine: MakeEngine, params: SamplingParams, has_overlap: bool, num_drafts: int
) -> None:
    request = Request(id="one", prompt_ids=prompt(1, 19), params=params)
    solo = run(make_engine(), [request])["one"]
    others = [
        Request(id=str(i), prompt_ids=prompt(2, 5 + 3 * i), params=SamplingParams(seed=i, max_tokens=20))
        for i in range(4)
    ]
    engine = make_engine(has_overlap=has_overlap, num_drafts=num_drafts, max_num_batched_tokens=24)
    batched = run(engine, [*others[:2], request, *others[2:]])["one"]
    assert [a.token_ids for a in batched.answers] == [a.token_ids for a in solo.answers]
    assert [a.text for a in batched.answers] == [a.text for a in solo.answers]
    assert [a.finish_reason for a in batched.answers] == [a.finish_reason for a in solo.answers]
    for ours, theirs in zip(batched.answers, solo.answers, strict=True):
        assert_close(ours.logprobs, theirs.logprobs)
    assert_close(batched.prompt_logprobs, solo.prompt_logprobs)


def assert_close(ours: Any, theirs: Any) -> None:
    assert (ours is None) == (theirs is None)
    for a, b in zip(ours or (), theirs or (), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.token_id == b.token_id
            assert a.rank == b.rank
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)  # float32 sums in another order
            assert [t for t, _ in a.top] == [t for t, _ in b.top]


def test_the_answers_of_n_are_those_of_smaller_n(make_engine: MakeEngine) -> None:
    params = SamplingParams(temperature=1.0, seed=11, max_tokens=10)
    few = run(make_engine(), [Request(id="a", prompt_ids=prompt(0, 21), params=params)])["a"]
    many = run(make_engine(), [Request(id="a", prompt_ids=prompt(0, 21), params=dataclasses.replace(params, n=4))])["a"]
    assert many.answers[0].token_ids == few.answers[0].token_ids
    assert len({a.token_ids for a in many.answers}) == 4


def test_prompt_logprobs_are_those_of_one_forward_pass(loaded: LoadedModel, make_engine: MakeEngine) -> None:
    ids = prompt(0, 23)
    params = SamplingParams(temperature=0.0, max_tokens=2, prompt_logprobs=1)
    got = run(make_engine(max_num_batched_tokens=7), [Request(id="a", prompt_ids=ids, params=params)])["a"]
    with torch.inference_mode():
        hidden = loaded.model(
            torch.tensor(ids), positions=torch.arange(len(ids)), attention=PackedAttention([0, len(ids)])
        )
        wanted = loaded.model.logits(hidden).log_softmax(dim=-1)
    assert got.prompt_logprobs is not None
    assert got.prompt_logprobs[0] is None
    for place, entry in enumerate(got.prompt_logprobs[1:]):
        assert entry is not None
        assert entry.logprob == pytest.approx(float(wanted[place, ids[place + 1]]), abs=1e-4)
        assert entry.top[0][0] == int(wanted[place].argmax())


def test_a_prompt_that_poisons_its_logits_fails_alone(
    loaded: LoadedModel, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = 77
    weight = loaded.model.embed_tokens.weight
    kept = weight[poison].clone()
    good = Request(id="good", prompt_ids=prompt(0, 9), params=GREEDY)
    wanted = alone(loaded, good.prompt_ids, GREEDY)
    try:
        with torch.no_grad():
            weight[poison] = float("nan")
        bad = Request(id="bad", prompt_ids=(5, poison, 6), params=GREEDY)
        done = run(make_engine(), [bad, good])
    finally:
        with torch.no_grad():
            weight[poison] = kept
    assert done["good"].token_ids == wanted
    assert done["bad"].answers[0].finish_reason is FinishReason.ERROR
    assert "NaN" in (done["bad"].answers[0].error or "")


class PickyRunner:
    """A runner that fails whenever a certain request is in the batch, as a kernel that dislikes its shape might.

    It gives logits in one buffer, as a graph does.
    """

    def __init__(self, inner: Any, *, hated: str) -> None:
        self.inner, self.hated = inner, hated
        self.buffer = torch.empty(0)

    def forward(self, plan: StepPlan, *, last: Any = None) -> StepLogits:
        if any(share.sequence.request.id == self.hated for share in plan.scheduled):
            raise RuntimeError("a kernel failed")
        out = self.inner.forward(plan, last=last)
        rows = len(out.sample_logits)
        if len(self.buffer) < rows:
            self.buffer = torch.empty_like(out.sample_logits)
        self.buffer[:rows] = out.sample_logits
        return out._replace(sample_logits=self.buffer[:rows])


@pytest.mark.parametrize("has_overlap", [False, True])
def test_a_request_that_breaks_the_forward_pass_fails_alone(
    loaded: LoadedModel, make_engine: MakeEngine, has_overlap: bool
) -> None:
    engine = make_engine(has_overlap=has_overlap)
    engine.runner = PickyRunner(engine.runner, hated="bad")
    names = ("good", "bad", "fine")
    requests = [Request(id=name, prompt_ids=prompt(n, 9), params=GREEDY) for n, name in enumerate(names)]
    done = run(engine, requests)
    assert done["bad"].answers[0].finish_reason is FinishReason.ERROR
    assert "RuntimeError" in (done["bad"].answers[0].error or "")
    for n, name in ((0, "good"), (2, "fine")):
        assert done[name].token_ids == alone(loaded, prompt(n, 9), GREEDY)


def test_an_engine_that_can_run_nothing_gives_up(make_engine: MakeEngine) -> None:
    engine = make_engine()

    class Broken:
        def forward(self, plan: StepPlan, *, last: Any = None) -> StepLogits:
            raise RuntimeError("the device is gone")

    engine.runner = Broken()
    for name in "ab":
        engine.add(Request(id=name, prompt_ids=prompt(0, 9), params=GREEDY))
    with pytest.raises(RuntimeError, match="device is gone"):
        engine.step()


def test_a_deadline_ends_what_is_not_done(make_engine: MakeEngine) -> None:
    engine = make_engine()
    late = Request(id="late", prompt_ids=prompt(0, 9), params=GREEDY, deadline=time.monotonic() - 1)
    soon = Request(id="soon", prompt_ids=prompt(0, 9), params=GREEDY, deadline=time.monotonic() + 600)
    done = run(engine, [late, soon])
    assert done["late"].answers[0].finish_reason is FinishReason.DEADLINE
    assert done["late"].token_ids == ()
    assert done["soon"].answers[0].finish_reason is FinishReason.LENGTH


def test_cancelling_gives_pages_back_at_once_and_is_told(make_engine: MakeEngine) -> None:
    engine = make_engine()
    request = Request(id="a", prompt_ids=prompt(0, 30), params=dataclasses.replace(GREEDY, max_tokens=50))
    engine.add(request)
    engine.step()
    engine.step()
    assert engine.scheduler.blocks.num_held > 0
    engine.cancel("a")
    engine.cancel("unknown")
    assert engine.scheduler.blocks.num_held == 0
    (event,) = engine.step()
    assert event.finish_reason is FinishReason.CANCELLED
    assert not engine.has_work
    assert engine.snapshot().finished == {"cancelled": 1}


def test_a_full_queue_refuses_and_says_so(make_engine: MakeEngine) -> None:
    engine = make_engine(max_queue=2)
    for index in range(2):
        engine.add(Request(id=str(index), prompt_ids=(5,), params=GREEDY))
    with pytest.raises(EngineOverloadedError, match="2"):
        engine.add(Request(id="more", prompt_ids=(5,), params=GREEDY))
    assert engine.snapshot().rejected == 1
    assert engine.num_open("more") == 0


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"prompt_ids": (5,) * 256}, ContextLengthError, "256 tokens"),
        ({"prompt_ids": (9000,)}, InvalidInputError, "9000"),
        ({"params": SamplingParams(stop_ids=(8192,))}, InvalidInputError, "stop_ids"),
        ({"params": SamplingParams(logit_bias={8192: 1.0})}, InvalidInputError, "logit_bias"),
        ({"params": SamplingParams(constraint=Regex("("))}, InvalidInputError, "regex|regular"),
    ],
)
def test_a_bad_request_is_refused_before_any_token(
    make_engine: MakeEngine, fields: dict[str, Any], error: type[Exception], match: str
) -> None:
    engine = make_engine()
    with pytest.raises(error, match=match):
        engine.add(Request(**({"id": "a", "prompt_ids": (5,), "params": GREEDY} | fields)))
    assert not engine.has_work


def test_two_requests_cannot_share_an_id(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add(Request(id="a", prompt_ids=(5,), params=GREEDY))
    with pytest.raises(InvalidInputError, match="'a'"):
        engine.add(Request(id="a", prompt_ids=(5,), params=GREEDY))


def test_stop_strings_end_the_text_before_them(make_engine: MakeEngine) -> None:
    ids, longer = prompt(0, 9), dataclasses.replace(GREEDY, max_tokens=20)
    whole = run(make_engine(), [Request(id="a", prompt_ids=ids, params=longer)])["a"]
    stop = whole.text[5:8]
    params = dataclasses.replace(longer, stop=(stop,))
    cut = run(make_engine(), [Request(id="a", prompt_ids=ids, params=params)])["a"]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.answers[0].stop == stop
    assert cut.answers[0].finish_reason is FinishReason.STOP


def test_a_constraint_holds_and_its_end_ends_the_answer(make_engine: MakeEngine) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}
    schema["additionalProperties"] = False
    params = SamplingParams(temperature=1.0, seed=2, max_tokens=60, constraint=JsonSchema(schema))
    done = run(make_engine(num_drafts=4), [Request(id="a", prompt_ids=prompt(0, 9), params=params)])["a"]
    answer = done.answers[0]
    assert answer.finish_reason is FinishReason.STOP
    assert json.loads(answer.text)["n"] <= 99


def test_a_constraint_that_breaks_ends_its_answer_with_the_reason(make_engine: MakeEngine) -> None:
    """A broken matcher allows `<|endoftext|>` alone, which must not look like an answer that ended well."""
    engine = make_engine()
    params = SamplingParams(temperature=1.0, seed=2, max_tokens=60, constraint=Regex("[a-z]{40}"))
    engine.add(Request(id="a", prompt_ids=prompt(0, 9), params=params))
    engine.step()
    (answer,) = engine._answers.values()
    assert answer.matcher is not None
    answer.matcher.error = "too complex"
    events = [event for _ in range(3) for event in engine.step()]
    assert events[-1].finish_reason is FinishReason.ERROR
    assert "too complex" in (events[-1].error or "")
    assert not engine.has_work


def test_tenants_with_other_salts_share_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine()
    ids = prompt(0, 40)
    for salt, name, wanted in (("x", "a", False), ("y", "b", False), ("x", "c", True)):
        done = run(engine, [Request(id=name, prompt_ids=ids, params=GREEDY, cache_salt=salt)])[name]
        assert (done.num_cached > 0) is wanted


def test_the_first_event_of_each_answer_comes_with_the_prompts_last_chunk(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_batched_tokens=8)
    engine.add(Request(id="a", prompt_ids=prompt(0, 20), params=GREEDY))
    news: list[list[OutputEvent]] = [engine.step() for _ in range(3)]
    assert [len(events) for events in news] == [0, 0, 1]


def test_drafts_are_accepted_where_the_text_repeats(make_engine: MakeEngine) -> None:
    engine = make_engine(num_drafts=6)
    params = dataclasses.replace(GREEDY, max_tokens=60, logit_bias={100: 100.0})
    done = run(engine, [Request(id="a", prompt_ids=prompt(0, 9), params=params)])["a"]
    snapshot = engine.snapshot()
    assert done.token_ids == (100,) * 60
    assert 0 < snapshot.num_accepted_tokens <= snapshot.num_draft_tokens
    assert snapshot.num_steps < len(done.token_ids)
