"""Sends random bodies to a server in this process, one after the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Ask = Callable[[httpx.AsyncClient, str, bytes], Awaitable[None]]


def fuzz(app: FastAPI, client_for: Any, *, paths: tuple[str, ...], bodies: st.SearchStrategy[Any], ask: Ask) -> int:
    """Send 400 bodies to paths drawn from these; `ask` asserts what must hold of each answer. How many were sent."""
    loop = asyncio.new_event_loop()
    connection = client_for(app)
    client = loop.run_until_complete(connection.__aenter__())
    num_sent = 0

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(bodies, st.sampled_from(paths))
    def check(body: Any, path: str) -> None:
        nonlocal num_sent
        try:
            data = json.dumps(body).encode()
        except ValueError:  # a lone surrogate, say, has no JSON
            return
        num_sent += 1
        loop.run_until_complete(ask(client, path, data))

    try:
        check()
    finally:
        loop.run_until_complete(connection.__aexit__(None, None, None))
        loop.close()
    return num_sent


def values(*, words: Sequence[str], keys: Sequence[str]) -> st.SearchStrategy[Any]:
    """Any JSON, of these keys and often of these words."""
    leaf = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=10)
        | st.sampled_from(words)
        | st.sampled_from(words)
    )
    names = st.sampled_from(keys)
    return st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12
    )
