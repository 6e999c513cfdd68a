"""`ossia serve`: a model behind OpenAI's APIs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import typer

from ossia.cli import options
from ossia.cli.extras import extra
from ossia.cli.groups import grouped
from ossia.cli.options import examples
from ossia.cli.serve_options import Answers, Bounds, Engine, Reach
from ossia.core.errors import InvalidInputError

if TYPE_CHECKING:
    from ossia.server.makers import HostedTool, ToolMaker
    from ossia.server.settings import ServerSettings
    from ossia.tools.base import Tool

EXAMPLES = examples(
    "ossia serve",
    "ossia serve openai/gpt-oss-20b --port 8080 --kv-dtype fp8",
    "ossia keys add laptop && ossia serve --host 0.0.0.0",
    "ossia serve --tools web_search,code_interpreter",
    "ossia serve --database postgresql+psycopg://user@host/ossia",
)
LOG_LEVELS = ("debug", "info", "warning", "error")
POLICIES = ("raw", "summary", "hidden")
DAY = 86_400.0
MIB = 1 << 20
GIB = 1 << 30


@grouped
def command(
    model: options.Model = "nano",
    *,
    reach: Reach,
    answers: Answers,
    bounds: Bounds,
    engine: Engine,
) -> None:
    """Serve a model: the Responses, Chat Completions, Completions and Messages APIs.

    Without MODEL it is nano. The first line of stdout is the base URL, once the server listens; logs are JSON lines on
    stderr. SIGTERM and Ctrl-C finish what is in progress.
    """
    check_choice("log_level", bounds.log_level, LOG_LEVELS)
    check_choice("reasoning", answers.reasoning, POLICIES)
    with extra("server"):
        from ossia.server.serve import set_up_logs

    settings = read_settings(reach, answers, bounds)
    set_up_logs(bounds.log_level)
    check_reach(settings)
    serve_model(model, settings, name=reach.name, makers=tool_makers(answers), engine=engine)


def read_settings(reach: Reach, answers: Answers, bounds: Bounds) -> ServerSettings:
    """The options as the server takes them.

    Raises:
        InvalidInputError: a value that it does not take.
    """
    from ossia.server.settings import Limits, ReasoningPolicy, ServerSettings

    return ServerSettings(
        host=reach.host,
        port=reach.port,
        api_keys=tuple(reach.api_key or ()),
        allow_open=reach.allow_open,
        allowed_hosts=tuple(reach.allowed_host or ()),
        cors_origins=tuple(reach.cors_origin or ()),
        reasoning=ReasoningPolicy(answers.reasoning),
        database_url=answers.database,
        ttl_seconds=answers.ttl_days * DAY if answers.ttl_days else None,
        tools=tuple(options.split_names(answers.tools)),
        limits=Limits(
            requests_per_minute=bounds.requests_per_minute,
            tokens_per_minute=bounds.tokens_per_minute,
            concurrency=bounds.concurrency,
            max_body_bytes=bounds.max_body_mib * MIB,
        ),
        drain_seconds=bounds.drain_seconds,
        with_docs=not bounds.no_docs,
        has_traces=bounds.traces,
    )


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises InvalidInputError, naming what is allowed, for anything else."""
    if value not in allowed:
        option = "--" + name.replace("_", "-")
        raise InvalidInputError(f"{option} is {value!r}; use {', '.join(allowed)}", param=name)


def check_reach(settings: ServerSettings) -> None:
    """Refuse what `serve` would refuse, before minutes go into loading a model.

    Raises:
        InvalidInputError: strangers could use the server.
    """
    from ossia.cli.keys import open_stores
    from ossia.server.auth import Authenticator
    from ossia.server.settings import check_exposure

    if settings.is_loopback:
        return
    with open_stores(settings.database_url) as stores:
        has_keys = Authenticator(list(stores.values()), given=settings.api_keys).has_keys()
    check_exposure(settings, has_keys=has_keys)


def serve_model(
    model: str, settings: ServerSettings, *, name: str | None, makers: Mapping[str, ToolMaker], engine: Engine
) -> None:
    """Load a model and serve it until a signal says to stop."""
    from ossia.agent.turns import ServedModel
    from ossia.cli.backend import open_backend
    from ossia.server.app import build_context
    from ossia.server.serve import serve

    backend = open_backend(
        model,
        device=engine.device,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_queue=engine.max_queue,
        context_length=engine.context_length,
        kv_cache_bytes=None if engine.kv_cache_gib is None else round(engine.kv_cache_gib * GIB),
        kv_dtype=engine.kv_dtype,
        num_drafts=engine.num_drafts,
        has_prefix_cache=not engine.no_prefix_cache,
        cpu_quant=engine.cpu_quant,
    )
    served = ServedModel.of(backend.loaded, name=name, created_at=int(time.time()))
    if engine.context_length is not None:
        served = replace(served, context_length=min(engine.context_length, served.context_length))
    context = build_context(backend.engine, model=served, settings=settings)
    context.tool_makers = {**context.tool_makers, **makers}
    serve(context, announce=typer.echo)


def tool_makers(answers: Answers) -> dict[str, ToolMaker]:
    """How the server makes the tools that clients ask for, a fresh one for each response."""
    from ossia.cli.tool_options import ToolOptions
    from ossia.cli.tools import make_one
    from ossia.server.makers import CODE_INTERPRETER, MCP, WEB_SEARCH, make_mcp

    choice = ToolOptions(
        unsafe_python=answers.unsafe_python,
        search=answers.search,
        search_url=answers.search_url,
        search_key=answers.search_key,
    )

    async def make_browser(_: HostedTool) -> Tool:
        return make_one("browser", choice)

    async def make_python(_: HostedTool) -> Tool:
        return make_one("python", choice)

    makers: dict[str, ToolMaker] = {WEB_SEARCH: make_browser, CODE_INTERPRETER: make_python}
    if answers.private_mcp:
        makers[MCP] = partial(make_mcp, is_private_allowed=True)
    return makers
