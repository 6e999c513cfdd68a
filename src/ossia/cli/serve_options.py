"""The options of `ossia serve`, by what they are about. Each field is an option; see `groups.grouped`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from ossia.cli import options


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """Who may talk to the server."""

    host: Annotated[str, typer.Option(metavar="HOST", help="Where to listen. Others than loopback need a key.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, typer.Option(metavar="PORT", help="0 takes any free one.")] = 8000
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="What clients call the model. Default: MODEL.", show_default=False),
    ] = None
    api_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", envvar="OSSIA_API_KEY", help="A key that is taken, beside those of `ossia keys`."),
    ] = None
    allow_open: Annotated[bool, typer.Option("--allow-open", help="Listen for others although no key is required.")] = (
        False
    )
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A Host header that is taken beside loopback ones.")
    ] = None
    cors_origin: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Web pages of this origin may call the server.")
    ] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What clients see, which tools are run for them, and what is kept."""

    reasoning: Annotated[
        str, typer.Option(metavar="POLICY", help="What clients see of the reasoning: raw, summary or hidden.")
    ] = "raw"
    tools: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Tools run for clients: web_search, code_interpreter, mcp.", show_default=False
        ),
    ] = None
    unsafe_python: options.UnsafePython = False
    search: options.Search = "docs"
    search_url: options.SearchUrl = None
    search_key: options.SearchKey = None
    private_mcp: Annotated[
        bool,
        typer.Option("--private-mcp", help="MCP servers of clients may be at private addresses."),
    ] = False
    database: Annotated[
        str | None,
        typer.Option(metavar="URL", help="SQLAlchemy URL. Default: a SQLite file in $OSSIA_HOME.", show_default=False),
    ] = None
    ttl_days: Annotated[float, typer.Option(metavar="N", help="Days that responses are kept; 0: for ever.")] = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What clients may use, and how the server runs."""

    requests_per_minute: Annotated[int, typer.Option(metavar="N", help="For each key; 0: no limit.")] = 0
    tokens_per_minute: Annotated[int, typer.Option(metavar="N", help="For each key; 0: no limit.")] = 0
    concurrency: Annotated[int, typer.Option(metavar="N", help="Requests at once of each key; 0: no limit.")] = 0
    max_body_mib: Annotated[int, typer.Option(metavar="N", help="Largest request body.")] = 32
    drain_seconds: Annotated[
        float, typer.Option(metavar="S", help="A stopping server waits so long for what is in progress.")
    ] = 30.0
    no_docs: Annotated[bool, typer.Option("--no-docs", help="Serve no /docs and no /openapi.json.")] = False
    log_level: Annotated[str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = "info"
    traces: Annotated[
        bool,
        typer.Option("--traces", help="Send OpenTelemetry traces; OTEL_* variables say where. Needs ossia[traces]."),
    ] = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """Where the model runs, and how much at once."""

    device: options.Device = "auto"
    kv_dtype: options.KvDtype = None
    num_drafts: options.NumDrafts = None
    max_num_seqs: Annotated[
        int | None, typer.Option(metavar="N", help="Answers that run at once. Default: 64.", show_default=False)
    ] = None
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens a step. Default: 2048.", show_default=False)
    ] = None
    max_queue: Annotated[
        int | None, typer.Option(metavar="N", help="Answers that may wait. Default: 1024.", show_default=False)
    ] = None
    context_length: Annotated[
        int | None, typer.Option(metavar="N", help="Default: the model's own.", show_default=False)
    ] = None
    kv_cache_gib: Annotated[
        float | None, typer.Option(metavar="N", help="Default: a share of what is free.", show_default=False)
    ] = None
    no_prefix_cache: Annotated[bool, typer.Option("--no-prefix-cache", help="Compute every prompt anew.")] = False
    cpu_quant: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="On a CPU, q8 keeps attention and lm_head in 8 bits, bf12 in 12 without loss. Default: none.",
            show_default=False,
        ),
    ] = None
