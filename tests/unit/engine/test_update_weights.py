"""The engine with other weights in the same memory, and what it records of the routing."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError, TensorMismatchError
from ossia.engine.async_engine import AsyncEngine
from ossia.engine.build import EngineConfig, build_engine
from ossia.engine.completion import Collector, Completion
from ossia.engine.engine import Engine
from ossia.engine.kv_cache import PagedKVCache
from ossia.engine.native_runner import NativeRunner
from ossia.engine.request import Request, SamplingParams
from ossia.engine.routing import RoutingPages
from ossia.engine.runner import TorchRunner
from ossia.kernels import native
from ossia.kernels.router import choose_experts
from ossia.model.attention import PackedAttention
from ossia.model.config import SLIDING
from ossia.model.loading import LoadedModel
from ossia.model.transformer import Transformer

PROMPT = tuple(range(40, 63))
BOUND = 1e-4
"""Of logits of size ~10: kernels and torch sum in other orders, over 3 layers in float32 (2^-24 relative)."""
RUNNERS = ["torch", pytest.param("native", marks=pytest.mark.skipif(not native.is_available(), reason="no kernels"))]


def copy_of(loaded: LoadedModel, *, packed: bool = False, dtype: torch.dtype = torch.float32) -> LoadedModel:
    model = Transformer(loaded.model.config, dtype=dtype, packed_experts=packed)
    if not packed:
        model.load_state_dict(loaded.model.state_dict())
    return dataclasses.replace(loaded, model=model)


def make_engine(loaded: LoadedModel, runner: str, *, records: bool = False, has_prefix_cache: bool = True) -> Engine:
    config = EngineConfig(num_pages=128, page_size=4, records_routing=records, has_prefix_cache=has_prefix_cache)
    engine = build_engine(loaded, config=config, has_overlap=False)
    shape = loaded.model.config
    cache = PagedKVCache(shape, num_pages=128, page_size=4, dtype=loaded.model.norm.weight.dtype)
    routing = RoutingPages(shape, num_pages=128, page_size=4) if records else None
    engine.runner = (TorchRunner if runner == "torch" else NativeRunner)(loaded.model, cache=cache, routing=routing)
    engine._routing = routing  # pyright: ignore[reportPrivateUsage]
    return engine


def other_weights(loaded: LoadedModel, *, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: parameter.detach() + 0.05 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in loaded.model.named_parameters()
    }


def run(engine: Engine, *, prompt: tuple[int, ...] = PROMPT, num_tokens: int = 12, seed: int = 1) -> Completion:
    params = SamplingParams(temperature=1.0, seed=seed, max_tokens=num_tokens, ignore_eos=True, logprobs=0)
    request = Request(id="a", prompt_ids=prompt, params=params)
    collector = Collector(request)
    engine.add(request)
    while engine.has_work:
        for event in engine.step():
            collector.push(event)
    return collector.result()


class _Recorder:
    def __init__(self) -> None:
        self.chosen: list[Tensor] = []

    def select(self, layer: int, logits: Tensor, num_active: int) -> tuple[Tensor, Tensor]:
        indices, weights = choose_experts(logits, num_active=num_active)
        self.chosen.append(indices)
        return indices, weights


@torch.no_grad()
def score(model: Transformer, ids: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Logprobs of each token after the first, and the experts [T, L, A], by the plain model."""
    recorder = _Recorder()
    attention = PackedAttention(torch.tensor([0, len(ids)]))
    tokens = torch.tensor(ids)
    hidden = model(tokens, positions=torch.arange(len(ids)), attention=attention, router=recorder)
    logprobs = torch.log_softmax(model.logits(hidden), dim=-1)
    return logprobs[:-1].gather(1, tokens[1:, None])[:, 0], torch.stack(recorder.chosen, dim=1)


def assert_agrees(completion: Completion, model: Transformer) -> None:
    ids = completion.prompt_ids + completion.token_ids
    wanted, _ = score(model, ids)
    logprobs = completion.answers[0].logprobs
    assert logprobs is not None
    got = torch.tensor([entry.logprob for entry in logprobs])
    torch.testing.assert_close(got, wanted[-len(got) :], rtol=0, atol=BOUND)


@pytest.mark.parametrize("runner", RUNNERS)
def test_after_an_update_the_engine_has_the_trainers_logits(loaded: LoadedModel, runner: str) -> None:
    own = copy_of(loaded)
    engine = make_engine(own, runner)
    before = run(engine)
    assert_agrees(before, own.model)
    weights = other_weights(loaded, seed=3)
    engine.update_weights(weights)
    after = run(engine)  # the same prompt, of which the cache had pages
    assert after.num_cached == 0
    trainer = Transformer(loaded.model.config, dtype=torch.float32)
    trainer.load_state_dict(weights)
    assert_agrees(after, trainer)
    assert run(engine).num_cached > 0  # the cache works again, with the new weights
    engine.check_integrity()


