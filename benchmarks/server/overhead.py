"""What a streamed token costs beside the engine, in each of the streaming APIs, on an engine that costs nothing.

    python benchmarks/server/overhead.py --clients 64 --tokens 256 --repeat 3

A server process runs `ScriptedEngine`, which gives one token an event; this process reads raw bytes from sockets, so
that the client costs little: the two share two cores. Printed for each API: tokens a second, the server's CPU time a
token, and the share of each layer, measured by running the layers one on top of the other in one process:

    engine      the engine's events alone
    harmony     parsing them into messages (the turn)
    words       telling them in the API's words, as the bytes of its stream
    HTTP        the rest: one write a token through the ASGI server to the socket
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from stream_overhead import cpu_seconds, make_context, run_server

from ossia.agent.turns import Sampling
from ossia.server.app import create_app
from ossia.server.auth import ANONYMOUS
from ossia.server.chat.completions import start_completion
from ossia.server.chat.schema import ChatBody, CompletionBody
from ossia.server.chat.service import start_chat
from ossia.server.context import ServerContext
from ossia.server.messages_api.schema import MessagesBody
from ossia.server.messages_api.service import start_messages
from ossia.server.responses.schema import CreateBody

USER = {"role": "user", "content": "Hello"}


class Api(NamedTuple):
    """One of the APIs.

    Attributes:
        path, body: a request for a stream.
        mark: what the bytes of one token's event hold once.
        stream: makes the bytes of a stream without HTTP.
    """

    path: str
    body: dict[str, Any]
    mark: bytes
    stream: Callable[[ServerContext, dict[str, Any]], Awaitable[AsyncIterator[Any]]]


async def _chat(context: ServerContext, body: dict[str, Any]) -> AsyncIterator[Any]:
    return (await start_chat(context, ChatBody.model_validate(body), caller=ANONYMOUS)).frames()


async def _completion(context: ServerContext, body: dict[str, Any]) -> AsyncIterator[Any]:
    return (await start_completion(context, CompletionBody.model_validate(body), caller=ANONYMOUS)).frames()


async def _message(context: ServerContext, body: dict[str, Any]) -> AsyncIterator[Any]:
    return (await start_messages(context, MessagesBody.model_validate(body), caller=ANONYMOUS)).frames()


async def _response(context: ServerContext, body: dict[str, Any]) -> AsyncIterator[Any]:
    return (await context.responses.create(CreateBody.model_validate(body), ANONYMOUS)).events()


APIS = {
    "chat": Api("/v1/chat/completions", {"messages": [USER]}, b'"delta":{"content":" ', _chat),
    "completions": Api("/v1/completions", {"prompt": "Hello", "max_tokens": 1 << 19}, b'"text":" ', _completion),
    "messages": Api("/v1/messages", {"messages": [USER], "max_tokens": 1 << 19}, b'"text_delta","text":" ', _message),
    "responses": Api("/v1/responses", {"input": "Hello", "store": False}, b'"delta":" ', _response),
}


async def read_stream(host: str, port: int, api: Api) -> int:
    """Reads one stream to its end.

    Returns:
        How many tokens came.
    """
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 22)
    body = json.dumps({**api.body, "stream": True}).encode()
    head = f"POST {api.path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
    chunks: list[bytes] = []
    while data := await reader.read(1 << 16):
        chunks.append(data)
    writer.close()
    return b"".join(chunks).count(api.mark)


async def read_all(host: str, port: int, api: Api, clients: int) -> tuple[int, float]:
    """All clients at once: tokens, and seconds."""
    started = time.perf_counter()
    counts = await asyncio.gather(*(read_stream(host, port, api) for _ in range(clients)))
    return sum(counts), time.perf_counter() - started


async def measure_layers(context: ServerContext, api: Api, *, num_tokens: int, repeat: int) -> dict[str, float]:
    """CPU seconds a token of each layer on top of those before it; medians."""
    create_app(context)
    rendered = await context.turns.encode(_conversation())

    def request() -> Any:
        return context.turns.request(rendered, sampling=Sampling(), owner="a", request_id=context.new_id("r"))

    async def engine() -> None:
        async for _ in await context.engine.submit(request()):
            pass

    async def harmony() -> None:
        async with await context.turns.start(request()) as turn:
            async for _ in turn:
                pass

    async def words() -> None:
        async for _ in await api.stream(context, {**api.body, "stream": True}):
            pass

    steps = {"engine": engine, "harmony": harmony, "words": words}
    if api.path == "/v1/completions":
        del steps["harmony"]  # it has plain text
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeat):
        for name, work in steps.items():
            started = time.process_time()
            await work()
            times[name].append((time.process_time() - started) / num_tokens)
    found: dict[str, float] = {}
    before = 0.0
    for name, values in times.items():
        cost = statistics.median(values)
        found[name] = cost - before
        before = cost
    return found


def _conversation() -> Any:
    from ossia.harmony.message import Conversation, Message, Role

    return Conversation((Message(Role.USER, content="Hello"),))


def measure(api: Api, *, clients: int, num_tokens: int, repeat: int) -> dict[str, Any]:
    """One API: medians of several runs against one server process."""
    with tempfile.TemporaryDirectory() as home:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        server = spawn.Process(target=run_server, args=(num_tokens, home, theirs))
        server.start()
        host, _, port = ours.recv().removeprefix("http://").removesuffix("/v1").partition(":")
        asyncio.run(read_all(host, int(port), api, 4))  # warm
        assert server.pid is not None
        rates: list[float] = []
        costs: list[float] = []
        for _ in range(repeat):
            before = cpu_seconds(server.pid)
            count, seconds = asyncio.run(read_all(host, int(port), api, clients))
            assert count == clients * num_tokens, f"{count} of {clients * num_tokens} tokens came"
            rates.append(count / seconds)
            costs.append((cpu_seconds(server.pid) - before) / count)
        server.terminate()
        server.join()
        context = make_context(20_000, Path(home))
        layers = asyncio.run(measure_layers(context, api, num_tokens=20_000, repeat=3 * repeat))
    cost = statistics.median(costs)
    return {"tokens_per_second": statistics.median(rates), "server_seconds_per_token": cost, "layers": layers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--api", choices=[*APIS], action="append")
    options = parser.parse_args()
    for name in options.api or APIS:
        found = measure(APIS[name], clients=options.clients, num_tokens=options.tokens, repeat=options.repeat)
        cost = found["server_seconds_per_token"]
        print(
            f"{name}: {found['tokens_per_second']:,.0f} tokens/s to {options.clients} clients, {1e6 * cost:.1f} us each"
        )
        rest = cost - sum(found["layers"].values())
        for layer, part in {**found["layers"], "HTTP": rest}.items():
            print(f"  {layer:10} {1e6 * part:6.1f} us {part / cost:5.0%}")


if __name__ == "__main__":
    main()
