"""The options that only `ossia serve` has, as annotations of its parameters."""

from __future__ import annotations

from typing import Annotated

import typer

Host = Annotated[str, typer.Option(metavar="HOST", help="Where to listen. Others than loopback need a key.")]
Port = Annotated[int, typer.Option(metavar="PORT", help="0 takes any free one.")]
Name = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="What clients call the model. Default: MODEL.", show_default=False),
]
ApiKey = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY", envvar="OSSIA_API_KEY", help="A key that is taken, beside those of `ossia keys`."),
]
AllowOpen = Annotated[bool, typer.Option("--allow-open", help="Listen for others although no key is required.")]
AllowedHost = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="A Host header that is taken beside loopback ones.")
]
CorsOrigin = Annotated[
    list[str] | None, typer.Option(metavar="ORIGIN", help="Web pages of this origin may call the server.")
]
Reasoning = Annotated[
    str, typer.Option(metavar="POLICY", help="What clients see of the reasoning: raw, summary or hidden.")
]
Tools = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="Tools run for clients: web_search, code_interpreter, mcp.", show_default=False),
]
Database = Annotated[
    str | None,
    typer.Option(metavar="URL", help="SQLAlchemy URL. Default: a SQLite file in $OSSIA_HOME.", show_default=False),
]
TtlDays = Annotated[float, typer.Option(metavar="N", help="Days that responses are kept; 0: for ever.")]
RequestsPerMinute = Annotated[int, typer.Option(metavar="N", help="For each key; 0: no limit.")]
TokensPerMinute = Annotated[int, typer.Option(metavar="N", help="For each key; 0: no limit.")]
Concurrency = Annotated[int, typer.Option(metavar="N", help="Requests at once of each key; 0: no limit.")]
MaxBodyMib = Annotated[int, typer.Option(metavar="N", help="Largest request body.")]
DrainSeconds = Annotated[
    float, typer.Option(metavar="S", help="A stopping server waits so long for what is in progress.")
]
NoDocs = Annotated[bool, typer.Option("--no-docs", help="Serve no /docs and no /openapi.json.")]
LogLevel = Annotated[str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")]
MaxNumSeqs = Annotated[
    int | None, typer.Option(metavar="N", help="Answers that run at once. Default: 64.", show_default=False)
]
MaxNumBatchedTokens = Annotated[
    int | None, typer.Option(metavar="N", help="Tokens a step. Default: 2048.", show_default=False)
]
MaxQueue = Annotated[
    int | None, typer.Option(metavar="N", help="Answers that may wait. Default: 1024.", show_default=False)
]
ContextLength = Annotated[int | None, typer.Option(metavar="N", help="Default: the model's own.", show_default=False)]
KvCacheGib = Annotated[
    float | None, typer.Option(metavar="N", help="Default: a share of what is free.", show_default=False)
]
NoPrefixCache = Annotated[bool, typer.Option("--no-prefix-cache", help="Compute every prompt anew.")]
Traces = Annotated[
    bool, typer.Option("--traces", help="Send OpenTelemetry traces; OTEL_* variables say where. Needs ossia[traces].")
]
CpuQuant = Annotated[
    str | None,
    typer.Option(
        metavar="KIND", help="On a CPU, q8 keeps attention and lm_head in 8 bits. Default: none.", show_default=False
    ),
]
