"""What scripted models say, and requests of the stateless APIs: shared by the tests of each."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

NEXT = "<|start|>assistant"
THINK = "<|channel|>analysis<|message|>They say hello.<|end|>" + NEXT
PREAMBLE = "<|channel|>commentary<|message|>Let me look.<|end|>" + NEXT
FINAL = "<|channel|>final<|message|>Hello there.<|return|>"
WORDS = ["yes", "no", "perhaps", "snø", "日本", "\U0001f600", "\n", '"', "\\", "{", "}", "data:", "event:"]
NAMES = ("functions.f", "custom.g", "functions.unknown", "python")


def ask(client_for: Any, app: Any, path: str, base: dict[str, Any], *bodies: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers to some bodies, each put over `base`, all of which must succeed."""

    async def run() -> list[dict[str, Any]]:
        async with client_for(app) as client:
            answers = [await client.post(path, json={**base, **body}) for body in bodies]
            assert [answer.status_code for answer in answers] == [200] * len(bodies), answers[-1].text
            return [answer.json() for answer in answers]

    return asyncio.run(run())


def prompt_of(app: Any, index: int = -1) -> str:
    engine = app.state.context.engine
    return engine.tokenizer.decode(engine.requests[index].prompt_ids)


def params_of(app: Any, index: int = -1) -> Any:
    return app.state.context.engine.requests[index].params


def words(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(0, 6)))


def any_arguments(rng: random.Random, _name: str) -> str:
    return rng.choice(['{"a":1}', "", "not json", words(rng)])


def random_script(
    rng: random.Random,
    *,
    names: Sequence[str] = NAMES,
    arguments: Callable[[random.Random, str], str] = any_arguments,
    is_unruly: bool = True,
) -> str:
    """A turn as models write them, and sometimes as they should not.

    Args:
        names: of tools that are called.
        arguments: makes those of a call, by the name.
        is_unruly: the model may go on as the user, and a turn may be empty.
    """
    parts = [f"<|channel|>analysis<|message|>{words(rng)}<|end|>" for _ in range(rng.randint(0, 2))]
    if rng.random() < 0.3:
        parts.append(f"<|channel|>commentary<|message|>{words(rng)}<|end|>")
    for _ in range(rng.choice([0, 0, 1, 2])):
        name = rng.choice(names)
        body = arguments(rng, name)
        parts.append(f"<|channel|>commentary to={name}<|message|>{body}{rng.choice(['<|call|>', '<|end|>'])}")
    if rng.random() < 0.7:
        parts.append(f"<|channel|>final<|message|>{words(rng)}<|return|>")
    if is_unruly and rng.random() < 0.1:
        parts.append("user<|message|>made up<|end|>")
    return NEXT.join(parts) or "<|return|>"
