"""Thousands of random requests on nano, a fifth of them cancelled: nothing is kept, and memory does not grow."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import pytest
import torch

from ossia.engine.build import EngineConfig, build_engine
from ossia.engine.engine import Engine
from ossia.engine.request import Request, SamplingParams
from ossia.model.loading import load

NUM_REQUESTS = 2000
CONCURRENCY = 64
CANCELLED = 0.2
GROWTH_MIB = 64
"""Allowed growth of resident memory from a quarter of the traffic to its end. A leak of one page tensor row, text or
event a request would pass a gigabyte with the sizes below in a longer run, and some tens of MiB here; allocators keep
a few MiB of slack."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_soak() -> None:
    torch.set_num_threads(1)
    loaded = load("nano", device="cpu")
    # Few pages and some long answers, so that sequences are preempted now and then, whatever the model says.
    engine = build_engine(loaded, config=EngineConfig(num_pages=300, max_num_seqs=CONCURRENCY, num_drafts=2))
    rng = random.Random(0)
    sent = done = 0
    at_quarter = 0.0
    cancel_at: dict[str, int] = {}
    given: dict[str, int] = {}
    while done < NUM_REQUESTS:
        while sent < NUM_REQUESTS and sent - done < CONCURRENCY:
            request = draw(rng, sent)
            if rng.random() < CANCELLED:
                cancel_at[request.id] = rng.randrange(1, 6)
            engine.add(request)
            sent += 1
        for event in engine.step():
            given[event.request_id] = given.get(event.request_id, 0) + len(event.token_ids)
            if event.finish_reason is not None:
                done += 1
                del given[event.request_id]
            elif given[event.request_id] >= cancel_at.get(event.request_id, 1 << 30):
                engine.cancel(event.request_id)
        if not at_quarter and done >= NUM_REQUESTS // 4:
            at_quarter = resident_mib()
            engine.check_integrity()
    assert_empty(engine)
    snapshot = engine.snapshot()
    assert snapshot.finished["cancelled"] > NUM_REQUESTS * CANCELLED * 0.5
    assert snapshot.num_preemptions > 0
    assert snapshot.num_cached_tokens > 0
    assert resident_mib() - at_quarter < GROWTH_MIB


def draw(rng: random.Random, index: int) -> Request:
    shared = list(range(100, 164))
    prompt = shared[: rng.randrange(0, 64)] + [rng.randrange(20, 8000) for _ in range(rng.randrange(1, 80))]
    params = SamplingParams(
        temperature=rng.choice([0.0, 1.0]),
        top_p=rng.choice([1.0, 0.9]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.1]),
        seed=index,
        max_tokens=rng.choice((2, 6, 10, 120)),
        logprobs=rng.choice([None, None, 2]),
        ignore_eos=True,
    )
    return Request(id=str(index), prompt_ids=tuple(prompt), params=params, priority=rng.randrange(-1, 2))


def assert_empty(engine: Engine) -> None:
    while engine.has_work:
        engine.step()
    engine.check_integrity()
    assert engine.scheduler.blocks.num_held == 0
    assert engine.scheduler.num_running == engine.scheduler.num_waiting == 0


def resident_mib() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
