"""Token buckets and concurrency."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.server.auth import ANONYMOUS, Caller
from ossia.server.errors import ApiError
from ossia.server.limits import Limiter
from ossia.server.settings import Limits


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def admits(limiter: Limiter, caller: Caller = ANONYMOUS) -> bool:
    try:
        limiter.admit(caller)
    except ApiError as error:
        return error.info.status != 429 or int(error.info.headers["Retry-After"]) < 1
    return True


def test_concurrency_counts_what_is_open():
    limiter = Limiter(Limits(concurrency=2))
    assert admits(limiter)
    assert admits(limiter)
    assert not admits(limiter)
    limiter.release(ANONYMOUS)
    assert admits(limiter)
    assert admits(limiter, Caller("key_b", "b"))
    assert not admits(limiter, Caller("anonymous", "own limit", concurrency=1))


def test_requests_fill_evenly():
    clock = Clock()
    limiter = Limiter(Limits(requests_per_minute=6), clock=clock)
    assert [admits(limiter) for _ in range(7)] == [True] * 6 + [False]
    clock.now = 9.9
    assert not admits(limiter)
    clock.now = 10.1
    assert admits(limiter)
    assert not admits(limiter)
    assert limiter.headers(ANONYMOUS)["x-ratelimit-limit-requests"] == "6"
    clock.now = 1000.0
    assert [admits(limiter) for _ in range(7)] == [True] * 6 + [False]


def test_tokens_are_paid_afterwards():
    clock = Clock()
    limiter = Limiter(Limits(tokens_per_minute=60), clock=clock)
    assert admits(limiter)
    limiter.charge(ANONYMOUS, 90)
    assert not admits(limiter)
    clock.now = 30.5
    assert admits(limiter)


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60), st.integers(1, 20))
def test_no_window_of_a_minute_lets_more_than_two_buckets_through(steps, per_minute):
    clock = Clock()
    limiter = Limiter(Limits(requests_per_minute=per_minute), clock=clock)
    passed: list[float] = []
    for wait, burst in steps:
        clock.now += wait
        tries = per_minute + 1 if burst else 1
        passed += [clock.now for _ in range(tries) if admits(limiter)]
    for time in passed:
        assert sum(time <= other <= time + 60 for other in passed) <= 2 * per_minute


def test_a_refused_request_holds_no_place():
    limiter = Limiter(Limits(concurrency=1))
    limiter.admit(ANONYMOUS)
    with pytest.raises(ApiError):
        limiter.admit(ANONYMOUS)
    limiter.release(ANONYMOUS)
    assert admits(limiter)
