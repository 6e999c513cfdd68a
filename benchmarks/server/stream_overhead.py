"""What a streamed token costs beside the engine: POST /v1/responses on an engine that costs nothing.

    python benchmarks/server/stream_overhead.py --clients 64 --tokens 512

A server process runs `ScriptedEngine`; this process reads raw bytes from sockets, so that the client costs little.
Printed: tokens a second, the server's CPU time a token, and the share of each layer, measured by running the layers
one on top of the other in one process: the engine's events alone, with harmony parsing (turns), with the builder of
events (responses), with framing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

from ossia.agent.turns import Sampling, ServedModel
from ossia.core.paths import PACKAGE_ROOT
from ossia.engine.scripted import ScriptedEngine
from ossia.harmony.hf_tokenizer import load_tokenizer
from ossia.model.loading import Identity
from ossia.server.app import build_context, create_app
from ossia.server.context import ServerContext
from ossia.server.serve import serve
from ossia.server.settings import ServerSettings


def make_context(num_tokens: int, home: Path) -> ServerContext:
    tokenizer = load_tokenizer(PACKAGE_ROOT / "nano")
    text = "<|channel|>final<|message|>" + " word" * num_tokens + "<|return|>"
    engine = ScriptedEngine(tokenizer, script=lambda _: text, context_length=1 << 20)
    model = ServedModel(
        name="scripted",
        tokenizer=tokenizer,
        identity=Identity(model_identity="You are a test.", knowledge_cutoff=None),
        context_length=1 << 20,
    )
    settings = ServerSettings(port=0, database_url="sqlite://")
    return build_context(engine, model=model, settings=settings, home=home)


def run_server(num_tokens: int, home: str, pipe: Any) -> None:
    context = make_context(num_tokens, Path(home))
    serve(context, announce=pipe.send)


async def one_client(host: str, port: int) -> int:
    """Reads a stream to its end; how many deltas came."""
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 22)
    body = json.dumps({"input": "Hello", "stream": True, "store": False}).encode()
    head = f"POST /v1/responses HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
    count = 0
    tail = b""
    while data := await reader.read(1 << 16):
        data = tail + data
        count += data.count(b"event: response.output_text.delta")
        tail = data[-32:] if b"event: response.output_text.delta" not in data[-32:] else b""
    writer.close()
    return count


async def all_clients(host: str, port: int, clients: int) -> tuple[int, float]:
    started = time.perf_counter()
    counts = await asyncio.gather(*(one_client(host, port) for _ in range(clients)))
    return sum(counts), time.perf_counter() - started


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def layers(context: ServerContext, num_tokens: int) -> dict[str, float]:
    """CPU seconds a token of each layer on top of those before it."""
    service = create_app(context).state.context.responses
    conversation_body = {"input": "Hello", "stream": True, "store": False}
    from ossia.server.auth import ANONYMOUS
    from ossia.server.responses.params import read_params
    from ossia.server.responses.schema import CreateBody

    body = CreateBody.model_validate(conversation_body)

    async def engine_only() -> None:
        prepared = await service.prompter.prepare(body, owner="a", params=read_params(body))
        request = context.turns.request(prepared.prompt, sampling=Sampling(), owner="a", request_id=context.new_id("r"))
        async for _ in await context.engine.submit(request):
            pass

    async def with_turns() -> None:
        prepared = await service.prompter.prepare(body, owner="a", params=read_params(body))
        request = context.turns.request(prepared.prompt, sampling=Sampling(), owner="a", request_id=context.new_id("r"))
        async with await context.turns.start(request) as turn:
            async for _ in turn:
                pass

    async def with_events() -> None:
        run = await service.create(body, ANONYMOUS)
        async for _ in run.events():
            pass

    found: dict[str, float] = {}
    before = 0.0
    for name, work in (("engine events", engine_only), ("harmony", with_turns), ("events", with_events)):
        times = []
        for _ in range(5):
            started = time.process_time()
            await work()
            times.append((time.process_time() - started) / num_tokens)
        best = sorted(times)[2]
        found[name] = best - before
        before = best
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        server = multiprocessing.get_context("spawn").Process(target=run_server, args=(options.tokens, home, theirs))
        server.start()
        url = ours.recv()
        host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
        asyncio.run(all_clients(host, int(port), 4))  # warm
        assert server.pid is not None
        before = cpu_seconds(server.pid)
        count, seconds = asyncio.run(all_clients(host, int(port), options.clients))
        used = cpu_seconds(server.pid) - before
        server.terminate()
        server.join()
        expected = options.clients * options.tokens
        print(f"{count} of {expected} deltas in {seconds:.2f} s: {count / seconds:,.0f} tokens/s")
        print(f"server CPU: {1e6 * used / count:.1f} us a token, {count / used:,.0f} tokens a CPU second")
        shares = asyncio.run(layers(make_context(20_000, Path(home)), 20_000))
        total = used / count
        for name, cost in shares.items():
            print(f"  {name:14} {1e6 * cost:6.1f} us {cost / total:5.0%}")
        rest = total - sum(shares.values())
        print(f"  {'HTTP':14} {1e6 * rest:6.1f} us {rest / total:5.0%}")


if __name__ == "__main__":
    main()
