"""`ossia serve`: a model behind OpenAI's APIs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import typer

from ossia.cli import options
from ossia.cli import serve_options as given
from ossia.cli.extras import extra
from ossia.cli.options import examples
from ossia.core.errors import InvalidInputError

if TYPE_CHECKING:
    from ossia.cli.tools import ToolOptions
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


def command(
    model: options.Model = "nano",
    host: given.Host = "127.0.0.1",
    port: given.Port = 8000,
    name: given.Name = None,
    api_key: given.ApiKey = None,
    allow_open: given.AllowOpen = False,
    allowed_host: given.AllowedHost = None,
    cors_origin: given.CorsOrigin = None,
    reasoning: given.Reasoning = "raw",
    tools: given.Tools = None,
    unsafe_python: options.UnsafePython = False,
    search: options.Search = "docs",
    search_url: options.SearchUrl = None,
    search_key: options.SearchKey = None,
    database: given.Database = None,
    ttl_days: given.TtlDays = 30.0,
    requests_per_minute: given.RequestsPerMinute = 0,
    tokens_per_minute: given.TokensPerMinute = 0,
    concurrency: given.Concurrency = 0,
    max_body_mib: given.MaxBodyMib = 32,
    drain_seconds: given.DrainSeconds = 30.0,
    no_docs: given.NoDocs = False,
    log_level: given.LogLevel = "info",
    device: options.Device = "auto",
    kv_dtype: options.KvDtype = None,
    num_drafts: options.NumDrafts = None,
    max_num_seqs: given.MaxNumSeqs = None,
    max_num_batched_tokens: given.MaxNumBatchedTokens = None,
    max_queue: given.MaxQueue = None,
    context_length: given.ContextLength = None,
    kv_cache_gib: given.KvCacheGib = None,
    no_prefix_cache: given.NoPrefixCache = False,
    cpu_quant: given.CpuQuant = None,
    traces: given.Traces = False,
) -> None:
    """Serve a model: the Responses, Chat Completions, Completions and Messages APIs.

    Without MODEL it is nano. The first line of stdout is the base URL, once the server listens; logs are JSON lines on
    stderr. SIGTERM and Ctrl-C finish what is in progress.
    """
    check_choice("log_level", log_level, LOG_LEVELS)
    check_choice("reasoning", reasoning, POLICIES)
    with extra("server"):
        from ossia.server.serve import set_up_logs
        from ossia.server.settings import Limits, ReasoningPolicy, ServerSettings

    from ossia.cli.tools import ToolOptions

    settings = ServerSettings(
        host=host,
        port=port,
        api_keys=tuple(api_key or ()),
        allow_open=allow_open,
        allowed_hosts=tuple(allowed_host or ()),
        cors_origins=tuple(cors_origin or ()),
        reasoning=ReasoningPolicy(reasoning),
        database_url=database,
        ttl_seconds=ttl_days * DAY if ttl_days else None,
        tools=tuple(options.split_names(tools)),
        limits=Limits(
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrency=concurrency,
            max_body_bytes=max_body_mib * MIB,
        ),
        drain_seconds=drain_seconds,
        with_docs=not no_docs,
        has_traces=traces,
    )
    set_up_logs(log_level)
    check_reach(settings)
    choice = ToolOptions(unsafe_python=unsafe_python, search=search, search_url=search_url, search_key=search_key)
    serve_model(
        model,
        settings,
        tool_options=choice,
        name=name,
        device=device,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_queue=max_queue,
        context_length=context_length,
        kv_cache_bytes=None if kv_cache_gib is None else round(kv_cache_gib * GIB),
        kv_dtype=kv_dtype,
        num_drafts=num_drafts,
        has_prefix_cache=not no_prefix_cache,
        cpu_quant=cpu_quant,
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
    model: str, settings: ServerSettings, *, name: str | None, tool_options: ToolOptions, device: str, **sizes: Any
) -> None:
    """Load a model and serve it until a signal says to stop."""
    from dataclasses import replace

    from ossia.agent.turns import ServedModel
    from ossia.cli.backend import open_backend
    from ossia.server.app import build_context
    from ossia.server.serve import serve

    backend = open_backend(model, device=device, **sizes)
    served = ServedModel.of(backend.loaded, name=name, created_at=int(time.time()))
    if sizes.get("context_length") is not None:
        served = replace(served, context_length=min(sizes["context_length"], served.context_length))
    context = build_context(backend.engine, model=served, settings=settings)
    context.tool_makers = {**context.tool_makers, **tool_makers(tool_options)}
    serve(context, announce=typer.echo)


def tool_makers(choice: ToolOptions) -> dict[str, ToolMaker]:
    """How the server makes the tools that clients ask for, a fresh one for each response."""
    from ossia.cli.tools import make_one
    from ossia.server.makers import CODE_INTERPRETER, WEB_SEARCH

    async def make_browser(_: HostedTool) -> Tool:
        return make_one("browser", choice)

    async def make_python(_: HostedTool) -> Tool:
        return make_one("python", choice)

    return {WEB_SEARCH: make_browser, CODE_INTERPRETER: make_python}