@pytest.mark.parametrize("runner", RUNNERS)
def test_shared_parameters_need_no_copy(loaded: LoadedModel, runner: str) -> None:
    own = copy_of(loaded)
    engine = make_engine(own, runner)
    run(engine)
    parameters = {name: parameter.detach() for name, parameter in own.model.named_parameters()}
    with torch.no_grad():
        for name, value in other_weights(loaded, seed=4).items():
            parameters[name].copy_(value)
    engine.update_weights(parameters)
    assert_agrees(run(engine), own.model)


def test_stale_pages_would_be_seen(loaded: LoadedModel) -> None:
    """What the test above would miss if it could not tell: without dropping the prefixes, logits are wrong."""
    own = copy_of(loaded)
    engine = make_engine(own, "torch")
    run(engine)
    engine.runner.update_weights(other_weights(loaded, seed=3))
    with pytest.raises(AssertionError):
        assert_agrees(run(engine), own.model)


@pytest.mark.skipif(not native.is_available(), reason="no kernels")
@pytest.mark.parametrize("quantize", [None, "q8", "bf12"])
def test_the_kernels_copies_are_renewed(loaded: LoadedModel, quantize: str | None) -> None:
    """bfloat16 vectors are widened, and 8-bit matrices are made: an updated engine equals one that is built anew."""
    own = copy_of(loaded, dtype=torch.bfloat16, packed=True)
    weights = other_weights(loaded, seed=5)
    fields = EngineConfig(num_pages=128, page_size=4, cpu_quant=quantize or "none")
    own_engine = build_engine(own, config=fields)
    own_engine.update_weights({name: value.detach() for name, value in loaded.model.named_parameters()})
    run(own_engine)
    own_engine.update_weights(weights)
    updated = run(own_engine)
    fresh = run(build_engine(own, config=fields))
    assert updated.answers == fresh.answers


def test_no_update_while_requests_run(loaded: LoadedModel) -> None:
    engine = make_engine(copy_of(loaded), "torch")
    engine.add(Request(id="a", prompt_ids=PROMPT, params=SamplingParams(max_tokens=4)))
    engine.step()
    with pytest.raises(InvalidInputError, match="1 requests are running"):
        engine.update_weights(other_weights(loaded, seed=1))
    engine.cancel_all()
    engine.step()
    engine.update_weights(other_weights(loaded, seed=1))
    with pytest.raises(TensorMismatchError):
        engine.update_weights({})


@pytest.mark.parametrize("runner", RUNNERS)
def test_routing_is_told_for_prompt_and_answer(loaded: LoadedModel, runner: str) -> None:
    own = copy_of(loaded)
    engine = make_engine(own, runner, records=True)
    for _ in range(2):  # the second time the prompt's choices come with its pages
        done = run(engine)
        ids = done.prompt_ids + done.token_ids
        routing = done.answers[0].routing
        assert routing is not None
        _, wanted = score(own.model, ids[:-1])
        assert routing.shape == (len(ids) - 1, 3, 2)
        assert torch.equal(torch.from_numpy(routing).long(), wanted)
    assert done.num_cached > 0


def test_routing_of_a_cancelled_answer_is_as_far_as_it_got(loaded: LoadedModel) -> None:
    engine = make_engine(copy_of(loaded), "torch", records=True)
    engine.add(Request(id="a", prompt_ids=PROMPT, params=SamplingParams(max_tokens=50, ignore_eos=True)))
    engine.add(Request(id="b", prompt_ids=PROMPT, params=SamplingParams(max_tokens=50, ignore_eos=True)))
    engine.cancel("b")
    for _ in range(4):
        engine.step()
    engine.cancel("a")
    (event,) = (event for event in engine.step() if event.request_id == "a")
    assert event.routing is not None
    assert len(event.routing) >= len(PROMPT)


def test_no_routing_unless_asked_for(loaded: LoadedModel) -> None:
    assert run(make_engine(copy_of(loaded), "torch")).answers[0].routing is None


def test_a_model_of_sliding_layers_alone_is_refused(loaded: LoadedModel) -> None:
    config = dataclasses.replace(loaded.model.config, layer_types=(SLIDING,) * 3)
    with pytest.raises(InvalidInputError, match="records_routing"):
        RoutingPages(config, num_pages=4, page_size=4)


def test_overlapped_steps_record_the_same(loaded: LoadedModel, make_engine: Callable[..., Engine]) -> None:
    plain = run(make_engine(records_routing=True)).answers[0].routing
    overlapped = run(make_engine(records_routing=True, has_overlap=True)).answers[0].routing
    assert plain is not None
    assert overlapped is not None
    assert (plain == overlapped).all()


def test_a_server_takes_new_weights_between_two_requests(loaded: LoadedModel) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)

    async def answer(engine: AsyncEngine) -> list[int]:
        request = Request(id="a", prompt_ids=PROMPT, params=params)
        return [token async for event in engine.generate(request) for token in event.token_ids]

    async def work() -> None:
        engine = AsyncEngine(make_engine(copy_of(loaded), "torch"))
        before = await answer(engine)
        await engine.update_weights(other_weights(loaded, seed=3))
        after = await answer(engine)
        with pytest.raises(TensorMismatchError):
            await engine.update_weights({})
        again = await answer(engine)
        await engine.shutdown()
        assert before != after
        assert after == again

    asyncio.run(work())
